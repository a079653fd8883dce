/**
 * The reorder buffer of one connection: numbered commands in, in any order; commands in the order of
 * their numbers out.
 *
 *              ┌─ the next number ──────────► released, with all that follow it without a gap
 *   offer ─────┼─ beyond the next number ───► held, until the gap is filled or given up
 *              ├─ passed over, or unwritten ► late
 *              └─ released before, or held ─► duplicate
 *
 * Pure: the time is passed in. Bounds: `windowCommands` held; a command is held `gapTimeoutMs` at
 * most, then every gap below it is given up; when the buffer is full the lowest gap is given up at
 * once. `SKIPPED_RANGES` gaps are remembered; a number below the oldest of them is called late, since
 * a late command is kept and a duplicate is not.
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
  readonly #held = new Map<number, Held>()
  /** Half-open ranges of numbers that were given up or never written, the latest last. */
  readonly #skipped: { from: number; to: number }[] = []
  /** Which of the numbers below this were skipped is forgotten. */
  #forgottenBelow = 0
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
      // All are looked at: when the clock was set back, arrivals are not in the order of time.
      if (held.arrivedAtMs + this.#limits.gapTimeoutMs <= nowMs && seq > highest) highest = seq
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

  /** A released number was not written after all: whoever uses it again is late. */
  unwritten(seq: number): void {
    this.#remember(seq, seq + 1)
  }

  #skipTo(seq: number): void {
    if (seq === this.#next) return
    this.#gaps += 1
    this.#remember(this.#next, seq)
    this.#next = seq
  }

  #remember(from: number, to: number): void {
    const last = this.#skipped.at(-1)
    if (last?.to === from) last.to = to
    else this.#skipped.push({ from, to })
    if (this.#skipped.length <= SKIPPED_RANGES) return
    const forgotten = this.#skipped.shift()
    if (forgotten) this.#forgottenBelow = Math.max(this.#forgottenBelow, forgotten.to)
  }

  #wasSkipped(seq: number): boolean {
    if (seq < this.#forgottenBelow) return true
    return this.#skipped.some((range) => seq >= range.from && seq < range.to)
  }
}
