/**
 * A histogram of durations: counts in fixed buckets, and their sum. Each worker has some from its
 * start, and `ops/histogram-metrics.ts` shows them to Prometheus.
 *
 * An observation allocates nothing: it compares the duration with the bounds, shortest first, and
 * increments one number. Rejected: prom-client's `Histogram`, which builds a key from the labels
 * for each observation. Pure. Bound: one number for each bucket.
 */

/**
 * Each duration is rounded to a multiple of 2^-20 s, about a microsecond. Sums of such multiples
 * are exact, in any order, up to 272 years. Otherwise the sum of an instance could fall by a
 * rounding error when a worker dies and is added in another order, which Prometheus would take for
 * a restart.
 */
const UNITS_PER_S = 2 ** 20

export class Histogram {
  /** Upper bounds of the buckets, inclusive, in seconds, ascending. */
  readonly bounds: readonly number[]
  /** Observations in each bucket alone. The last bucket is for those above the last bound. */
  readonly counts: Float64Array
  /** Of all observations, seconds. */
  sum = 0

  constructor(bounds: readonly number[]) {
    this.bounds = bounds
    this.counts = new Float64Array(bounds.length + 1)
  }

  /** @param durationMs milliseconds, at least 0. */
  observe(durationMs: number): void {
    const { bounds, counts } = this
    const seconds = durationMs / 1_000
    let bucket = 0
    while (bucket < bounds.length && seconds > (bounds[bucket] ?? 0)) bucket += 1
    counts[bucket] = (counts[bucket] ?? 0) + 1
    this.sum += Math.round(seconds * UNITS_PER_S) / UNITS_PER_S
  }
}
