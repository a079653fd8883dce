/**
 * Processes in one: what the code of each leaves for later (`setImmediate`, `setTimeout`) becomes
 * steps that the test runs, and promises go on at the end of the step that resolved them. Nothing
 * waits for time and nothing is left to chance.
 *
 * Keeps what an event loop promises: immediates in the order of asking, those asked for meanwhile
 * in the next turn; timers not before their time and in the order of their times. Code outside
 * `run` has the real functions.
 */

import { drainMicrotasks } from "bun:jsc"

interface Timer {
  readonly act: () => void
  readonly atMs: number
}

/** In the place of chance, which only spreads the waits between tries. */
const MIDDLE = 0.5

export class SimulatedProcess {
  static #current: SimulatedProcess | null = null
  readonly name: string
  readonly #nowMs: () => number
  #immediates: (() => void)[] = []
  readonly #timers = new Set<Timer>()
  #alive = true

  constructor(name: string, nowMs: () => number) {
    this.name = name
    this.#nowMs = nowMs
  }

  get alive(): boolean {
    return this.#alive
  }

  get turnIsDue(): boolean {
    return this.#immediates.length > 0
  }

  /** When the next timer is due; `Infinity` without any. */
  get nextTimerMs(): number {
    let nextMs = Number.POSITIVE_INFINITY
    for (const { atMs } of this.#timers) nextMs = Math.min(nextMs, atMs)
    return nextMs
  }

  /** Lets the process do something, to the end of what that has resolved. */
  readonly run = (act: () => void): void => {
    if (!this.#alive) return
    if (SimulatedProcess.#current !== null) {
      // Within a step of its own.
      act()
      return
    }
    const real = SimulatedProcess.#replace(this)
    try {
      act()
      drainMicrotasks()
    } finally {
      Object.assign(globalThis, real.functions)
      Math.random = real.random
      SimulatedProcess.#current = null
    }
  }

  /** The turn of the event loop ends. */
  endTurn(): void {
    const due = this.#immediates
    this.#immediates = []
    for (const act of due) this.run(act)
  }

  runNextTimer(): void {
    const nextMs = this.nextTimerMs
    for (const timer of this.#timers) {
      if (timer.atMs !== nextMs) continue
      this.#timers.delete(timer)
      this.run(timer.act)
      return
    }
  }

  /** It does nothing any more. */
  end(): void {
    this.#alive = false
    this.#immediates = []
    this.#timers.clear()
  }

  static #replace(process: SimulatedProcess) {
    const { setImmediate, setTimeout, clearTimeout } = globalThis
    const { random } = Math
    SimulatedProcess.#current = process
    const simulated = {
      setImmediate: (act: () => void) => void process.#immediates.push(act),
      setTimeout: (act: () => void, ms = 0) => {
        const timer = { act, atMs: process.#nowMs() + ms }
        process.#timers.add(timer)
        return timer
      },
      clearTimeout: (timer: Timer) => void process.#timers.delete(timer),
    }
    Object.assign(globalThis, simulated)
    Math.random = () => MIDDLE
    return { functions: { setImmediate, setTimeout, clearTimeout }, random }
  }
}
