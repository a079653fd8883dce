/** The latest refusals of a worker. */

import { expect, test } from "bun:test"
import {
  MAX_DETAIL_LENGTH,
  MAX_REFUSALS,
  type Refusal,
  Refusals,
} from "../../src/device/refusals.ts"

function refusal(at: number, detail = "no certificate"): Refusal {
  return { at, address: "192.0.2.1", reason: "not_identified", detail, deviceId: null }
}

test("has the newest, the newest first, and forgets the oldest", () => {
  const refusals = new Refusals()
  for (let at = 0; at < MAX_REFUSALS + 5; at += 1) refusals.add(refusal(at))
  expect(refusals.newest(2)).toEqual([refusal(MAX_REFUSALS + 4), refusal(MAX_REFUSALS + 3)])
  const all = refusals.newest(2 * MAX_REFUSALS)
  expect([all.length, all.at(-1)?.at]).toEqual([MAX_REFUSALS, 5])
})

test("shows a detail on one line, cut", () => {
  const refusals = new Refusals()
  refusals.add(refusal(1, "a\nb"))
  refusals.add(refusal(2, "x".repeat(1_000)))
  const [long, odd] = refusals.newest(2)
  expect(odd?.detail).toBe("a\\u000ab")
  expect(long?.detail.length).toBe(MAX_DETAIL_LENGTH)
})
