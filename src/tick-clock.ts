/**
 * The time as of this tick of the event loop: read once a tick, however many lines and commands ask for it.
 *
 * Never runs ahead; behind by at most the length of the tick. What measures ticks themselves reads the clock.
 */

export class TickClock {
  #current = false
  #nowMs = 0
  #steadyMs = 0

  /** Milliseconds since 1970. */
  readonly nowMs = (): number => {
    if (!this.#current) this.#read()
    return this.#nowMs
  }

  /** Milliseconds that never jump. */
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
