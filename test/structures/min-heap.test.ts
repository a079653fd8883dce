/** The min-heap against a sorted list, over any order of pushes and pops. */

import { expect, test } from "bun:test"
import fc from "fast-check"
import { MinHeap } from "../../src/structures/min-heap.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

test("hands out the lowest of what it holds, over any order of pushes and pops", () => {
  const step = fc.oneof(fc.nat(20), fc.constant(null))
  check(
    fc.property(fc.array(step, { maxLength: 100, size: "max" }), (steps) => {
      const heap = new MinHeap()
      const held: number[] = []
      for (const item of steps) {
        if (item === null) expect(heap.pop()).toBe(held.shift())
        else {
          heap.push(item)
          held.push(item)
          held.sort((a, b) => a - b)
        }
        expect([heap.size, heap.peek()]).toEqual([held.length, held[0]])
      }
      heap.clear()
      expect([heap.size, heap.peek(), heap.pop()]).toEqual([0, undefined, undefined])
    }),
    CHEAP_RUNS,
  )
})
