/**
 * A clock that is read at most once in each tick of the event loop, so that lines and commands get
 * the time cheaply.
 *
 * It is late by at most the length of one tick and never early.
 */

/** The clocks of a worker. */
export interface Clock {
  /** Milliseconds since 1970. */
  readonly nowMs: () => number
  /** Milliseconds of a monotonic clock. */
  readonly steadyMs: () => number
  /** The same, read at each call, to measure ticks. */
  readonly exactMs: () => number
}

export class TickClock implements Clock {
  #current = false
  #nowMs = 0
  #steadyMs = 0

  readonly nowMs = (): number => {
    if (!this.#current) this.#read()
    return this.#nowMs
  }

  readonly exactMs = (): number => performance.now()

  readonly steadyMs = (): number => {
    if (!this.#current) this.#read()
    return this.#steadyMs
  }

  #read(): void {
    this.#nowMs = Date.now()
    this.#steadyMs = performance.now()
    this.#current = true
    setImmediate(this.#tickEnds)
  }

  readonly #tickEnds = (): void => {
    this.#current = false
  }
}
