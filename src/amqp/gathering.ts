/**
 * Decides how long published messages wait for later ones, so that several share one write.
 *
 * Each write costs the gateway a system call and a confirm that wakes its event loop, and the
 * broker a wake and, for a quorum queue, a Raft round. At 3,000 messages a second half of the
 * broker's CPU time goes into that (docs/PERFORMANCE.md). At a low rate a wait would gather
 * nothing, so then a message is written at the end of its tick.
 *
 *   the rate is low ─────────────────────► at the end of the tick
 *   enough messages come ────────────────► when `SHARED` arrivals are due, after 1 ms to the cap
 *   `WRITE_AT` messages wait ────────────► at the end of the tick
 *
 * The rate is a count that decays exponentially. Messages that come together count once, since they
 * share a write anyway: events of presence come in bursts and must not delay single lines. Pure:
 * the time is passed in.
 */

/** A write for this many arrivals has most of the gain. */
const SHARED = 4
/**
 * With fewer arrivals in a write on average, the timers cost as much as the saved writes. Measured:
 * at 500 messages a second and 2 ms, 1 more in each write, the gateway saved nothing.
 */
const PAYS_FROM = 2.5
/** So many messages are a burst: more of them in one write save nothing. */
const WRITE_AT = 32
/** Messages within this time are one arrival. */
const TOGETHER_MS = 0.2
/** The rate is that of about this time. */
const RATE_OF_MS = 100

export class Gathering {
  readonly #maxMs: number
  /** Messages since the last write. */
  #count = 0
  /** Arrivals of the past, each multiplied by `e ** (-age / RATE_OF_MS)`. */
  #recent = 0
  #recentAtMs = 0
  #arrivals = 0
  #arrivedAtMs = Number.NEGATIVE_INFINITY

  /** @param maxMs the longest wait; 0 for none. */
  constructor(maxMs: number) {
    this.#maxMs = maxMs
  }

  /** One message was added. @returns whether enough messages wait for a write. */
  added(steadyMs: number): boolean {
    this.#count += 1
    if (steadyMs - this.#arrivedAtMs >= TOGETHER_MS) {
      this.#arrivals += 1
      this.#arrivedAtMs = steadyMs
    }
    return this.#count >= WRITE_AT
  }

  /** The messages were written. */
  written(steadyMs: number): void {
    this.#recent = this.#recentUntil(steadyMs) + this.#arrivals
    this.#recentAtMs = steadyMs
    this.#count = 0
    this.#arrivals = 0
  }

  /** How long a message waits that is the first since the last write, in whole milliseconds. */
  waitMs(steadyMs: number): number {
    const perMs = this.#recentUntil(steadyMs) / RATE_OF_MS
    if (perMs * this.#maxMs < PAYS_FROM - 1) return 0
    return Math.min(this.#maxMs, Math.ceil((SHARED - 1) / perMs))
  }

  #recentUntil(steadyMs: number): number {
    return this.#recent * Math.exp((this.#recentAtMs - steadyMs) / RATE_OF_MS)
  }
}
