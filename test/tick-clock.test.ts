/** The clock of a turn: one time for all that happens in it, and a later one in the next. */

import { expect, test } from "bun:test"
import { TickClock } from "../src/tick-clock.ts"

function spin(ms: number): void {
  const until = performance.now() + ms
  while (performance.now() < until);
}

test("a turn has one time", () => {
  const clock = new TickClock()
  const times = () => [clock.nowMs(), clock.steadyMs()]
  const first = times()
  spin(3)
  expect(times()).toEqual(first)
})

test("the next turn has its own", async () => {
  const clock = new TickClock()
  const steadyMs = clock.steadyMs()
  const nowMs = clock.nowMs()
  spin(3)
  await new Promise((resolve) => setImmediate(resolve))
  expect(clock.steadyMs()).toBeGreaterThan(steadyMs)
  expect(clock.nowMs()).toBeGreaterThan(nowMs)
})

test("its time is the time at which the turn first asked", () => {
  const clock = new TickClock()
  const before = { now: Date.now(), steady: performance.now() }
  expect(clock.nowMs()).toBeWithin(before.now, Date.now() + 1)
  expect(clock.steadyMs()).toBeWithin(before.steady, performance.now() + 1)
})
