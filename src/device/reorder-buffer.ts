/**
 * The reorder buffer of one connection: takes numbered commands in any order and releases them in
 * the order of their numbers.
 *
 *              ┌─ the next number ────────────► released, with all that follow it without a gap
 *   offer ─────┼─ above the next number ──────► held until the gap is filled or given up
 *              ├─ skipped, or not written ────► late
 *              ├─ released before, or held ───► duplicate
 *              └─ too far above the next one ─► too_far; the state does not change
 *
 * A held command that has ended (`vacate`) leaves its number used: the commands after it are
 * released when that number is the next one, and a command that uses the number again is late. The
 * time from which the gap below it is given up stays the same, so commands that supersede each
 * other do not keep a gap open.
 *
 * When released commands are lost before they were offered to the socket, the broker redelivers
 * them. `rewind` then makes their numbers the next ones again. Numbers that were skipped in the
 * meantime stay skipped.
 *
 * Pure: the time is passed in. Bounds: `windowCommands` held commands and used numbers. When the
 * buffer is full, the lowest gap is given up at once; a heap finds it in logarithmic time. A
 * command is held for at most `gapTimeoutMs`; then all gaps below it are given up. `SKIPPED_RANGES`
 * gaps are remembered. A number below the oldest of them is called late, because late commands are
 * kept in the undelivered queue and duplicates are not. A number more than `MAX_SEQ_AHEAD` above
 * the next one is refused: a gap up to 2^53 - 1 would leave no numbers for the connection.
 */

import { MinHeap } from "../structures/min-heap.ts"
import type { Command } from "./command.ts"

/** The largest number of numbers that one gap can skip. */
export const MAX_SEQ_AHEAD = 1_000_000
const SKIPPED_RANGES = 128
/** The heap is rebuilt when it has more than twice the held commands plus this many entries. */
const HEAP_SLACK = 64

export interface ReorderLimits {
  readonly windowCommands: number
  readonly gapTimeoutMs: number
}

/** A command with a number. */
export type NumberedCommand = Command & { readonly seq: number }

export type ReorderVerdict = "released" | "held" | "duplicate" | "late" | "too_far"

interface Held {
  /** Null when the command has ended and its number is used. */
  readonly command: NumberedCommand | null
  readonly arrivedAtMs: number
}

export class ReorderBuffer {
  readonly #limits: ReorderLimits
  readonly #held = new Map<number, Held>()
  /** The numbers of `#held`, and some that have left `#held`. */
  readonly #lowestHeld = new MinHeap()
  /** Half-open ranges of numbers that were given up or not written, the latest last. */
  readonly #skipped: { from: number; to: number }[] = []
  /** Which of the numbers below this one were skipped is no longer known. */
  #forgottenBelow = 0
  #next = 0
  /** The largest value that `#next` has had. It differs from `#next` only after `rewind`. */
  #high = 0
  #gaps = 0
  /** The entries of `#held` without a command. */
  #vacant = 0

  constructor(limits: ReorderLimits) {
    this.#limits = limits
  }

  get heldCount(): number {
    return this.#held.size - this.#vacant
  }

  /** The number of gaps given up since the connection was admitted. */
  get gaps(): number {
    return this.#gaps
  }

  /**
   * The largest number that is not too far. It depends on the largest value of `#next`, so that a
   * number that was accepted is accepted again after `rewind`, in any order of redelivery.
   */
  get farthest(): number {
    return this.#high + MAX_SEQ_AHEAD
  }

  /** The command held under this number, if any. */
  heldAt(seq: number): NumberedCommand | undefined {
    return this.#held.get(seq)?.command ?? undefined
  }

  /**
   * Takes one command. Appends the commands that may be written now to `released`, in order. With
   * the result "released" the command itself is among them.
   */
  offer(command: NumberedCommand, nowMs: number, released: NumberedCommand[]): ReorderVerdict {
    const { seq } = command
    if (seq < this.#high && this.#wasSkipped(seq)) return "late"
    const held = this.#held.get(seq)
    if (held?.command === null) return "late"
    if (seq < this.#next || held !== undefined) return "duplicate"
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

  /**
   * Gives up the lowest gap at once. Appends the commands that may be written now to `released`.
   */
  giveUpGap(released: NumberedCommand[]): void {
    const lowest = this.#lowest()
    if (lowest === undefined) return
    this.#skipTo(lowest)
    this.#releaseRun(released)
  }

  /**
   * Gives up the gaps below commands that have been held for `gapTimeoutMs`. Appends the commands
   * that may be written now to `released`.
   */
  expire(nowMs: number, released: NumberedCommand[]): void {
    let highest = -1
    for (const [seq, held] of this.#held) {
      // All commands are checked: after the clock was set back, they are not in the order of their
      // arrival times.
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

  /** Removes all held commands and returns them in the order of their numbers. */
  clear(): NumberedCommand[] {
    const left = [...this.#held.values()].flatMap(({ command }) => command ?? [])
    this.#held.clear()
    this.#lowestHeld.clear()
    this.#vacant = 0
    return left.sort((a, b) => a.seq - b.seq)
  }

  /**
   * Removes the lost commands among the held ones and returns them in the order of their numbers.
   */
  withdrawLost(): NumberedCommand[] {
    const lost = [...this.#held.values()].flatMap(({ command }) =>
      command?.lost === true ? [command] : [],
    )
    for (const { seq } of lost) this.#held.delete(seq)
    return lost.sort((a, b) => a.seq - b.seq)
  }

  /** The held command has ended. Its number stays used. */
  vacate({ seq }: NumberedCommand): void {
    const held = this.#held.get(seq)
    if (held === undefined || held.command === null) return
    this.#held.set(seq, { command: null, arrivedAtMs: held.arrivedAtMs })
    this.#vacant += 1
  }

  /**
   * Expects the numbers from `seq` on again. All commands that were released from `seq` on were
   * withdrawn before they were offered to the socket.
   */
  rewind(seq: number): void {
    if (seq > this.#next) throw new Error(`rewind to ${seq}, beyond the next number ${this.#next}`)
    this.#next = seq
  }

  #hold(command: NumberedCommand, nowMs: number): void {
    this.#held.set(command.seq, { command, arrivedAtMs: nowMs })
    this.#lowestHeld.push(command.seq)
    // Entries of commands that are no longer held are removed when they are the lowest, or here
    // when they are too many.
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
      if (held.command === null) {
        this.#vacant -= 1
        this.unwritten(this.#next)
      } else released.push(held.command)
      this.#advance()
    }
  }

  /**
   * Moves to the next number. After a rewind, numbers that were skipped before are skipped again.
   */
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

  /**
   * The command with this released number was not written. A command that uses the number again is
   * late.
   */
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
