/** A rate with a burst. */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { Pace } from "../../src/structures/pace.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

describe("a pace of 10 a second with a burst of one second", () => {
  test("allows ten at once, then one each 100 ms", () => {
    const pace = new Pace(10, 1_000)
    let spent = 0
    while (pace.waitMs(5_000) === 0) {
      pace.spend(1, 5_000)
      spent += 1
    }
    expect(spent).toBe(10)
    expect(pace.waitMs(5_000)).toBeCloseTo(100)
    expect(pace.waitMs(5_100)).toBe(0)
    pace.spend(1, 5_100)
    expect(pace.waitMs(5_100)).toBeCloseTo(100)
  })

  test("allows no more than a burst after a long pause", () => {
    const pace = new Pace(10, 1_000)
    pace.spend(10, 0)
    pace.spend(10, 3_600_000)
    expect(pace.waitMs(3_600_000)).toBeGreaterThan(0)
  })

  test("takes the time that a debt needs", () => {
    const pace = new Pace(10, 1_000)
    pace.spend(110, 0)
    expect(pace.waitMs(0)).toBeCloseTo(10_100)
  })
})

test("a burst shorter than one unit allows one", () => {
  const pace = new Pace(0.5, 1_000)
  expect(pace.waitMs(0)).toBe(0)
  pace.spend(1, 0)
  expect(pace.waitMs(0)).toBeCloseTo(2_000)
})

test("within any time it spends at most the burst and the rate", () => {
  const steps = fc.array(fc.nat(400), { minLength: 1, maxLength: 60 })
  check(
    fc.property(fc.integer({ min: 1, max: 50 }), steps, (perS, pauses) => {
      const pace = new Pace(perS, 1_000)
      let nowMs = 0
      let spent = 0
      for (const pauseMs of pauses) {
        nowMs += pauseMs
        while (pace.waitMs(nowMs) === 0) {
          pace.spend(1, nowMs)
          spent += 1
        }
      }
      expect(spent).toBeLessThanOrEqual(perS + (nowMs / 1_000) * perS + 1e-6)
      expect(spent).toBeGreaterThanOrEqual(perS)
    }),
    CHEAP_RUNS,
  )
})
