/** Each bench with its smoke parameters: that its counts are right, never how fast it is. */

import { afterAll, beforeAll, expect, test } from "bun:test"
import { GOALS } from "../bench/goals.ts"
import { type BenchResult, shareBroker } from "../bench/harness.ts"
import { BENCHES } from "../bench/main.ts"
import { bareServer } from "../bench/subject.ts"
import { type PrivateBroker, startRabbitMq } from "../support/rabbitmq.ts"

let broker: PrivateBroker
const results: BenchResult[] = []

beforeAll(async () => {
  broker = await startRabbitMq()
  shareBroker(broker)
}, 60_000)

afterAll(() => broker?.dispose(), 60_000)

test.each(Object.keys(BENCHES))(
  "bench %s runs",
  async (name) => {
    const result = await BENCHES[name]?.run(true, null, false)
    expect(result?.bench).toBe(name)
    if (result !== undefined) results.push(result)
    for (const value of Object.values(result?.figures ?? {})) {
      expect(Number.isFinite(value)).toBe(true)
    }
  },
  60_000,
)

test("every goal is about a figure that its bench has", () => {
  // A ratio is left out where there was too little work for its divisor.
  const missing = GOALS.filter(({ bench, figure }) => {
    const figures = results.find((result) => result.bench === bench)?.figures ?? {}
    return !(figure in figures) && !figure.includes("ratio")
  })
  expect(missing).toEqual([])
})

test.each(Object.keys(BENCHES).filter((name) => BENCHES[name]?.compares))(
  "bench %s puts another server beside the gateway",
  async (name) => {
    const other = await bareServer()
    try {
      const [pid = 0] = other.pids()
      const result = await BENCHES[name]?.run(true, { port: other.port, pid }, false)
      const figures = Object.keys(result?.figures ?? {})
      expect(figures.filter((figure) => figure.includes("beside")).length).toBeGreaterThan(0)
      expect(await other.admitted()).toBeGreaterThan(0)
    } finally {
      await other.stop()
    }
  },
  60_000,
)
