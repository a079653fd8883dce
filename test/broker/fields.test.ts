/**
 * What becomes of a message's properties when it is kept and when it is published again: nothing that
 * the client or the broker would spoil, refuse, or route by.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import type { HeaderValue } from "../../src/broker/broker.ts"
import { republishable } from "../../src/broker/fields.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

function headersAgain(headers: Record<string, HeaderValue>) {
  return republishable({ headers }).headers
}

describe("republishable", () => {
  test("integers become 64-bit, wherever they are, so that large ones keep their sign", () => {
    const n = 3_000_000_000
    expect(headersAgain({ a: n, b: -1, c: { d: [n] } })).toEqual({
      a: 3_000_000_000n,
      b: -1n,
      c: { d: [3_000_000_000n] },
    })
  })

  test("other values stay as they are", () => {
    const date = new Date(5)
    const values = { a: 0.5, b: "x", c: true, d: 5n, e: date, f: null }
    expect(headersAgain(values)).toEqual(values)
  })

  test("CC and BCC, by which a broker would send the copy elsewhere too, are renamed", () => {
    const headers = headersAgain({ CC: ["to_device"], BCC: ["x"], y: "z" })
    expect(headers).toEqual({ "owsla-cc": ["to_device"], "owsla-bcc": ["x"], y: "z" })
  })

  test("a user id, which the broker would refuse from us, is renamed", () => {
    const again = republishable({ userId: "alice" })
    expect([again.userId, again.headers]).toEqual([undefined, { "owsla-user-id": "alice" }])
  })

  test("a timestamp that no Date can hold is left out, any other stays", () => {
    expect(republishable({ timestamp: new Date(Number.NaN) })).not.toHaveProperty("timestamp")
    expect(republishable({ timestamp: new Date(5) }).timestamp).toEqual(new Date(5))
    expect(republishable({})).not.toHaveProperty("timestamp")
  })

  test("what the broker adds itself is left out", () => {
    const brokers = {
      "x-death": [],
      "x-delivery-count": 2,
      "x-first-death-queue": "q",
      "x-first-death-reason": "expired",
      "x-first-death-exchange": "",
    }
    expect(headersAgain({ ...brokers, "x-own": "mine" })).toEqual({ "x-own": "mine" })
  })

  test("the other properties stay, and what was given is not changed", () => {
    const given = Object.freeze({
      messageId: "m",
      replyTo: "q",
      correlationId: "c",
      contentType: "t",
      headers: Object.freeze({ a: 1 }),
    })
    expect(republishable(given)).toEqual({ ...given, headers: { a: 1n } })
  })

  test("any headers: every name is there again, and no number is left that the client would spoil", () => {
    const value = fc.oneof(fc.string(), fc.integer(), fc.double(), fc.boolean(), fc.object())
    // None that is renamed or left out, and not `__proto__`, which the client cannot hand out.
    const name = fc.string().map((name) => `a${name}`)
    const headers = fc.dictionary(name, value) as fc.Arbitrary<Record<string, HeaderValue>>
    check(
      fc.property(headers, (headers) => {
        const again = headersAgain(headers) ?? {}
        expect(Object.keys(again).sort()).toEqual(Object.keys(headers).sort())
        JSON.stringify(again, (_key, value) => {
          if (typeof value === "number") expect(Number.isSafeInteger(value)).toBe(false)
          return typeof value === "bigint" ? String(value) : value
        })
      }),
      CHEAP_RUNS,
    )
  })
})
