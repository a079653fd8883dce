/**
 * The reorder buffer of one connection: numbered commands in, in any order; commands in the order of
 * their numbers out.
 *
 *              ┌─ the next number ──────────► released, with all that follow it without a gap
 *   offer ─────┼─ beyond the next number ───► held, until the gap is filled or given up
 *              ├─ passed over, or unwritten ► late
 *              ├─ released before, or held ─► duplicate
 *              └─ too far beyond ───────────► too_far; nothing moves
 *
 * Released commands that are lost before they were offered to the socket come again: `rewind` makes their
 * numbers the next ones again, and what was passed over meanwhile stays passed over.
 *
 * Pure: the time is passed in. Bounds: `windowCommands` held; a command is held `gapTimeoutMs` at
 * most, then every gap below it is given up; when the buffer is full the lowest gap is given up at
 * once, found by a heap in logarithmic time. `SKIPPED_RANGES` gaps are remembered; a number below the
 * oldest of them is called late, since a late command is kept and a duplicate is not. A number more than
 * `MAX_SEQ_AHEAD` beyond the next is refused: one gap up to 2^53 - 1 would leave the connection no numbers.
 */

import { MinHeap } from "../structures/min-heap.ts"
import type { Command } from "./command.ts"

/** As many numbers are passed over by one gap at most. */
export const MAX_SEQ_AHEAD = 1_000_000
const SKIPPED_RANGES = 128
/** The heap is rebuilt when it exceeds twice the held commands by this many entries. */
const HEAP_SLACK = 64

export interface ReorderLimits {
  readonly windowCommands: number
  readonly gapTimeoutMs: number
}

/** A command that has a number. */
export type NumberedCommand = Command & { readonly seq: number }

export type ReorderVerdict = "released" | "held" | "duplicate" | "late" | "too_far"

interface Held {
  readonly command: NumberedCommand
  readonly arrivedAtMs: number
}

export class ReorderBuffer {
  readonly #limits: ReorderLimits
  readonly #held = new Map<number, Held>()
  /** The numbers of `#held`, and some that have left it. */
  readonly #lowestHeld = new MinHeap()
  /** Half-open ranges of numbers that were given up or never written, the latest last. */
  readonly #skipped: { from: number; to: number }[] = []
  /** Which of the numbers below this were skipped is forgotten. */
  #forgottenBelow = 0
  #next = 0
  /** The largest value that `#next` has had; larger only after `rewind`. */
  #high = 0
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

  /**
   * The largest number that is not too far. Counted from the largest that was ever the next, so that a number that
   * was accepted is accepted again after `rewind`, in whatever order the broker delivers the commands again.
   */
  get farthest(): number {
    return this.#high + MAX_SEQ_AHEAD
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
    if (seq < this.#high && this.#wasSkipped(seq)) return "late"
    if (seq < this.#next || this.#held.has(seq)) return "duplicate"
    if (seq > this.farthest) return "too_far"
    if (seq > this.#next) {
      this.#hold(command, nowMs)
      if (this.#held.size <= this.#limits.windowCommands) return "held"
      this.giveUpGap(released)
      return this.#held.has(seq) ? "held" : "released"
    }
    released.push(command)
    this.#advance()
    this.#releaseRun(released)
    return "released"
  }

  /** Gives up the lowest gap at once; appends what may now be written. */
  giveUpGap(released: NumberedCommand[]): void {
    const lowest = this.#lowest()
    if (lowest === undefined) return
    this.#skipTo(lowest)
    this.#releaseRun(released)
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
    this.#lowestHeld.clear()
    return left.sort((a, b) => a.seq - b.seq)
  }

  /** Takes out the held commands that are lost, in the order of their numbers. */
  withdrawLost(): NumberedCommand[] {
    const lost = [...this.#held.values()].flatMap(({ command }) => (command.lost ? [command] : []))
    for (const { seq } of lost) this.#held.delete(seq)
    return lost.sort((a, b) => a.seq - b.seq)
  }

  /**
   * Expects the numbers from `seq` on again: all that was released from there on and not passed over was
   * withdrawn before it was offered to the socket.
   */
  rewind(seq: number): void {
    if (seq > this.#next) throw new Error(`rewind to ${seq}, beyond the next number ${this.#next}`)
    this.#next = seq
  }

  #hold(command: NumberedCommand, nowMs: number): void {
    this.#held.set(command.seq, { command, arrivedAtMs: nowMs })
    this.#lowestHeld.push(command.seq)
    // Numbers that have left are dropped when they are the lowest, or here when they are the most.
    if (this.#lowestHeld.size <= 2 * this.#held.size + HEAP_SLACK) return
    this.#lowestHeld.clear()
    for (const seq of this.#held.keys()) this.#lowestHeld.push(seq)
  }

  #lowest(): number | undefined {
    for (;;) {
      const lowest = this.#lowestHeld.peek()
      if (lowest === undefined || this.#held.has(lowest)) return lowest
      this.#lowestHeld.pop()
    }
  }

  #releaseRun(released: NumberedCommand[]): void {
    if (this.#held.size === 0) return
    for (;;) {
      const held = this.#held.get(this.#next)
      if (!held) return
      this.#held.delete(this.#next)
      released.push(held.command)
      this.#advance()
    }
  }

  /** The next number is taken; after a rewind, those that were passed over before are again. */
  #advance(): void {
    this.#next += 1
    while (this.#next < this.#high) {
      const passed = this.#skipped.find(({ from, to }) => this.#next >= from && this.#next < to)
      const to = passed?.to ?? this.#forgottenBelow
      if (to <= this.#next) return
      this.#next = to
    }
    this.#high = this.#next
  }

  /** A released number was not written after all: a command that uses it again is late. */
  unwritten(seq: number): void {
    this.#remember(seq, seq + 1)
  }

  #skipTo(seq: number): void {
    if (seq === this.#next) return
    this.#gaps += 1
    this.#remember(this.#next, seq)
    this.#next = seq
    this.#high = Math.max(this.#high, seq)
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
