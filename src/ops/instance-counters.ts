/**
 * Sums the counters of an instance's workers, including workers that have died or do not answer.
 * The sums must never decrease: Prometheus takes a counter that decreases for one that restarted at
 * zero, and adds its value again.
 *
 * Keeps the last snapshot of each worker, without its gauges. The supervisor requests one every
 * `ASK_EVERY_MS`, so the counts of a dead worker since its last snapshot are lost. Counts that
 * `/metrics` has returned are never lost, because they are recorded here first. A snapshot that was
 * in flight when its worker died still counts: the previous worker of a slot is kept separately
 * until the next one dies.
 *
 * Pure. Bound: two snapshots for each slot, and one sum. Labels come from closed lists.
 */

import type { Metric, MetricsSnapshot } from "./metrics.ts"

interface Life {
  readonly key: number
  counters: MetricsSnapshot
}

interface SlotLives {
  readonly current: Life
  readonly last: Life | null
}

export class InstanceCounters {
  readonly #slots = new Map<number, SlotLives>()
  #ended: MetricsSnapshot = []

  /** @param key unique among all workers that were started. */
  started(slot: number, key: number): void {
    const before = this.#slots.get(slot)
    if (before?.last) this.#ended = sum(this.#ended, before.last.counters)
    this.#slots.set(slot, { current: { key, counters: [] }, last: before?.current ?? null })
  }

  /** Snapshots of a worker must be passed in the order in which it made them. */
  seen(slot: number, key: number, snapshot: MetricsSnapshot): void {
    const { current, last } = this.#slots.get(slot) ?? {}
    const life = [current, last].find((each) => each?.key === key)
    if (life) life.counters = snapshot.filter(isCounted)
  }

  /**
   * The snapshots of all workers except these, whose latest snapshots the caller has passed to
   * `seen`.
   */
  beside(keys: ReadonlySet<number>): MetricsSnapshot[] {
    const silent = [...this.#slots.values()].flatMap(({ current, last }) => [
      ...(last === null || keys.has(last.key) ? [] : [last.counters]),
      ...(keys.has(current.key) ? [] : [current.counters]),
    ])
    return [this.#ended, ...silent]
  }
}

/** Gauges are not summed over dead workers: they describe a moment. */
function isCounted({ type }: Metric): boolean {
  return type === "counter" || type === "histogram"
}

function sum(first: MetricsSnapshot, second: MetricsSnapshot): MetricsSnapshot {
  const byName = new Map(first.map((metric) => [metric.name, metric]))
  for (const metric of second) {
    const before = byName.get(metric.name)
    byName.set(metric.name, before === undefined ? metric : sumOfTwo(before, metric))
  }
  return [...byName.values()]
}

function sumOfTwo(first: Metric, second: Metric): Metric {
  // The name is part of the key, because buckets, sum and count of a histogram share their labels.
  const keyOf = ({ metricName = "", labels }: Metric["values"][number]) =>
    `${metricName} ${JSON.stringify(labels)}`
  const values = new Map(first.values.map((value) => [keyOf(value), value]))
  for (const value of second.values) {
    const before = values.get(keyOf(value))
    values.set(keyOf(value), before ? { ...value, value: before.value + value.value } : value)
  }
  return { ...first, values: [...values.values()] }
}
