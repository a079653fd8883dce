/** Restart intensity: the first death too many, at the edges of its window and over any times. */

import { expect, test } from "bun:test"
import fc from "fast-check"
import { RestartIntensity } from "../../src/process/restart.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

test("as many deaths as are allowed within the window restart, one more ends the instance", () => {
  const intensity = new RestartIntensity({ max: 5, windowMs: 10_000 })
  const actions = [0, 1, 2, 3, 4, 5].map((second) => intensity.died(second * 1_000))
  expect(actions).toEqual(["restart", "restart", "restart", "restart", "restart", "give_up"])
})

test("none allowed: the first death ends the instance", () => {
  expect(new RestartIntensity({ max: 0, windowMs: 10_000 }).died(0)).toBe("give_up")
})

test("deaths at one moment count each", () => {
  const intensity = new RestartIntensity({ max: 2, windowMs: 100 })
  expect([7, 7, 7].map((atMs) => intensity.died(atMs))).toEqual(["restart", "restart", "give_up"])
})

test("a death leaves the window when it is as old as the window is long", () => {
  for (const [lastMs, action] of [[1_099, "give_up"] as const, [1_100, "restart"] as const]) {
    const intensity = new RestartIntensity({ max: 2, windowMs: 100 })
    intensity.died(1_000)
    intensity.died(1_050)
    expect(intensity.died(lastMs)).toBe(action)
  }
})

test("one death a window for ever ends nothing", () => {
  const intensity = new RestartIntensity({ max: 1, windowMs: 100 })
  for (let i = 0; i < 1_000; i += 1) expect(intensity.died(i * 100)).toBe("restart")
})

test("at any times: gives up exactly when more than allowed died within the window up to now", () => {
  const waits = fc.array(fc.nat(60), { maxLength: 40, size: "max" })
  check(
    fc.property(waits, fc.nat(5), fc.integer({ min: 1, max: 100 }), (waits, most, windowMs) => {
      const intensity = new RestartIntensity({ max: most, windowMs })
      const deathsAtMs: number[] = []
      let nowMs = 0
      for (const wait of waits) {
        nowMs += wait
        deathsAtMs.push(nowMs)
        const recent = deathsAtMs.filter((atMs) => nowMs - atMs < windowMs).length
        expect(intensity.died(nowMs)).toBe(recent > most ? "give_up" : "restart")
      }
    }),
    CHEAP_RUNS,
  )
})
