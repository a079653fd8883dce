/**
 * Drain under a clock that goes on only while it sleeps: the order of the phases, what each waits
 * for, and that it ends by its deadline whatever does not.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { type DrainPhase, type DrainSteps, drain } from "../../src/process/drain.ts"
import { checkAsync, RUNS } from "../support/property.ts"
import { within } from "../support/wait.ts"

const TIMEOUT_MS = 1_000
const START_MS = 50_000

/** Its steps, which are not copied with a class's getters. */
function steps(worker: ScriptedWorker): DrainSteps {
  const { acceptNone, closeSome, closeAll, stopServing, confirmed, settled, enter } = worker
  return {
    ...{ acceptNone, closeSome, closeAll, stopServing, confirmed, settled, enter },
    nowMs: worker.nowMs,
    sleep: worker.sleep,
  }
}

/** A worker that gets done with its parts at times given in milliseconds from the start. */
class ScriptedWorker implements DrainSteps {
  nowAtMs = START_MS
  connections = 0
  confirmedAtMs = 0
  settledAtMs = 0
  stopServingMs = 0
  readonly log: string[] = []
  readonly phases: [DrainPhase, number][] = []
  sleeps = 0

  get elapsedMs(): number {
    return this.nowAtMs - START_MS
  }

  readonly nowMs = () => this.nowAtMs

  readonly sleep = async (ms: number) => {
    this.sleeps += 1
    if (this.sleeps > 100_000) throw new Error("a drain without end")
    expect(ms).toBeGreaterThan(0)
    this.nowAtMs += ms
  }

  readonly acceptNone = () => {
    this.log.push("acceptNone")
  }

  readonly stopServing = async () => {
    this.log.push("stopServing")
    this.nowAtMs += this.stopServingMs
  }

  readonly confirmed = () => this.elapsedMs >= this.confirmedAtMs

  readonly closeSome = (most: number) => {
    const closed = Math.min(most, this.connections)
    this.connections -= closed
    if (closed > 0) this.log.push(`close ${closed}`)
    return this.connections
  }

  readonly closeAll = () => {
    this.log.push("closeAll")
    this.connections = 0
  }

  readonly settled = () => this.connections === 0 && this.elapsedMs >= this.settledAtMs

  readonly enter = (phase: DrainPhase) => {
    this.phases.push([phase, this.elapsedMs])
  }

  phaseNames(): DrainPhase[] {
    return this.phases.map(([phase]) => phase)
  }
}

test("nothing to wait for: through every phase in order, at once", async () => {
  const worker = new ScriptedWorker()
  expect(await drain(worker, TIMEOUT_MS)).toBe("done")
  expect(worker.phaseNames()).toEqual([
    "accepting_none",
    "closing",
    "confirming",
    "settling",
    "done",
  ])
  expect(worker.log).toEqual(["acceptNone", "stopServing"])
  expect(worker.elapsedMs).toBeLessThanOrEqual(20)
})

test("commands are consumed until the last device is closed", async () => {
  const worker = new ScriptedWorker()
  worker.connections = 3
  await drain(worker, TIMEOUT_MS)
  expect(worker.log.slice(0, -1).filter((entry) => entry.startsWith("close"))).toHaveLength(3)
  expect(worker.log.at(-1)).toBe("stopServing")
})

test("devices are closed evenly over 70 % of the time", async () => {
  const worker = new ScriptedWorker()
  worker.connections = 20_000
  const halves: number[] = []
  const sleep = async (ms: number) => {
    await worker.sleep(ms)
    if (worker.elapsedMs === 10_500 || worker.elapsedMs === 21_000) halves.push(worker.connections)
  }
  expect(await drain({ ...steps(worker), sleep }, 60_000)).toBe("done")
  expect(halves.map((left) => Math.round(left / 100))).toEqual([150, 100])
  expect(worker.elapsedMs).toBeGreaterThanOrEqual(41_900)
  expect(worker.elapsedMs).toBeLessThanOrEqual(42_100)
  const sizes = worker.log.flatMap((entry) => entry.match(/^close (\d+)$/)?.[1] ?? [])
  expect(Math.max(...sizes.map(Number))).toBeLessThanOrEqual(5)
})

test("few devices are closed at 50 a second", async () => {
  const worker = new ScriptedWorker()
  worker.connections = 100
  await drain(worker, 60_000)
  expect(worker.elapsedMs).toBeGreaterThanOrEqual(1_950)
  expect(worker.elapsedMs).toBeLessThanOrEqual(2_050)
})

test("what commands are owed is waited for after the closing", async () => {
  const worker = new ScriptedWorker()
  worker.connections = 1
  worker.settledAtMs = 700
  expect(await drain(worker, TIMEOUT_MS)).toBe("done")
  expect(worker.phases.at(-1)).toEqual(["done", 700])
})

test("lines that come with the closing are waited for too", async () => {
  const worker = new ScriptedWorker()
  let left = 3
  const confirmed = () => worker.phaseNames().at(-1) !== "settling" || left-- <= 0
  expect(await drain({ ...worker, confirmed }, TIMEOUT_MS)).toBe("done")
  expect(left).toBeLessThan(0)
})

describe("the deadline", () => {
  test("in confirming: devices are closed all the same, and the end is cut short", async () => {
    const worker = new ScriptedWorker()
    worker.connections = 1
    worker.confirmedAtMs = Number.POSITIVE_INFINITY
    expect(await drain(worker, TIMEOUT_MS)).toBe("cut_short")
    expect(worker.phaseNames().at(-1)).toBe("cut_short")
    expect(worker.connections).toBe(0)
    expect(worker.elapsedMs).toBeLessThanOrEqual(TIMEOUT_MS + 100)
  })

  test("in settling", async () => {
    const worker = new ScriptedWorker()
    worker.settledAtMs = Number.POSITIVE_INFINITY
    expect(await drain(worker, TIMEOUT_MS)).toBe("cut_short")
    expect(worker.elapsedMs).toBeLessThanOrEqual(TIMEOUT_MS + 100)
  })

  test("exactly met is met", async () => {
    const worker = new ScriptedWorker()
    worker.settledAtMs = TIMEOUT_MS
    expect(await drain(worker, TIMEOUT_MS)).toBe("done")
  })

  test("in closing: a million devices, the most that can be configured, are closed by then", async () => {
    const worker = new ScriptedWorker()
    worker.connections = 1_000_000
    await drain(worker, 60_000)
    expect([worker.connections, worker.elapsedMs <= 61_000]).toEqual([0, true])
  })

  test("in closing: devices that cannot be closed leave time for the others' lines", async () => {
    const worker = new ScriptedWorker()
    const closeSome = () => 1
    expect(await drain({ ...steps(worker), closeSome }, TIMEOUT_MS)).toBe("done")
    expect(worker.log).toContain("closeAll")
    expect(worker.elapsedMs).toBeGreaterThanOrEqual(TIMEOUT_MS * 0.85)
    expect(worker.elapsedMs).toBeLessThan(TIMEOUT_MS)
  })

  test("in confirming: a broker that does not answer holds nothing up", async () => {
    const worker = new ScriptedWorker()
    const stopServing = () => new Promise<void>(() => undefined)
    const drained = drain({ ...worker, stopServing }, TIMEOUT_MS)
    expect(await within(drained, { what: "a drain that does not wait for the broker alone" })).toBe(
      "cut_short",
    )
  })

  test("slow to stop consuming counts too", async () => {
    const worker = new ScriptedWorker()
    worker.stopServingMs = TIMEOUT_MS - 100
    worker.confirmedAtMs = Number.POSITIVE_INFINITY
    expect(await drain(worker, TIMEOUT_MS)).toBe("cut_short")
    expect(worker.elapsedMs).toBeLessThanOrEqual(TIMEOUT_MS + 100)
  })
})

test("a step that throws is not swallowed", async () => {
  const worker = new ScriptedWorker()
  const stopServing = () => Promise.reject(new Error("no broker"))
  await expect(drain({ ...worker, stopServing }, TIMEOUT_MS)).rejects.toThrow("no broker")
})

test("any times: each phase once and in order, done exactly when all was in time", async () => {
  const ms = fc.nat(TIMEOUT_MS * 2)
  await checkAsync(
    fc.asyncProperty(ms, ms, fc.nat(500), async (confirmedAtMs, settledAtMs, connections) => {
      const worker = new ScriptedWorker()
      Object.assign(worker, { confirmedAtMs, settledAtMs, connections })
      const result = await drain(worker, TIMEOUT_MS)
      expect(worker.phaseNames().slice(0, -1)).toEqual([
        "accepting_none",
        "closing",
        "confirming",
        "settling",
      ])
      expect(worker.phaseNames().at(-1)).toBe(result)
      expect(worker.connections).toBe(0)
      expect(worker.elapsedMs).toBeLessThanOrEqual(TIMEOUT_MS + 100)
      const lastMs = Math.max(confirmedAtMs, settledAtMs)
      if (lastMs <= TIMEOUT_MS - 100) expect(result).toBe("done")
      if (lastMs > TIMEOUT_MS + 100) expect(result).toBe("cut_short")
    }),
    RUNS,
  )
})
