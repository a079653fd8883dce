/**
 * The histogram against sorted arrays: percentiles within a step of the true ones, whatever is
 * recorded.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { Histogram } from "../../src/simulator/histogram.ts"
import { check, RUNS } from "../support/property.ts"

function histogramOf(durationsMs: readonly number[]): Histogram {
  const histogram = new Histogram()
  for (const durationMs of durationsMs) histogram.record(durationMs)
  return histogram
}

describe("a histogram", () => {
  test("of nothing knows nothing", () => {
    expect(new Histogram().summary()).toEqual({
      count: 0,
      p50: null,
      p90: null,
      p99: null,
      max: null,
    })
  })

  test("of one value says that value", () => {
    expect(histogramOf([12.5]).summary()).toEqual({
      count: 1,
      p50: 12.5,
      p90: 12.5,
      p99: 12.5,
      max: 12.5,
    })
  })

  test("counts less than nothing as nothing", () => {
    const { count, max } = histogramOf([-3]).summary()
    expect({ count, max }).toEqual({ count: 1, max: 0 })
  })

  test("keeps the largest exactly, beyond its last bucket too", () => {
    expect(histogramOf([1, 1e12]).summary()).toMatchObject({ count: 2, max: 1e12 })
  })

  test("gives each percentile to 3 % and a microsecond", () => {
    const durations = fc.array(fc.double({ min: 0, max: 3_600_000, noNaN: true }), { minLength: 1 })
    const share = fc.constantFrom(0.01, 0.5, 0.9, 0.99, 1)
    check(
      fc.property(durations, share, (durationsMs, wanted) => {
        const sorted = [...durationsMs].sort((a, b) => a - b)
        const exact = sorted[Math.ceil(wanted * sorted.length) - 1] ?? 0
        const told = histogramOf(durationsMs).percentile(wanted) ?? -1
        expect(told).toBeGreaterThanOrEqual(exact)
        expect(told).toBeLessThanOrEqual(exact * (1 + 1 / 32) + 0.0011)
      }),
      RUNS,
    )
  })
})
