/** A ring against a list of all items. */

import { expect, test } from "bun:test"
import fc from "fast-check"
import { Ring } from "../../src/structures/ring.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

test("has the newest items, the newest first", () => {
  const ring = new Ring<number>(3)
  expect(ring.newest(5)).toEqual([])
  for (const item of [1, 2]) ring.push(item)
  expect(ring.newest(5)).toEqual([2, 1])
  for (const item of [3, 4, 5]) ring.push(item)
  expect(ring.newest(5)).toEqual([5, 4, 3])
  expect(ring.newest(2)).toEqual([5, 4])
  expect(ring.newest(0)).toEqual([])
})

test("is the end of the list of all items", () => {
  check(
    fc.property(
      fc.integer({ min: 1, max: 8 }),
      fc.array(fc.integer()),
      fc.nat(10),
      (max, items, count) => {
        const ring = new Ring<number>(max)
        for (const item of items) ring.push(item)
        expect(ring.length).toBe(Math.min(max, items.length))
        expect(ring.newest(count)).toEqual(items.toReversed().slice(0, Math.min(max, count)))
      },
    ),
    CHEAP_RUNS,
  )
})
