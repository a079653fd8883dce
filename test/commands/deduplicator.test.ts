/** Which messages of one forwarded command are copies, and for how long that is known. */

import { describe, expect, test } from "bun:test"
import { Deduplicator } from "../../src/commands/deduplicator.ts"

const REMEMBERED_ENDS = 65_536
const ID = "gw.1.mb2k3f9zq7.0"

describe("a message with the key of one that is in hand or has ended", () => {
  test("is a copy, however many come", () => {
    const deduplicator = new Deduplicator()
    expect(deduplicator.take(ID)).toBe(true)
    expect([deduplicator.take(ID), deduplicator.take(ID)]).toEqual([false, false])
    deduplicator.ended(ID)
    expect([deduplicator.take(ID), deduplicator.take(ID)]).toEqual([false, false])
  })

  test("is a new one once the first was dropped", () => {
    const deduplicator = new Deduplicator()
    deduplicator.take(ID)
    deduplicator.drop(ID)
    expect(deduplicator.take(ID)).toBe(true)
  })

  test("counts as new when it is delivered again after it was dropped, and then has copies again", () => {
    const deduplicator = new Deduplicator()
    deduplicator.ended(ID)
    deduplicator.reopen(ID)
    expect(deduplicator.take(ID)).toBe(false)
    deduplicator.drop(ID)
    expect(deduplicator.take(ID)).toBe(true)
  })

  test("has the same id and the same number of hops", () => {
    const keys = [
      Deduplicator.key(ID, 1),
      Deduplicator.key(ID, 2),
      Deduplicator.key("gw.1.mb2k3f9zq7.1", 1),
    ]
    expect(new Set(keys).size).toBe(3)
    const deduplicator = new Deduplicator()
    expect(keys.map((key) => deduplicator.take(key))).toEqual([true, true, true])
  })
})

test("the last ends are remembered, the oldest is forgotten first, and what is in hand never", () => {
  const deduplicator = new Deduplicator()
  deduplicator.take("in hand")
  for (let n = 0; n <= REMEMBERED_ENDS; n += 1) {
    deduplicator.take(String(n))
    deduplicator.ended(String(n))
    // A second call for the same end changes nothing.
    deduplicator.ended(String(n))
  }
  expect(deduplicator.take("0")).toBe(true)
  expect(deduplicator.take("1")).toBe(false)
  expect(deduplicator.take("in hand")).toBe(false)
})
