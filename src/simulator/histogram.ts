/**
 * A histogram of durations: how many fell into each of a fixed number of buckets, which grow with what
 * they hold, so that a percentile is off by `1 / STEPS_PER_OCTAVE` (3 %) at most whatever its size.
 *
 * Never keeps a single value but the largest. Bound: `BUCKETS` counters of 8 bytes, from 1 µs to more
 * than an hour; what is longer counts in the last bucket and still as `maxMs`.
 */

/** Linear steps within each doubling. */
const STEPS_PER_OCTAVE = 32
const OCTAVES = 32
const BUCKETS = STEPS_PER_OCTAVE * (OCTAVES + 1)

/** Milliseconds, to the microsecond; null of nothing. */
export interface Percentiles {
  readonly count: number
  readonly p50: number | null
  readonly p90: number | null
  readonly p99: number | null
  readonly max: number | null
}

export class Histogram {
  /** Doubles: a count of 2^32 is reached in a day of full load. */
  readonly #counts = new Float64Array(BUCKETS)
  #count = 0
  #maxMs = 0

  get count(): number {
    return this.#count
  }

  /** Less than nothing, which a clock that was set back gives, counts as 0. */
  record(durationMs: number): void {
    const ms = Math.max(0, durationMs)
    const bucket = bucketOf(ms)
    this.#counts[bucket] = (this.#counts[bucket] ?? 0) + 1
    this.#count += 1
    this.#maxMs = Math.max(this.#maxMs, ms)
  }

  /**
   * The upper end of the bucket in which the smallest value lies that at least `share` of all do not
   * exceed, and never more than the largest; null of nothing.
   *
   * @param share in (0, 1].
   */
  percentile(share: number): number | null {
    const wanted = Math.ceil(share * this.#count)
    let seen = 0
    for (let bucket = 0; bucket < BUCKETS; bucket += 1) {
      seen += this.#counts[bucket] ?? 0
      if (seen > 0 && seen >= wanted) return Math.min(upperEndMs(bucket), this.#maxMs)
    }
    return null
  }

  summary(): Percentiles {
    const [p50 = null, p90 = null, p99 = null] = [0.5, 0.9, 0.99].map((share) =>
      roundedMs(this.percentile(share)),
    )
    const max = this.#count === 0 ? null : roundedMs(this.#maxMs)
    return { count: this.#count, p50, p90, p99, max }
  }
}

/**
 * Below `STEPS_PER_OCTAVE` µs a bucket is 1 µs wide; above it the octave is the position of the highest
 * bit, and the step what the bits after it say.
 */
function bucketOf(ms: number): number {
  const us = Math.floor(ms * 1000)
  if (us < STEPS_PER_OCTAVE) return us
  const octave = Math.floor(Math.log2(us / STEPS_PER_OCTAVE))
  const step = Math.floor(us / 2 ** octave) - STEPS_PER_OCTAVE
  return Math.min(STEPS_PER_OCTAVE * (octave + 1) + step, BUCKETS - 1)
}

function upperEndMs(bucket: number): number {
  if (bucket < STEPS_PER_OCTAVE) return (bucket + 1) / 1000
  const octave = Math.floor(bucket / STEPS_PER_OCTAVE) - 1
  const step = bucket % STEPS_PER_OCTAVE
  return ((STEPS_PER_OCTAVE + step + 1) * 2 ** octave) / 1000
}

function roundedMs(ms: number | null): number | null {
  return ms === null ? null : Math.round(ms * 1000) / 1000
}
