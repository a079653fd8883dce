/** Whether the event loop needs more than half of a core: with any figures, and of this very thread. */

import { expect, test } from "bun:test"
import { CpuDemand } from "../../src/ops/cpu-demand.ts"
import { until } from "../support/wait.ts"

test.each([
  [50, false],
  [51, true],
  [100, true],
])("needed for %d of 100 ms: %p", (neededMs, expected) => {
  let neededSoFarMs = 5_000
  const demand = new CpuDemand(1_000, () => neededSoFarMs)
  neededSoFarMs += neededMs
  expect(demand.isHigh(1_100)).toBe(expected)
})

test("is not looked at more often than every 100 ms", () => {
  let looks = 0
  const demand = new CpuDemand(0, () => {
    looks += 1
    return looks * 1_000
  })
  for (let atMs = 0; atMs <= 250; atMs += 1) demand.isHigh(atMs)
  expect(looks).toBe(1 + 2)
})

test("is high after this thread was busy, and low after it slept", async () => {
  const demand = new CpuDemand(performance.now())
  await until(
    () => {
      const endsAtMs = performance.now() + 150
      while (performance.now() < endsAtMs);
      return demand.isHigh(performance.now())
    },
    { what: "a busy thread to be seen" },
  )
  await until(
    async () => {
      await Bun.sleep(150)
      return !demand.isHigh(performance.now())
    },
    { what: "a sleeping thread to be seen" },
  )
})
