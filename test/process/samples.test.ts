/** Samples: rates from the differences of counters, quantiles from those of histograms. */

import { describe, expect, test } from "bun:test"
import type { MetricsSnapshot } from "../../src/ops/metrics.ts"
import { MAX_SAMPLES, SampleHistory, Sampler } from "../../src/process/samples.ts"

type Value = MetricsSnapshot[number]["values"][number]

function metric(name: string, values: readonly Value[]): MetricsSnapshot[number] {
  return { name, help: "", type: "counter", aggregator: "sum", values } as never
}

const plain = (name: string, value: number) => metric(name, [{ value, labels: {} }])
const labelled = (name: string, label: string, counts: Record<string, number>) =>
  metric(
    name,
    Object.entries(counts).map(([key, value]) => ({ value, labels: { [label]: key } })),
  )
/** A histogram in seconds, by the counts of its buckets, each with those below. */
const histogram = (name: string, buckets: Record<string, number>) =>
  metric(
    name,
    Object.entries(buckets).map(([le, value]) => ({
      ...{ value, labels: { le }, metricName: `${name}_bucket` },
    })),
  )

const CONFIRM = "owsla_line_confirm_seconds"

describe("a sample", () => {
  test("has gauges summed over processes, and null for what no process has", () => {
    const { sample } = new Sampler().take(5_000, [
      [plain("owsla_connections", 3)],
      [plain("owsla_connections", 4)],
      [],
    ])
    expect(sample.at).toBe(5_000)
    expect(sample.devices).toBe(7)
    expect(sample.limit).toBeNull()
  })

  test("has the rates since the sample before; the first one has none", () => {
    const sampler = new Sampler()
    const first = sampler.take(1_000, [[plain("owsla_lines_in_total", 100)]]).sample
    const second = sampler.take(3_000, [[plain("owsla_lines_in_total", 150)]]).sample
    expect(first.lines_per_s).toBeNull()
    expect(second.lines_per_s).toBe(25)
    expect(second.confirmed_per_s).toBeNull()
  })

  test("has no rate below 0 when a worker did not answer, and none within no time", () => {
    const sampler = new Sampler()
    sampler.take(1_000, [[plain("owsla_lines_in_total", 100)]])
    const { sample } = sampler.take(2_000, [[plain("owsla_lines_in_total", 40)]])
    expect(sample.lines_per_s).toBe(0)
    const again = sampler.take(2_000, [[plain("owsla_lines_in_total", 90)]])
    expect(again.sample.lines_per_s).toBeNull()
  })

  test("divides commands by whether they were written, and has the rate of each outcome", () => {
    const sampler = new Sampler()
    const counts = { written: 0, answered: 0, no_reply: 0, offline: 0, late: 7 }
    sampler.take(0, [[labelled("owsla_commands_total", "outcome", counts)]])
    const later = { written: 10, answered: 4, no_reply: 2, offline: 6, late: 7 }
    const { sample, commands } = sampler.take(2_000, [
      [labelled("owsla_commands_total", "outcome", later)],
    ])
    expect(commands).toEqual({
      written: { per_s: 5, total: 10 },
      answered: { per_s: 2, total: 4 },
      no_reply: { per_s: 1, total: 2 },
      offline: { per_s: 3, total: 6 },
      late: { per_s: 0, total: 7 },
    })
    expect(sample.written_per_s).toBe(8)
    expect(sample.not_written_per_s).toBe(3)
  })

  test("has the reasons for which connections ended, and their sum", () => {
    const sampler = new Sampler()
    const name = "owsla_connections_closed_total"
    sampler.take(0, [[labelled(name, "reason", { idle: 1, kicked: 0 })]])
    const { sample, closed } = sampler.take(1_000, [
      [labelled(name, "reason", { idle: 3, kicked: 0 })],
    ])
    expect(closed).toEqual({ idle: { per_s: 2, total: 3 } })
    expect(sample.closed_per_s).toBe(2)
  })
})

describe("a quantile", () => {
  const before = { "0.01": 100, "0.1": 100, "1": 100, "+Inf": 100 }

  function between(after: Record<string, number>) {
    const sampler = new Sampler()
    sampler.take(0, [[histogram(CONFIRM, before)]])
    return sampler.take(1_000, [[histogram(CONFIRM, after)]]).sample
  }

  test("is that of the observations since the sample before, interpolated in its bucket", () => {
    const sample = between({ "0.01": 100, "0.1": 200, "1": 200, "+Inf": 200 })
    expect(sample.confirm_p50_ms).toBeCloseTo(55)
    expect(sample.confirm_p99_ms).toBeCloseTo(99.1)
  })

  test("is the largest bound when it is beyond all of them", () => {
    expect(between({ "0.01": 100, "0.1": 100, "1": 100, "+Inf": 110 }).confirm_p50_ms).toBe(1_000)
  })

  test("is null without an observation, and without a histogram", () => {
    expect(between(before).confirm_p99_ms).toBeNull()
    expect(new Sampler().take(0, [[]]).sample.lag_p99_ms).toBeNull()
  })

  test("sums the buckets of several processes", () => {
    const sampler = new Sampler()
    sampler.take(0, [[histogram(CONFIRM, before)], [histogram(CONFIRM, before)]])
    const { sample } = sampler.take(1_000, [
      [histogram(CONFIRM, { "0.01": 150, "0.1": 150, "1": 150, "+Inf": 150 })],
      [histogram(CONFIRM, { "0.01": 100, "0.1": 100, "1": 150, "+Inf": 150 })],
    ])
    expect(sample.confirm_p50_ms).toBeCloseTo(10)
    expect(sample.confirm_p99_ms).toBeGreaterThan(100)
  })
})

describe("the history", () => {
  test("has a column for each field, with three decimals", () => {
    const history = new SampleHistory()
    history.take(0, [[plain("owsla_lines_in_total", 0)]])
    history.take(3_000, [[plain("owsla_lines_in_total", 1)]])
    const { at, lines_per_s: lines, devices } = history.columns
    expect(at).toEqual([0, 3_000])
    expect(lines).toEqual([null, 0.333])
    expect(devices).toEqual([null, null])
  })

  test("keeps the last 15 minutes", () => {
    const history = new SampleHistory()
    for (let n = 0; n < MAX_SAMPLES + 5; n += 1) history.take(n, [])
    const { at } = history.columns
    expect(at).toHaveLength(MAX_SAMPLES)
    expect(at.at(-1)).toBe(MAX_SAMPLES + 4)
  })
})
