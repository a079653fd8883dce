/**
 * Ranges of line numbers against a plain set of numbers.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { overlaps, type Range, Ranges, sizeOf } from "../../src/simulator/ranges.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

const range = fc
  .tuple(fc.nat(40), fc.nat(8))
  .map(([from, length]): Range => ({ from, to: from + length }))

function numbersOf(ranges: readonly Range[]): number[] {
  return ranges.flatMap(({ from, to }) =>
    Array.from({ length: to - from + 1 }, (_, at) => from + at),
  )
}

describe("ranges", () => {
  test("hold what was added, as few ranges in order, and tell what was new", () => {
    check(
      fc.property(fc.array(range), (added) => {
        const ranges = new Ranges()
        const model = new Set<number>()
        for (const each of added) {
          const fresh = numbersOf([each]).filter((number) => !model.has(number))
          expect(numbersOf(ranges.add(each.from, each.to))).toEqual(fresh)
          for (const number of fresh) model.add(number)
        }
        const sorted = [...model].sort((a, b) => a - b)
        expect(numbersOf(ranges.list)).toEqual(sorted)
        expect(ranges.size).toBe(sorted.length)
        for (const [at, { from }] of ranges.list.entries()) {
          const before = ranges.list[at - 1]
          if (before !== undefined) expect(from).toBeGreaterThan(before.to + 1)
        }
      }),
      CHEAP_RUNS,
    )
  })

  test("tell what of a range they hold and what not", () => {
    check(
      fc.property(fc.array(range), range, (added, asked) => {
        const ranges = new Ranges()
        for (const { from, to } of added) ranges.add(from, to)
        const held = numbersOf(ranges.list)
        const within = numbersOf(ranges.within(asked.from, asked.to))
        expect(within).toEqual(numbersOf([asked]).filter((number) => held.includes(number)))
        const without = numbersOf(ranges.without(asked.from, asked.to))
        expect(without).toEqual(numbersOf([asked]).filter((number) => !held.includes(number)))
        expect(ranges.has(asked.from)).toBe(held.includes(asked.from))
      }),
      CHEAP_RUNS,
    )
  })

  test("take no range that ends before it begins", () => {
    const ranges = new Ranges()
    expect(ranges.add(3, 2)).toEqual([])
    expect(ranges.list).toEqual([])
    expect(ranges.within(0, -1)).toEqual([])
    expect(ranges.without(0, -1)).toEqual([])
  })
})

test("overlaps are the numbers in more than one range, and how often beyond the first", () => {
  check(
    fc.property(fc.array(range), (ranges) => {
      const times = new Map<number, number>()
      for (const number of numbersOf(ranges)) times.set(number, (times.get(number) ?? 0) + 1)
      const repeated = [...times.values()].filter((count) => count > 1)
      expect(overlaps(ranges)).toEqual({
        numbers: repeated.length,
        extra: sizeOf(ranges) - times.size,
      })
    }),
    CHEAP_RUNS,
  )
})
