/**
 * Keeps a rate with a burst: the generic cell rate algorithm (ITU-T I.371, "virtual scheduling"),
 * which equals a token bucket and needs one number. Pure: the time is passed in.
 *
 * What was spent beyond the burst is a debt: it takes its time to pay off, so the rate holds in the
 * long run.
 */

/** Sums of fractions of a millisecond are not exact. */
const ROUNDING_MS = 1e-6

export class Pace {
  readonly #perUnitMs: number
  readonly #burstMs: number
  /** When all that was spent would have come in at the rate. */
  #paidAtMs = Number.NEGATIVE_INFINITY

  /**
   * @param perS units a second.
   * @param burstMs so many milliseconds' worth of units may come at once, after a pause.
   */
  constructor(perS: number, burstMs: number) {
    this.#perUnitMs = 1_000 / perS
    this.#burstMs = Math.max(burstMs, this.#perUnitMs)
  }

  /** Milliseconds until one more unit may be spent; 0 for now. */
  waitMs(steadyMs: number): number {
    const waitMs = this.#paidAtMs + this.#perUnitMs - this.#burstMs - steadyMs
    return waitMs > ROUNDING_MS ? waitMs : 0
  }

  spend(units: number, steadyMs: number): void {
    this.#paidAtMs = Math.max(this.#paidAtMs, steadyMs) + units * this.#perUnitMs
  }
}
