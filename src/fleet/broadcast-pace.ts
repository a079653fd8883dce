/**
 * The pace of a broadcast on one worker, and how the workers divide the rate of the fleet. Pure:
 * the time is passed in.
 *
 * Each worker gets a share in proportion to its lines, so all workers end at the same time, and the
 * shares add up to the rate, also when one worker holds all devices. Since its start no worker has
 * written more lines than its share allows. One that was late writes at most `CATCH_UP_MS` worth of
 * lines, and one more, at once.
 */

import { Pace } from "../structures/pace.ts"

const CATCH_UP_MS = 100

/** @returns lines a second for each of the workers with these numbers of lines. */
export function sharesOf(perS: number, lines: readonly number[]): number[] {
  const total = lines.reduce((sum, count) => sum + count, 0)
  return lines.map((count) => (total === 0 ? 0 : (perS * count) / total))
}

export class BroadcastPace {
  readonly #pace: Pace

  /** @param perS lines a second, above 0. */
  constructor(perS: number, steadyMs: number) {
    // With one line more than `CATCH_UP_MS` allows, low rates catch up too.
    const burst = 1 + (perS * CATCH_UP_MS) / 1_000
    this.#pace = new Pace(perS, (burst * 1_000) / perS)
    // Nothing may be written at once.
    this.#pace.spend(burst, steadyMs)
  }

  /** Milliseconds until the next line is due; 0 for now. */
  waitMs(steadyMs: number): number {
    return this.#pace.waitMs(steadyMs)
  }

  /** How many lines to write now, at most `max`. They count as written. */
  due(max: number, steadyMs: number): number {
    let due = 0
    while (due < max && this.#pace.waitMs(steadyMs) === 0) {
      this.#pace.spend(1, steadyMs)
      due += 1
    }
    return due
  }
}
