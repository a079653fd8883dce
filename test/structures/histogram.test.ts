/** The buckets of a histogram, beside counting each observation. */

import { expect, test } from "bun:test"
import fc from "fast-check"
import { Histogram } from "../../src/structures/histogram.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

const BOUNDS = [0.001, 0.01, 1]

const observed = (durations: readonly number[]) => {
  const histogram = new Histogram(BOUNDS)
  for (const ms of durations) histogram.observe(ms)
  return histogram
}
const duration = fc.oneof(
  fc.constantFrom(0, 1, 10, 1_000),
  fc.double({ min: 0, max: 5_000, noNaN: true }),
)
const durations = fc.array(duration)

test("each duration is in the first bucket whose bound it does not exceed", () => {
  check(
    fc.property(durations, (all) => {
      const histogram = observed(all)
      const bucketOf = (ms: number) => {
        const bucket = BOUNDS.findIndex((bound) => ms / 1_000 <= bound)
        return bucket === -1 ? BOUNDS.length : bucket
      }
      const counts = [0, 1, 2, 3].map(
        (bucket) => all.filter((ms) => bucketOf(ms) === bucket).length,
      )
      expect([...histogram.counts]).toEqual(counts)
      expect(histogram.sum).toBeCloseTo(
        all.reduce((sum, ms) => sum + ms / 1_000, 0),
        4,
      )
    }),
    CHEAP_RUNS,
  )
})

test("the sum over workers is the same in each order, so that it never falls", () => {
  check(
    fc.property(fc.array(durations, { maxLength: 5 }), (workers) => {
      const sums = workers.map((all) => observed(all).sum)
      const total = (of: readonly number[]) => of.reduce((sum, each) => sum + each, 0)
      expect(total(sums.toReversed())).toBe(total(sums))
      expect(observed(workers.flat().toReversed()).sum).toBe(total(sums))
    }),
    CHEAP_RUNS,
  )
})
