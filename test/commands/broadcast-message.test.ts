/** What a message must have to be a broadcast. */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import type { HeaderValue } from "../../src/broker/broker.ts"
import { readBroadcast } from "../../src/commands/broadcast-message.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

const FORMAT = { framing: "line", maxLineBytes: 16 } as const
const read = (headers: Record<string, HeaderValue>, body = "reboot") =>
  readBroadcast(Buffer.from(body), { headers }, FORMAT)

describe("a broadcast", () => {
  test("to all has a rate of 1,000 lines a second and no key", () => {
    expect(read({ to: "all" })).toEqual({
      audience: { kind: "all" },
      line: Buffer.from("reboot"),
      perS: 1_000,
      supersedeKey: null,
    })
  })

  test.each<[Record<string, HeaderValue>, object]>([
    [{ to_prefix: "lock:" }, { audience: { kind: "prefix", prefix: "lock:" } }],
    [{ to_ids: ["a", "b"] }, { audience: { kind: "ids", ids: ["a", "b"] } }],
    [{ to_ids: "a" }, { audience: { kind: "ids", ids: ["a"] } }],
    [{ to_ids: "a,b, c" }, { audience: { kind: "ids", ids: ["a", "b", "c"] } }],
    [{ to: "all", to_prefix: null }, { audience: { kind: "all" } }],
    [{ to: "all", per_s: 1 }, { perS: 1 }],
    [{ to: "all", per_s: 100_000n }, { perS: 100_000 }],
    [{ to: "all", per_s: "250" }, { perS: 250 }],
    [{ to: "all", supersede_key: "k".repeat(128) }, { supersedeKey: "k".repeat(128) }],
    [{ to: "all", device_id: "lock:1", more: true }, { audience: { kind: "all" } }],
  ])("has the headers %p", (headers, expected) => {
    expect(read(headers)).toMatchObject(expected)
  })

  test("may be for 10,000 ids", () => {
    const ids = Array.from({ length: 10_000 }, (_, n) => `d${n}`)
    expect(read({ to_ids: ids })).toMatchObject({ audience: { ids } })
    expect(read({ to_ids: ids.join(",") })).toMatchObject({ audience: { ids } })
    for (const tooMany of [[...ids, "d"], [...ids, "d"].join(",")]) {
      expect(read({ to_ids: tooMany })).toEqual({
        outcome: "invalid",
        detail: "to_ids has more than 10000 ids",
      })
    }
  })

  test.each<[Record<string, HeaderValue>, string]>([
    [{}, "the headers must have one of to, to_prefix and to_ids"],
    [{ to: "all", to_prefix: "lock" }, "the headers must have one of to, to_prefix and to_ids"],
    [{ to: "lock" }, "to must be all"],
    [{ to: true }, "to must be all"],
    [{ to_prefix: "" }, "to_prefix does not match"],
    [{ to_prefix: "a b" }, "to_prefix does not match"],
    [{ to_prefix: 7 }, "to_prefix does not match"],
    [{ to_ids: "" }, "an id of to_ids does not match"],
    [{ to_ids: "a,,b" }, "an id of to_ids does not match"],
    [{ to_ids: ["a", 7] }, "an id of to_ids does not match"],
    [{ to_ids: { a: 1 } }, "to_ids is neither a list nor a text"],
    [{ to: "all", per_s: 0 }, "per_s must be a whole number"],
    [{ to: "all", per_s: 1.5 }, "per_s must be a whole number"],
    [{ to: "all", per_s: "1e3" }, "per_s must be a whole number"],
    [{ to: "all", per_s: 100_001 }, "per_s must be a whole number"],
    [{ to: "all", per_s: true }, "per_s must be a whole number"],
    [{ to: "all", supersede_key: "" }, "supersede_key must be 1 to 128 bytes"],
    [{ to: "all", supersede_key: "é".repeat(65) }, "supersede_key must be 1 to 128 bytes"],
    [{ to: "all", supersede_key: "\ud800" }, "supersede_key must be 1 to 128 bytes"],
    [{ to: "all", supersede_key: 7 }, "supersede_key must be 1 to 128 bytes"],
  ])("does not have the headers %p", (headers, detail) => {
    expect(read(headers)).toEqual({ outcome: "invalid", detail: expect.stringContaining(detail) })
  })

  test("has a body that is a line", () => {
    expect(read({ to: "all" }, "a\nb")).toMatchObject({ outcome: "invalid" })
    expect(read({ to: "all" }, "x".repeat(17))).toMatchObject({ outcome: "too_large" })
  })

  test("or is refused, whatever the headers are", () => {
    const name = fc.constantFrom("to", "to_prefix", "to_ids", "per_s", "supersede_key")
    const value = fc.oneof(
      fc.constantFrom("all", "a,b", "5", null, undefined, 5n),
      fc.array(fc.string(), { maxLength: 3 }),
      fc.anything({ withBigInt: true, withDate: true }),
    ) as fc.Arbitrary<HeaderValue>
    check(
      fc.property(fc.dictionary(name, value), (headers) => {
        const result = read(headers)
        if ("outcome" in result) expect(result.detail).not.toBe("")
        else expect(result.perS).toBeGreaterThanOrEqual(1)
      }),
      CHEAP_RUNS,
    )
  })
})
