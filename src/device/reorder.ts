/**
 * The reorder buffer of one connection: numbered commands in, in any order; commands in the order of
 * their numbers out.
 *
 *              ┌─ the next number ──────────► released, with all that follow it without a gap
 *   offer ─────┼─ beyond the next number ───► held, until the gap is filled or given up
 *              ├─ passed over at a gap ─────► late
 *              └─ released before, or held ─► duplicate
 *
 * Pure: the time is passed in. Bounds: `windowCommands` held; a command is held `gapTimeoutMs` at
 * most, then every gap below it is given up; when the buffer is full the lowest gap is given up at
 * once. `SKIPPED_RANGES` gaps are remembered: a number from a gap older than those is a duplicate.
 */

import type { Command } from "./command.ts"

const SKIPPED_RANGES = 128

export interface ReorderLimits {
  readonly windowCommands: number
  readonly gapTimeoutMs: number
}

/** A command that has a number. */
export type NumberedCommand = Command & { readonly seq: number }

export type ReorderVerdict = "released" | "held" | "duplicate" | "late"

interface Held {
  readonly command: NumberedCommand
  readonly arrivedAtMs: number
}

export class ReorderBuffer {
  readonly #limits: ReorderLimits
  /** In order of arrival, so the first entry is the one that has waited longest. */
  readonly #held = new Map<number, Held>()
  /** Half-open ranges of numbers that were given up, ascending. */
  readonly #skipped: { from: number; to: number }[] = []
  #next = 0
  #gaps = 0

  constructor(limits: ReorderLimits) {
    this.#limits = limits
  }

  get heldCount(): number {
    return this.#held.size
  }

  /** How many gaps were given up since the connection was admitted. */
  get gaps(): number {
    return this.#gaps
  }

  /** When the command that has waited longest must wait no more, or null when none waits. */
  get deadlineMs(): number | null {
    for (const held of this.#held.values()) return held.arrivedAtMs + this.#limits.gapTimeoutMs
    return null
  }

  /** The command waiting under this number, if any. */
  heldAt(seq: number): NumberedCommand | undefined {
    return this.#held.get(seq)?.command
  }

  /**
   * Takes one command. What may now be written is appended to `released`, in order; with the verdict
   * "released" the command itself is among them.
   */
  offer(command: NumberedCommand, nowMs: number, released: NumberedCommand[]): ReorderVerdict {
    const { seq } = command
    if (seq < this.#next) return this.#wasSkipped(seq) ? "late" : "duplicate"
    if (this.#held.has(seq)) return "duplicate"
    if (seq > this.#next) {
      this.#held.set(seq, { command, arrivedAtMs: nowMs })
      if (this.#held.size <= this.#limits.windowCommands) return "held"
      this.#skipTo(Math.min(...this.#held.keys()))
      this.#releaseRun(released)
      return seq < this.#next ? "released" : "held"
    }
    released.push(command)
    this.#next += 1
    this.#releaseRun(released)
    return "released"
  }

  /** Gives up the gaps that a command has waited out; appends what may now be written. */
  expire(nowMs: number, released: NumberedCommand[]): void {
    let highest = -1
    for (const [seq, held] of this.#held) {
      if (held.arrivedAtMs + this.#limits.gapTimeoutMs > nowMs) break
      if (seq > highest) highest = seq
    }
    if (highest === -1) return
    const due = [...this.#held.keys()].filter((seq) => seq <= highest).sort((a, b) => a - b)
    for (const seq of due) {
      if (seq < this.#next) continue
      this.#skipTo(seq)
      this.#releaseRun(released)
    }
  }

  /** Takes out all that is held, in the order of their numbers. */
  clear(): NumberedCommand[] {
    const left = [...this.#held.values()].map((held) => held.command)
    this.#held.clear()
    return left.sort((a, b) => a.seq - b.seq)
  }

  /** Puts `by` in the place of the held command with the same number, keeping its turn. */
  replace(by: NumberedCommand): void {
    const held = this.#held.get(by.seq)
    if (held) this.#held.set(by.seq, { command: by, arrivedAtMs: held.arrivedAtMs })
  }

  #releaseRun(released: NumberedCommand[]): void {
    if (this.#held.size === 0) return
    for (;;) {
      const held = this.#held.get(this.#next)
      if (!held) return
      this.#held.delete(this.#next)
      released.push(held.command)
      this.#next += 1
    }
  }

  #skipTo(seq: number): void {
    if (seq === this.#next) return
    this.#gaps += 1
    this.#skipped.push({ from: this.#next, to: seq })
    if (this.#skipped.length > SKIPPED_RANGES) this.#skipped.shift()
    this.#next = seq
  }

  #wasSkipped(seq: number): boolean {
    return this.#skipped.some((range) => seq >= range.from && seq < range.to)
  }
}
