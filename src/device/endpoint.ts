/**
 * Our side of one device's conversation: it numbers the lines that come and decides what becomes of
 * each command that is to go.
 *
 *   open ──close──► closed
 *
 *   offer(command) ─┬─ write             hand it to the socket, in this order
 *                   ├─ (nothing)         it waits in the reorder buffer
 *                   ├─ settle            it ends here: duplicate, late, invalid or closed
 *                   ├─ acknowledge       the broker delivered it again, and it was written or waits here
 *                   └─ replace           another worker forwarded it and lost its delivery, which has come here itself
 *
 * Pure: takes data and the time, returns decisions; `connection.ts` performs them. Never touches a
 * socket and holds no timer. Bounds: those of its reorder buffer and of its remembered ids, both made
 * only when the first command needs them; released commands are as many as wait for the socket.
 */

import type { Command, Outcome, Recipient } from "./command.ts"
import { RememberedIds } from "./remembered-ids.ts"
import {
  MAX_SEQ_AHEAD,
  type NumberedCommand,
  ReorderBuffer,
  type ReorderLimits,
} from "./reorder-buffer.ts"

export type Decision =
  | { readonly kind: "write"; readonly command: Command }
  | {
      readonly kind: "settle"
      readonly command: Command
      readonly outcome: Outcome
      readonly detail: string
    }
  /** Its one outcome was or will be told by the delivery that was written. */
  | { readonly kind: "acknowledge"; readonly command: Command }
  /** The same command waits here: it goes on with the delivery of this one, and its own is acknowledged. */
  | { readonly kind: "replace"; readonly command: Command; readonly waiting: Command }

export class Endpoint {
  readonly recipient: Recipient
  readonly #limits: ReorderLimits
  #state: "open" | "closed" = "open"
  #linesIn = 0
  #linesOut = 0
  #reorder: ReorderBuffer | null = null
  /** Released commands by their number, until it is told whether they were written. */
  #released: Map<number, NumberedCommand> | null = null
  #remembered: RememberedIds | null = null

  constructor(recipient: Recipient, limits: ReorderLimits) {
    this.recipient = recipient
    this.#limits = limits
  }

  get linesIn(): number {
    return this.#linesIn
  }

  get linesOut(): number {
    return this.#linesOut
  }

  get heldCommands(): number {
    return this.#reorder?.heldCount ?? 0
  }

  get gaps(): number {
    return this.#reorder?.gaps ?? 0
  }

  /** Takes one line from the device and returns its `from_device_seq`. */
  numberLine(): number {
    const seq = this.#linesIn
    this.#linesIn += 1
    return seq
  }

  offer(command: Command, nowMs: number): readonly Decision[] {
    if (this.#state === "closed") return [settle(command, "closed", "the connection has closed")]
    const repeated = this.#repeated(command)
    if (repeated) return [repeated]
    const decisions: Decision[] = []
    if (isNumbered(command)) {
      this.#reorder ??= new ReorderBuffer(this.#limits)
      const released: NumberedCommand[] = []
      const verdict = this.#reorder.offer(command, nowMs, released)
      this.#release(released, decisions)
      if (verdict === "too_far") {
        decisions.push(settle(command, "invalid", tooFar(command.seq, this.#reorder.farthest)))
        return decisions
      }
      if (verdict === "late" || verdict === "duplicate") {
        decisions.push(this.#used(command, verdict))
        return decisions
      }
    } else decisions.push({ kind: "write", command })
    if (command.messageId !== null) {
      this.#remembered ??= new RememberedIds()
      this.#remembered.waiting(command.messageId, command)
    }
    return decisions
  }

  /** Gives up the gaps that were waited out. */
  expire(nowMs: number): readonly Decision[] {
    const decisions: Decision[] = []
    const released: NumberedCommand[] = []
    this.#reorder?.expire(nowMs, released)
    this.#release(released, decisions)
    return decisions
  }

  /** To be told when the socket has taken all bytes of a command. */
  written(command: Command): void {
    this.#linesOut += 1
    if (command.seq !== null) this.#released?.delete(command.seq)
    if (command.messageId !== null) this.#remembered?.written(command.messageId, command)
  }

  /** To be told when a command ended after the decision "write" without being written. */
  unwritten(command: Command): void {
    if (command.messageId !== null) this.#remembered?.forget(command.messageId, command)
    if (command.seq === null || this.#released?.get(command.seq) !== command) return
    this.#released.delete(command.seq)
    this.#reorder?.unwritten(command.seq)
  }

  /**
   * Forgets the lost commands that were not offered to the socket, so that each is taken as a new one when the
   * broker delivers it again: its number is expected again, its message id is free.
   *
   * @param unoffered those that the outgoing queue has given back.
   * @returns those that waited for a number.
   */
  withdrawLost(unoffered: readonly Command[]): readonly Command[] {
    let lowest = Number.POSITIVE_INFINITY
    for (const { seq } of unoffered) {
      if (seq === null) continue
      this.#released?.delete(seq)
      lowest = Math.min(lowest, seq)
    }
    const unreleased = this.#reorder?.withdrawLost() ?? []
    if (lowest !== Number.POSITIVE_INFINITY) this.#reorder?.rewind(lowest)
    for (const command of [...unoffered, ...unreleased]) {
      if (command.messageId !== null) this.#remembered?.forget(command.messageId, command)
    }
    return unreleased
  }

  /** True while the command waits in the reorder buffer. */
  isHeld(command: Command): boolean {
    return command.seq !== null && this.#reorder?.heldAt(command.seq) === command
  }

  /** Gives up the lowest gap before its time; nothing happens when no command waits for a number. */
  giveUpGap(): readonly Decision[] {
    const decisions: Decision[] = []
    const released: NumberedCommand[] = []
    this.#reorder?.giveUpGap(released)
    this.#release(released, decisions)
    return decisions
  }

  close(): readonly Decision[] {
    this.#state = "closed"
    const held = this.#reorder?.clear() ?? []
    return held.map((command) => settle(command, "closed", "the connection closed at a gap"))
  }

  #release(released: readonly NumberedCommand[], decisions: Decision[]): void {
    for (const command of released) {
      this.#released ??= new Map()
      this.#released.set(command.seq, command)
      decisions.push({ kind: "write", command })
    }
  }

  /** What becomes of a command whose message id, or whose place, another one has. */
  #repeated(command: Command): Decision | null {
    const { messageId, seq, redelivered, forwarded } = command
    const byId = messageId === null ? undefined : this.#remembered?.find(messageId)
    const bySeq = seq === null ? undefined : this.#waitingUnder(seq)
    if (byId === undefined && (bySeq === undefined || bySeq.messageId !== messageId)) return null
    const duplicate = settle(command, "duplicate", `message_id ${messageId}`)
    if (byId === "written") return redelivered ? { kind: "acknowledge", command } : duplicate
    if (byId !== undefined && "writtenSeq" in byId) {
      if (redelivered) return { kind: "acknowledge", command }
      // A worker that forwards a command may lose its delivery. The broker then delivers the command again, and when it
      // was written from that delivery, the forward is the same command and not another one with its id.
      const isAlike = byId.writtenSeq === seq && byId.bodyHash === command.bodyHash
      if (!forwarded || !isAlike || messageId === null) return duplicate
      this.#remembered?.forwardCame(messageId)
      return { kind: "acknowledge", command }
    }
    const waiting = byId ?? bySeq
    // The command that waits here has a delivery of its own, which decides the outcome.
    if (waiting !== undefined && isSame(waiting, command)) {
      if (redelivered) return { kind: "acknowledge", command }
      // When the redelivery is lost too, the broker may hand it to the worker that has forwarded the command: that one
      // acknowledges it, since the forward is stored. So the forward is kept and not the redelivery.
      if (forwarded && waiting.redelivered && this.#remembered?.hasForward(waiting) !== true) {
        if (messageId !== null) this.#remembered?.forwardCame(messageId)
        return { kind: "replace", command, waiting }
      }
    }
    return byId === undefined ? null : duplicate
  }

  #waitingUnder(seq: number): Command | undefined {
    return this.#released?.get(seq) ?? this.#reorder?.heldAt(seq)
  }

  /** What becomes of a command whose number was used or given up. */
  #used(command: NumberedCommand, verdict: "late" | "duplicate"): Decision {
    // Without an id, one that the broker hands out again is the one that was written.
    const again = verdict === "duplicate" && command.redelivered && command.messageId === null
    return again && this.#waitingUnder(command.seq) === undefined
      ? { kind: "acknowledge", command }
      : settle(command, verdict, `to_device_seq ${command.seq}`)
  }
}

/** Back-ends may use an id or a number twice; a delivery that came twice is alike in all. */
function isSame(a: Command, b: Command): boolean {
  return (
    a.cameBy === b.cameBy &&
    a.seq === b.seq &&
    a.messageId === b.messageId &&
    a.body.length === b.body.length &&
    a.body.every((byte, at) => byte === b.body[at])
  )
}

function isNumbered(command: Command): command is NumberedCommand {
  return command.seq !== null
}

function tooFar(seq: number, farthest: number): string {
  const next = farthest - MAX_SEQ_AHEAD
  return `to_device_seq ${seq} is more than ${MAX_SEQ_AHEAD} beyond the next number, ${next}`
}

function settle(command: Command, outcome: Outcome, detail: string): Decision {
  return { kind: "settle", command, outcome, detail }
}
