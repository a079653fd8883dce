/**
 * The counters of an instance: the sums never decrease when workers die, and gauges of a dead
 * worker are not summed.
 */

import { describe, expect, test } from "bun:test"
import { Counter, Gauge, Histogram, Registry } from "prom-client"
import { InstanceCounters } from "../../src/ops/instance-counters.ts"
import { type MetricsSnapshot, summed } from "../../src/ops/metrics.ts"

/**
 * Of a worker that took these lines, ended connections for these reasons, and waited these seconds.
 */
async function snapshot(lines: number, reasons: Record<string, number> = {}, waits: number[] = []) {
  const registry = new Registry()
  const registers = [registry]
  new Counter({ name: "lines_total", help: "lines", registers }).inc(lines)
  const closed = new Counter({
    name: "closed_total",
    help: "ends",
    labelNames: ["reason"],
    registers,
  })
  for (const [reason, count] of Object.entries(reasons)) closed.inc({ reason }, count)
  const waited = new Histogram({ name: "wait_seconds", help: "waits", buckets: [1], registers })
  for (const wait of waits) waited.observe(wait)
  new Gauge({ name: "connections", help: "now", registers }).set(lines)
  return JSON.parse(JSON.stringify(await registry.getMetricsAsJSON())) as MetricsSnapshot
}

/** The samples of the text that `/metrics` would serve. */
async function served(counters: InstanceCounters, answers: Record<number, MetricsSnapshot> = {}) {
  const keys = new Set(Object.keys(answers).map(Number))
  const text = await summed([...Object.values(answers), ...counters.beside(keys)])
  const samples = text.split("\n").filter((line) => line !== "" && !line.startsWith("#"))
  return Object.fromEntries(
    samples.map((line) => [
      line.slice(0, line.lastIndexOf(" ")),
      Number(line.slice(line.lastIndexOf(" ") + 1)),
    ]),
  )
}

describe("the counters of a worker", () => {
  test("that answers are counted once", async () => {
    const counters = new InstanceCounters()
    counters.started(0, 0)
    counters.seen(0, 0, await snapshot(3))
    expect(await served(counters, { 0: await snapshot(5) })).toMatchObject({ lines_total: 5 })
  })

  test("that does not answer are its last ones, without its gauges", async () => {
    const counters = new InstanceCounters()
    counters.started(0, 0)
    counters.seen(0, 0, await snapshot(3))
    counters.seen(0, 0, await snapshot(4))
    const samples = await served(counters)
    expect(samples).toMatchObject({ lines_total: 4 })
    expect(samples).not.toHaveProperty("connections")
  })

  test("that answers, dies and is replaced before the others have answered are counted once", async () => {
    const counters = new InstanceCounters()
    counters.started(0, 0)
    const last = await snapshot(5)
    counters.seen(0, 0, last)
    counters.started(0, 1)
    expect(await served(counters, { 0: last })).toMatchObject({ lines_total: 5 })
    expect(await served(counters)).toMatchObject({ lines_total: 5 })
  })

  test("that has died are kept for each label, over many deaths", async () => {
    const counters = new InstanceCounters()
    for (let life = 0; life < 5; life += 1) {
      counters.started(0, life)
      counters.seen(0, life, await snapshot(10, { idle: 1, [`once_${life}`]: 2 }, [0.5, 3]))
    }
    const samples = await served(counters)
    expect(samples).toMatchObject({
      lines_total: 50,
      'closed_total{reason="idle"}': 5,
      'closed_total{reason="once_0"}': 2,
      'closed_total{reason="once_4"}': 2,
      'wait_seconds_bucket{le="1"}': 5,
      'wait_seconds_bucket{le="+Inf"}': 10,
      wait_seconds_sum: 17.5,
      wait_seconds_count: 10,
    })
  })

  test("that has died count even when they arrive after the start of its successor", async () => {
    const counters = new InstanceCounters()
    counters.started(0, 0)
    counters.seen(0, 0, await snapshot(3))
    counters.started(0, 1)
    counters.seen(0, 0, await snapshot(7))
    counters.seen(0, 1, await snapshot(1))
    expect(await served(counters)).toMatchObject({ lines_total: 8 })
  })

  test("in another slot are separate", async () => {
    const counters = new InstanceCounters()
    for (const slot of [0, 1]) {
      counters.started(slot, slot)
      counters.seen(slot, slot, await snapshot(3))
    }
    expect(await served(counters, { 1: await snapshot(4) })).toMatchObject({ lines_total: 7 })
  })

  test("that was never seen are empty", async () => {
    const counters = new InstanceCounters()
    counters.started(0, 0)
    counters.seen(0, 9, await snapshot(3))
    expect(await served(counters)).toEqual({})
  })
})
