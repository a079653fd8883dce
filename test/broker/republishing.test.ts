/**
 * What becomes of a message's properties when it is kept and when it is published again: nothing
 * that the client or the broker would spoil, refuse, or route by.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import type { HeaderValue } from "../../src/broker/broker.ts"
import { republishable } from "../../src/broker/republishing.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

function headersAgain(headers: Record<string, HeaderValue>) {
  return republishable({ headers }).headers
}

describe("republishable", () => {
  test("values stay as they are", () => {
    const date = new Date(5)
    const values = { a: 0.5, b: "x", c: true, d: 5n, e: date, f: null, g: { h: [3_000_000_000] } }
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
    expect(republishable(given)).toEqual({ ...given, headers: { a: 1 } })
  })

  test("any headers are there again, each with its value", () => {
    const value = fc.oneof(fc.string(), fc.integer(), fc.double(), fc.boolean(), fc.object())
    // None that is renamed or left out, and not `__proto__`, which the client cannot hand out.
    const name = fc.string().map((name) => `a${name}`)
    const headers = fc.dictionary(name, value) as fc.Arbitrary<Record<string, HeaderValue>>
    check(
      fc.property(headers, (headers) => {
        expect(headersAgain(headers)).toEqual(headers)
      }),
      CHEAP_RUNS,
    )
  })
})
