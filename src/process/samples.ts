/**
 * Samples of an instance: its devices, rates and latencies at one moment, for the charts of the
 * operator page.
 *
 *   snapshots of all processes ─► Sampler (differences of counters) ─► sample ─► SampleHistory
 *
 * A rate is the difference of a counter between two samples, divided by the time between them. A
 * quantile is that of the observations between two samples, interpolated within a bucket as
 * Prometheus does. A value is null when it is not known: a rate in the first sample, and a metric
 * that no process has.
 *
 * Pure. Bound: `MAX_SAMPLES` in a history, which is 15 minutes with one sample every
 * `SAMPLE_EVERY_MS`.
 */

import type { MetricsSnapshot } from "../ops/metrics.ts"

export const SAMPLE_EVERY_MS = 5_000
export const MAX_SAMPLES = 180

/** Values that are read as they are, summed over the processes; also totals of rare events. */
const GAUGES = {
  devices: "owsla_connections",
  limit: "owsla_connections_limit",
  waiting: "owsla_connections_waiting",
  window_lines: "owsla_window_lines",
  held_bytes: "owsla_held_bytes",
  waiting_for_room: "owsla_waiting_for_room",
  unacknowledged: "owsla_commands_unacknowledged",
  held_commands: "owsla_held_commands",
  resident_bytes: "owsla_resident_bytes",
  restarts: "owsla_worker_restarts_total",
  faults: "owsla_faults_total",
} as const

/** Counters, of which a sample has the rate in a second. */
const RATES = {
  lines_per_s: "owsla_lines_in_total",
  bytes_per_s: "owsla_line_bytes_in_total",
  confirmed_per_s: "owsla_lines_confirmed_total",
  admitted_per_s: "owsla_connections_admitted_total",
  closed_per_s: "owsla_connections_closed_total",
  cpu: "owsla_cpu_seconds_total",
} as const

/** Histograms in seconds, of which a sample has quantiles in milliseconds. */
const QUANTILES = {
  confirm_p50_ms: { of: "owsla_line_confirm_seconds", q: 0.5 },
  confirm_p99_ms: { of: "owsla_line_confirm_seconds", q: 0.99 },
  lag_p99_ms: { of: "owsla_event_loop_lag_seconds", q: 0.99 },
} as const

const COMMANDS = "owsla_commands_total"
const CLOSED = "owsla_connections_closed_total"
/** Outcomes of commands whose bytes the socket has accepted. */
const WRITTEN: readonly string[] = ["written", "answered", "no_reply"]
const MS_PER_S = 1_000

type Field =
  | keyof typeof GAUGES
  | keyof typeof RATES
  | keyof typeof QUANTILES
  | "written_per_s"
  | "not_written_per_s"

/** The names and the order of the values of a sample. */
export const SAMPLE_FIELDS: readonly Field[] = [
  ...(Object.keys(GAUGES) as (keyof typeof GAUGES)[]),
  ...(Object.keys(RATES) as (keyof typeof RATES)[]),
  ...(Object.keys(QUANTILES) as (keyof typeof QUANTILES)[]),
  "written_per_s",
  "not_written_per_s",
]

/** `at` is in milliseconds since 1970. `cpu` is the number of cores that are used. */
export type Sample = { readonly at: number } & Readonly<Record<Field, number | null>>

/** All samples by field, as charts take them. */
export type SampleColumns = { readonly at: readonly number[] } & Readonly<
  Record<Field, readonly (number | null)[]>
>

export interface LabelledCount {
  /** Null in the first sample. */
  readonly per_s: number | null
  readonly total: number
}

/** By label, without those that have never been counted. */
export type LabelledCounts = Readonly<Record<string, LabelledCount>>

/** A sample, and counters by label at the same time. */
export interface LabelledSample {
  readonly sample: Sample
  readonly commands: LabelledCounts
  readonly closed: LabelledCounts
}

type Values = MetricsSnapshot[number]["values"]

export class Sampler {
  #before: { readonly atMs: number; readonly totals: Totals } | null = null

  /** @param snapshots of all processes; the counters of dead workers included. */
  take(atMs: number, snapshots: readonly MetricsSnapshot[]): LabelledSample {
    const totals = new Totals(snapshots)
    const before = this.#before
    this.#before = { atMs, totals }
    const seconds = before === null ? 0 : (atMs - before.atMs) / MS_PER_S
    const rate = (now: number, then: number | undefined): number | null =>
      seconds > 0 && then !== undefined ? Math.max(0, now - then) / seconds : null
    const rateOf = (name: string): number | null => {
      const now = totals.sum(name)
      return now === null ? null : rate(now, before?.totals.sum(name) ?? undefined)
    }
    const byLabel = (name: string, label: string): LabelledCounts => {
      const then = before?.totals.by(name, label)
      const counts = [...totals.by(name, label)].filter(([, total]) => total > 0)
      return Object.fromEntries(
        counts.map(([value, total]) => [value, { per_s: rate(total, then?.get(value)), total }]),
      )
    }
    const commands = byLabel(COMMANDS, "outcome")
    const sumOf = (isWanted: (outcome: string) => boolean): number | null => {
      if (seconds === 0) return null
      const wanted = Object.entries(commands).filter(([outcome]) => isWanted(outcome))
      return wanted.reduce((sum, [, { per_s: perS }]) => sum + (perS ?? 0), 0)
    }
    const sample = {
      at: atMs,
      ...mapped(GAUGES, (name) => totals.sum(name)),
      ...mapped(RATES, rateOf),
      ...mapped(QUANTILES, ({ of, q }) => {
        const seconds = quantile(q, totals.buckets(of), before?.totals.buckets(of))
        return seconds === null ? null : seconds * MS_PER_S
      }),
      written_per_s: sumOf((outcome) => WRITTEN.includes(outcome)),
      not_written_per_s: sumOf((outcome) => !WRITTEN.includes(outcome)),
    }
    return { sample, commands, closed: byLabel(CLOSED, "reason") }
  }
}

/** The samples of the last 15 minutes, to be taken every `SAMPLE_EVERY_MS`. */
export class SampleHistory {
  readonly #sampler = new Sampler()
  readonly #samples: Sample[] = []

  take(atMs: number, snapshots: readonly MetricsSnapshot[]): void {
    this.#samples.push(this.#sampler.take(atMs, snapshots).sample)
    if (this.#samples.length > MAX_SAMPLES) this.#samples.shift()
  }

  get columns(): SampleColumns {
    const column = (field: Field) => this.#samples.map((sample) => rounded(sample[field]))
    return {
      at: this.#samples.map(({ at }) => at),
      ...(Object.fromEntries(SAMPLE_FIELDS.map((field) => [field, column(field)])) as Record<
        Field,
        (number | null)[]
      >),
    }
  }
}

/** The metrics of all processes by name. */
class Totals {
  readonly #values = new Map<string, Values>()

  constructor(snapshots: readonly MetricsSnapshot[]) {
    for (const { name, values } of snapshots.flat()) {
      const before = this.#values.get(name)
      this.#values.set(name, before === undefined ? values : [...before, ...values])
    }
  }

  /** Null when no process has the metric. */
  sum(name: string): number | null {
    const values = this.#values.get(name)
    return values === undefined ? null : values.reduce((sum, { value }) => sum + value, 0)
  }

  by(name: string, label: string): Map<string, number> {
    const sums = new Map<string, number>()
    for (const { labels, value } of this.#values.get(name) ?? []) {
      const key = String(labels[label])
      sums.set(key, (sums.get(key) ?? 0) + value)
    }
    return sums
  }

  /** The cumulative counts of a histogram by upper bound, in ascending order. */
  buckets(name: string): readonly (readonly [number, number])[] {
    const sums = new Map<number, number>()
    for (const { labels, value, metricName } of this.#values.get(name) ?? []) {
      if (metricName !== `${name}_bucket`) continue
      const bound = labels["le"] === "+Inf" ? Number.POSITIVE_INFINITY : Number(labels["le"])
      sums.set(bound, (sums.get(bound) ?? 0) + value)
    }
    return [...sums].sort(([a], [b]) => a - b)
  }
}

/** Null without observations since `before`. */
function quantile(
  q: number,
  now: readonly (readonly [number, number])[],
  before: readonly (readonly [number, number])[] | undefined,
): number | null {
  if (before === undefined) return null
  const counts = now.map(
    ([bound, count], at) => [bound, Math.max(0, count - (before[at]?.[1] ?? 0))] as const,
  )
  const rank = q * (counts.at(-1)?.[1] ?? 0)
  if (rank === 0) return null
  let [lower, below] = [0, 0]
  for (const [bound, count] of counts) {
    if (count >= rank) {
      if (bound === Number.POSITIVE_INFINITY) return lower
      return lower + ((bound - lower) * (rank - below)) / (count - below)
    }
    lower = bound
    below = count
  }
  return lower
}

function mapped<K extends string, V>(
  sources: Readonly<Record<K, V>>,
  read: (source: V) => number | null,
): Record<K, number | null> {
  const entries = (Object.entries(sources) as [K, V][]).map(([key, source]) => [key, read(source)])
  return Object.fromEntries(entries) as Record<K, number | null>
}

/** Three decimals are enough for a chart, and shorter on the wire. */
function rounded(value: number | null): number | null {
  return value === null ? null : Math.round(value * 1_000) / 1_000
}
