/**
 * A histogram of durations: Node's, an HDR histogram, in microseconds to `FIGURES` significant
 * figures, with the largest duration kept exactly. Bound: durations of up to `MAX_US`; a longer one
 * counts as that, and exactly as the largest.
 */

import { createHistogram } from "node:perf_hooks"

/** An error of at most 1 %. */
const FIGURES = 2
/** Two hours. */
const MAX_US = 7_200_000_000

/** Milliseconds, to the microsecond; null of nothing. */
export interface Percentiles {
  readonly count: number
  readonly p50: number | null
  readonly p90: number | null
  readonly p99: number | null
  readonly max: number | null
}

export class Histogram {
  readonly #histogram = createHistogram({ lowest: 1, highest: MAX_US, figures: FIGURES })
  #maxMs = 0

  get count(): number {
    return this.#histogram.count
  }

  /** A negative duration, which a clock that was set back gives, counts as 0. */
  record(durationMs: number): void {
    const ms = Math.max(0, durationMs)
    // 1 is the least that it takes.
    this.#histogram.record(Math.min(MAX_US, Math.max(1, Math.ceil(ms * 1000))))
    this.#maxMs = Math.max(this.#maxMs, ms)
  }

  /**
   * The duration that at least `share` of all do not exceed; null of nothing.
   *
   * @param share in (0, 1].
   */
  percentile(share: number): number | null {
    if (this.count === 0) return null
    return Math.min(this.#histogram.percentile(share * 100) / 1000, this.#maxMs)
  }

  summary(): Percentiles {
    const [p50 = null, p90 = null, p99 = null] = [0.5, 0.9, 0.99].map((share) =>
      roundedMs(this.percentile(share)),
    )
    const max = this.count === 0 ? null : roundedMs(this.#maxMs)
    return { count: this.count, p50, p90, p99, max }
  }
}

function roundedMs(ms: number | null): number | null {
  return ms === null ? null : Math.round(ms * 1000) / 1000
}
