/** Backoff: between its floor and its bound on every try and every draw, growing and spread. */

import { expect, test } from "bun:test"
import fc from "fast-check"
import { backoffMs } from "../src/backoff.ts"
import { CHEAP_RUNS, check } from "./support/property.ts"

const LIMITS = { firstMs: 100, maxMs: 5_000 }
const ALMOST_1 = 1 - Number.EPSILON

test("the lowest draw is half of the first wait on every try", () => {
  for (const attempt of [0, 1, 5, 1_000]) expect(backoffMs(attempt, LIMITS, 0)).toBe(50)
})

test("the highest draw doubles from the first wait to the most", () => {
  const waits = [0, 1, 2, 3, 4, 5, 6, 7].map((attempt) => backoffMs(attempt, LIMITS, ALMOST_1))
  expect(waits).toEqual([100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000])
})

test("a draw in the middle is in the middle, so that many do not return in step", () => {
  expect(backoffMs(0, LIMITS, 0.5)).toBe(75)
  expect(backoffMs(6, LIMITS, 0.5)).toBe(2_525)
})

test("the number of tries has no end", () => {
  for (const attempt of [30, 31, 1_023, 1_024, Number.MAX_SAFE_INTEGER]) {
    expect(backoffMs(attempt, LIMITS, ALMOST_1)).toBe(5_000)
  }
})

test("a most below the first is the bound of all", () => {
  const limits = { firstMs: 100, maxMs: 30 }
  expect([backoffMs(0, limits, 0), backoffMs(9, limits, ALMOST_1)]).toEqual([30, 30])
})

test("any limits, tries and draws: whole, never 0, within the bounds, growing with the draw", () => {
  const draw = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true })
  const limits = fc.record({
    firstMs: fc.integer({ min: 1, max: 10_000 }),
    maxMs: fc.integer({ min: 1, max: 100_000 }),
  })
  check(
    fc.property(fc.nat(2_000), limits, draw, draw, (attempt, limits, a, b) => {
      const [low, high] = [Math.min(a, b), Math.max(a, b)].map((random) =>
        backoffMs(attempt, limits, random),
      )
      if (low === undefined || high === undefined) throw new Error("two waits")
      expect(Number.isInteger(low) && low > 0).toBe(true)
      expect(low).toBeLessThanOrEqual(high)
      expect(high).toBeLessThanOrEqual(limits.maxMs)
      expect(low).toBeGreaterThanOrEqual(Math.min(limits.firstMs / 2, limits.maxMs))
    }),
    CHEAP_RUNS,
  )
})
