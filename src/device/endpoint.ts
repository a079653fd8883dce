/**
 * The gateway's end of one device connection: numbers the lines from the device and decides about
 * each command to it.
 *
 *   open ──close──► closed
 *
 *   offer(command) ─┬─ write          the socket gets it, in this order
 *                   ├─ (none)         it waits in the reorder buffer
 *                   ├─ settle         it ends here: duplicate, late, invalid or closed
 *                   ├─ acknowledge    it is a redelivery or forward of a command that was written or waits here
 *                   ├─ replace        it is the forward of a command that waits here from a redelivery
 *                   └─ supersede      an older command with its key, which the outgoing queue has, ends
 *
 * Pure: takes data and the time and returns decisions, which `connection.ts` performs. Uses no
 * socket and no timer. Bounds: those of the reorder buffer, the remembered ids and the supersede
 * keys, each created when the first command needs them. There are at most as many released commands
 * as wait for the socket.
 */

import type { Command, Outcome, Recipient } from "./command.ts"
import { RememberedIds, type WrittenIds } from "./remembered-ids.ts"
import {
  MAX_SEQ_AHEAD,
  type NumberedCommand,
  ReorderBuffer,
  type ReorderLimits,
} from "./reorder-buffer.ts"
import { type KeyedCommand, SupersedeKeys } from "./supersede-keys.ts"

/** The detail of the outcome `superseded`. */
export const SUPERSEDED = "a newer command with its supersede_key"

export type Decision =
  | { readonly kind: "write"; readonly command: Command }
  | {
      readonly kind: "settle"
      readonly command: Command
      readonly outcome: Outcome
      readonly detail: string
    }
  /** Another delivery of the same command has or gets the outcome. */
  | { readonly kind: "acknowledge"; readonly command: Command }
  /**
   * The same command waits here. It continues with the delivery of `command`, and its own delivery
   * is acknowledged.
   */
  | { readonly kind: "replace"; readonly command: Command; readonly waiting: Command }
  /** `command` ends as `superseded`, unless it is no longer in the outgoing queue. */
  | { readonly kind: "supersede"; readonly command: Command }

export class Endpoint {
  #recipient: Recipient
  readonly #limits: ReorderLimits
  readonly #writtenIds: WrittenIds
  #state: "open" | "closed" = "open"
  #linesIn = 0
  #linesOut = 0
  #reorder: ReorderBuffer | null = null
  /** Released commands by number, until `written` or `unwritten` is called for them. */
  #released: Map<number, NumberedCommand> | null = null
  #remembered: RememberedIds | null = null
  #keys: SupersedeKeys | null = null

  /** @param writtenIds of all connections of the worker. */
  constructor(recipient: Recipient, limits: ReorderLimits, writtenIds: WrittenIds) {
    this.#recipient = recipient
    this.#limits = limits
    this.#writtenIds = writtenIds
  }

  get recipient(): Recipient {
    return this.#recipient
  }

  /** The connection is newer than another one, whose worker has a clock that is ahead. */
  raiseEpoch(epoch: number): void {
    this.#recipient = { ...this.#recipient, epoch }
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

  /** Whether a command with this id waits or was written. */
  remembers(messageId: string): boolean {
    return this.#remembered?.find(messageId) !== undefined
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
    let released: readonly Command[] = [command]
    if (isNumbered(command)) {
      this.#reorder ??= new ReorderBuffer(this.#limits)
      const inOrder: NumberedCommand[] = []
      const verdict = this.#reorder.offer(command, nowMs, inOrder)
      if (verdict === "too_far") {
        return [settle(command, "invalid", tooFar(command.seq, this.#reorder.farthest))]
      }
      if (verdict === "late" || verdict === "duplicate") return [this.#used(command, verdict)]
      released = inOrder
    }
    const superseded = this.#supersede(command, released, decisions)
    this.#release(released, decisions, superseded)
    if (superseded === command) return decisions
    if (command.messageId !== null) {
      this.#remembered ??= new RememberedIds(this.#writtenIds)
      this.#remembered.waiting(command.messageId, command)
    }
    return decisions
  }

  /** Gives up gaps after `SEQ_GAP_TIMEOUT_MS`. */
  expire(nowMs: number): readonly Decision[] {
    const decisions: Decision[] = []
    const released: NumberedCommand[] = []
    this.#reorder?.expire(nowMs, released)
    this.#release(released, decisions)
    return decisions
  }

  /** Call this when the socket has accepted all bytes of a command. */
  written(command: Command): void {
    this.#linesOut += 1
    this.#keys?.forget(command)
    if (command.seq !== null) this.#released?.delete(command.seq)
    if (command.messageId !== null) this.#remembered?.written(command.messageId, command)
  }

  /** Call this when a command ended after the decision "write" and was not written. */
  unwritten(command: Command): void {
    this.#keys?.forget(command)
    if (command.messageId !== null) this.#remembered?.forget(command.messageId, command)
    if (command.seq === null || this.#released?.get(command.seq) !== command) return
    this.#released.delete(command.seq)
    this.#reorder?.unwritten(command.seq)
  }

  /**
   * Forgets lost commands that were not offered to the socket, so that a redelivery of each is
   * accepted as a new command: its number is expected again and its message id is free.
   *
   * @param unoffered lost commands that the outgoing queue has given back.
   * @returns lost commands that were in the reorder buffer.
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
      this.#keys?.forget(command)
      if (command.messageId !== null) this.#remembered?.forget(command.messageId, command)
    }
    return unreleased
  }

  /** True while the command waits in the reorder buffer. */
  isHeld(command: Command): boolean {
    return command.seq !== null && this.#reorder?.heldAt(command.seq) === command
  }

  /**
   * Gives up the lowest gap before `SEQ_GAP_TIMEOUT_MS`. Has no effect when no command waits for a
   * missing number.
   */
  giveUpGap(): readonly Decision[] {
    const decisions: Decision[] = []
    const released: NumberedCommand[] = []
    this.#reorder?.giveUpGap(released)
    this.#release(released, decisions)
    return decisions
  }

  close(): readonly Decision[] {
    this.#state = "closed"
    this.#remembered?.clear()
    const held = this.#reorder?.clear() ?? []
    return held.map((command) =>
      settle(
        command,
        "closed",
        "the connection closed while the command waited for a missing to_device_seq",
      ),
    )
  }

  /** @param superseded is not written, if it is among them. */
  #release(
    released: readonly Command[],
    decisions: Decision[],
    superseded: Command | null = null,
  ): void {
    for (const command of released) {
      if (isNumbered(command)) {
        this.#released ??= new Map()
        this.#released.set(command.seq, command)
      }
      if (command === superseded) decisions.push(settleSuperseded(command))
      else decisions.push({ kind: "write", command })
    }
  }

  /**
   * Decides which of two commands with one key is written.
   *
   * @param released the commands that may be written now.
   * @returns the command that ends as `superseded`: this one or an older one; null without one.
   */
  #supersede(
    command: Command,
    released: readonly Command[],
    decisions: Decision[],
  ): Command | null {
    if (!isKeyed(command)) return null
    this.#keys ??= new SupersedeKeys()
    const superseded = this.#keys.take(command)
    // `#release` settles it.
    if (superseded === null || released.includes(superseded)) return superseded
    if (isNumbered(superseded) && this.isHeld(superseded)) {
      this.#reorder?.vacate(superseded)
      decisions.push(settleSuperseded(superseded))
    } else decisions.push({ kind: "supersede", command: superseded })
    return superseded
  }

  /**
   * The decision about a command with the message id or the number of another command; null when it
   * is a new one.
   */
  #repeated(command: Command): Decision | null {
    const { messageId, seq, redelivered, forwarded } = command
    const byId = messageId === null ? undefined : this.#remembered?.find(messageId)
    const bySeq = seq === null ? undefined : this.#waitingUnder(seq)
    if (byId === undefined && (bySeq === undefined || bySeq.messageId !== messageId)) return null
    const duplicate = settle(command, "duplicate", `message_id ${messageId}`)
    // The keeper of a held command waits for a receipt.
    const same: Decision = command.wasHeld ? duplicate : { kind: "acknowledge", command }
    if (byId === "written") return redelivered ? same : duplicate
    if (byId !== undefined && "writtenSeq" in byId) {
      if (redelivered) return same
      // A worker that forwards a command may lose its delivery. Then the broker redelivers the
      // command. When the redelivery was written here, the forward is the same command, and not
      // another one with the same id.
      const isAlike = byId.writtenSeq === seq && byId.bodyHash === command.bodyHash
      if (!forwarded || !isAlike || messageId === null) return duplicate
      this.#remembered?.forwardCame(messageId)
      return same
    }
    const waiting = byId ?? bySeq
    // The waiting command has its own delivery, which decides the outcome.
    if (waiting !== undefined && isSame(waiting, command)) {
      // When the redelivery is lost too, the broker may deliver the command to the worker that has
      // forwarded it. That worker acknowledges it, because the forward is stored. So the forward is
      // kept, and not the redelivery. This also holds when the forward is itself redelivered.
      if (forwarded && waiting.redelivered && this.#remembered?.hasForward(waiting) !== true) {
        if (messageId !== null) this.#remembered?.forwardCame(messageId)
        return { kind: "replace", command, waiting }
      }
      if (redelivered) return same
    }
    return byId === undefined ? null : duplicate
  }

  #waitingUnder(seq: number): Command | undefined {
    return this.#released?.get(seq) ?? this.#reorder?.heldAt(seq)
  }

  /** The decision about a command whose number was used or given up. */
  #used(command: NumberedCommand, verdict: "late" | "duplicate"): Decision {
    // A redelivery without a message id is taken for the command that was written under its number.
    const again = verdict === "duplicate" && command.redelivered && command.messageId === null
    return again && this.#waitingUnder(command.seq) === undefined
      ? { kind: "acknowledge", command }
      : settle(command, verdict, `to_device_seq ${command.seq}`)
  }
}

/**
 * Whether both are deliveries of the same command. All fields are compared, because back-ends may
 * use a message id or a number twice.
 */
function isSame(a: Command, b: Command): boolean {
  return (
    a.cameBy === b.cameBy &&
    a.seq === b.seq &&
    a.messageId === b.messageId &&
    a.body.length === b.body.length &&
    a.body.every((byte, at) => byte === b.body[at])
  )
}

function isKeyed(command: Command): command is KeyedCommand {
  return command.supersedeKey !== null
}

function isNumbered(command: Command): command is NumberedCommand {
  return command.seq !== null
}

function tooFar(seq: number, farthest: number): string {
  const next = farthest - MAX_SEQ_AHEAD
  return `to_device_seq ${seq} is more than ${MAX_SEQ_AHEAD} beyond the next number, ${next}`
}

function settleSuperseded(command: Command): Decision {
  return settle(command, "superseded", SUPERSEDED)
}

function settle(command: Command, outcome: Outcome, detail: string): Decision {
  return { kind: "settle", command, outcome, detail }
}
