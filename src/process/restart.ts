/**
 * Restart intensity, as in OTP: decides whether a worker that died is replaced or the instance
 * ends. Only deaths of processes count. Pure: the time is passed in. Bound: the times of `max` + 1
 * deaths.
 */

export interface RestartLimits {
  /** More deaths than this within `windowMs` end the instance. */
  readonly max: number
  readonly windowMs: number
}

export class RestartIntensity {
  readonly #limits: RestartLimits
  #deathsAtMs: number[] = []

  constructor(limits: RestartLimits) {
    this.#limits = limits
  }

  /** The action for a worker that has just died. */
  died(nowMs: number): "restart" | "give_up" {
    const since = nowMs - this.#limits.windowMs
    this.#deathsAtMs = this.#deathsAtMs.filter((atMs) => atMs > since)
    this.#deathsAtMs.push(nowMs)
    return this.#deathsAtMs.length > this.#limits.max ? "give_up" : "restart"
  }
}
