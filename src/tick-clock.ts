/**
 * The time as of this tick of the event loop: read once a tick, however many lines and commands ask for it.
 *
 * Never runs ahead; behind by at most the length of the tick.
 */

/** The clocks of a worker. All functions, so that they can be passed on by themselves. */
export interface Clock {
  /** Milliseconds since 1970. */
  readonly nowMs: () => number
  /** Milliseconds that never jump. */
  readonly steadyMs: () => number
  /** The same, read at each call, for what measures ticks themselves. */
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
