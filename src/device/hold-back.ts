/**
 * Newer commands that wait at a new connection until those that were held for its device have been
 * written, so that held commands come first.
 *
 *   unanswered ──held: no───────────────────────────────► released
 *        └──held: yes──► held ──done, or no news of held ones for `HELD_IDLE_MS`──► released
 *
 * unanswered: the keeper of the device's shard has not told whether it holds commands; at most
 * `ANSWER_MS`. held: it does, and forwards them one after the other, or says that they wait for
 * those of other devices. A keeper that ends meanwhile is replaced, and the next one answers again.
 *
 * Pure: the time of a monotonic clock is passed in. Bounds: the commands are unacknowledged
 * deliveries or HTTP requests, which are bounded. When a queue delivers no more because all of its
 * deliveries wait, they are released early (`Consumer.sweep`).
 */

import type { Command } from "./command.ts"

/** Longer than the registrar waits for the answer of a keeper. */
const ANSWER_MS = 15_500
/** Longer than the next keeper takes to read the held commands of its shard. */
const HELD_IDLE_MS = 15_000

export class HoldBack {
  #commands: Command[] = []
  #untilMs: number

  constructor(steadyMs: number) {
    this.#untilMs = steadyMs + ANSWER_MS
  }

  /** The device has held commands, or one of them has come. */
  isHeld(steadyMs: number): void {
    this.#untilMs = steadyMs + HELD_IDLE_MS
  }

  isOver(steadyMs: number): boolean {
    return steadyMs >= this.#untilMs
  }

  wait(command: Command): void {
    this.#commands.push(command)
  }

  includes(command: Command): boolean {
    return this.#commands.includes(command)
  }

  /** Whether a newer command with the key of this one waits. */
  supersedes({ supersedeKey }: Command): boolean {
    return (
      supersedeKey !== null &&
      this.#commands.some((waiting) => waiting.supersedeKey === supersedeKey)
    )
  }

  /** Removes and returns the commands that have expired. */
  expire(nowMs: number): Command[] {
    return this.#remove(({ expiresAtMs }) => expiresAtMs <= nowMs)
  }

  /** Removes and returns the lost commands. */
  withdrawLost(): Command[] {
    return this.#remove(({ lost }) => lost)
  }

  /** Removes and returns all commands, in the order in which they came. */
  clear(): Command[] {
    return this.#remove(() => true)
  }

  #remove(which: (command: Command) => boolean): Command[] {
    const removed = this.#commands.filter(which)
    if (removed.length > 0) this.#commands = this.#commands.filter((command) => !which(command))
    return removed
  }
}
