/**
 * Our side of one device's conversation: it numbers the lines that come and decides what becomes of
 * each command that is to go.
 *
 *   open ──close──► closed
 *
 *   offer(command) ─┬─ write             hand it to the socket, in this order
 *                   ├─ (nothing)         it waits in the reorder buffer
 *                   ├─ settle            it ends here: duplicate, late or closed
 *                   ├─ replace           the broker handed it out again while it waits here
 *                   └─ acknowledge       the broker handed it out again after it was written
 *
 * Pure: takes data and the time, returns decisions; `connection.ts` performs them. Never touches a
 * socket and holds no timer. Bounds: those of its reorder buffer and of its remembered ids, both made
 * only when the first command needs them.
 */

import type { Command, Outcome, Recipient } from "./command.ts"
import { RememberedIds } from "./remembered-ids.ts"
import { type NumberedCommand, ReorderBuffer, type ReorderLimits } from "./reorder.ts"

export type Decision =
  | { readonly do: "write"; readonly command: Command }
  | {
      readonly do: "settle"
      readonly command: Command
      readonly outcome: Outcome
      readonly detail: string
    }
  /** `by` is the same command with the delivery that can still be acknowledged. */
  | { readonly do: "replace"; readonly waiting: Command; readonly by: Command }
  /** Its one outcome was or will be told by the delivery that was written. */
  | { readonly do: "acknowledge"; readonly command: Command }

export class Endpoint {
  readonly recipient: Recipient
  readonly #limits: ReorderLimits
  #state: "open" | "closed" = "open"
  #linesIn = 0
  #linesOut = 0
  #reorder: ReorderBuffer | null = null
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

  /** When `expire` has something to decide, in milliseconds since 1970, or null. */
  get deadlineMs(): number | null {
    return this.#reorder?.deadlineMs ?? null
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
    if (command.messageId !== null) {
      this.#remembered ??= new RememberedIds()
      this.#remembered.waiting(command.messageId, command)
    }
    if (!isNumbered(command)) return [{ do: "write", command }]

    this.#reorder ??= new ReorderBuffer(this.#limits)
    const released: NumberedCommand[] = []
    const verdict = this.#reorder.offer(command, nowMs, released)
    const decisions: Decision[] = released.map(write)
    if (verdict === "late" || verdict === "duplicate") {
      this.#forget(command)
      decisions.push(
        verdict === "duplicate" && command.redelivered
          ? { do: "acknowledge", command }
          : settle(command, verdict, `to_device_seq ${command.seq}`),
      )
    }
    return decisions
  }

  /** Gives up the gaps that were waited out. */
  expire(nowMs: number): readonly Decision[] {
    if (this.#reorder === null) return []
    const released: NumberedCommand[] = []
    this.#reorder.expire(nowMs, released)
    return released.map(write)
  }

  /** To be told when the socket has taken all bytes of a command. */
  written(command: Command): void {
    this.#linesOut += 1
    if (command.messageId !== null) this.#remembered?.written(command.messageId)
  }

  /** To be told when a command ended after the decision "write" without being written. */
  unwritten(command: Command): void {
    this.#forget(command)
  }

  close(): readonly Decision[] {
    this.#state = "closed"
    const held = this.#reorder?.clear() ?? []
    return held.map((command) => settle(command, "closed", "the connection closed at a gap"))
  }

  #repeated(command: Command): Decision | null {
    const byId = command.messageId === null ? undefined : this.#remembered?.find(command.messageId)
    if (byId === "written") {
      return command.redelivered
        ? { do: "acknowledge", command }
        : settle(command, "duplicate", `message_id ${command.messageId}`)
    }
    if (byId !== undefined && !command.redelivered) {
      return settle(command, "duplicate", `message_id ${command.messageId}`)
    }
    const waiting = byId ?? this.#heldUnder(command)
    if (waiting === undefined || !command.redelivered) return null
    if (command.messageId !== null) this.#remembered?.waiting(command.messageId, command)
    if (isNumbered(command) && this.#heldUnder(command) === waiting) this.#reorder?.replace(command)
    return { do: "replace", waiting, by: command }
  }

  #heldUnder(command: Command): Command | undefined {
    return command.seq === null ? undefined : this.#reorder?.heldAt(command.seq)
  }

  #forget(command: Command): void {
    if (command.messageId !== null) this.#remembered?.forget(command.messageId)
  }
}

function isNumbered(command: Command): command is NumberedCommand {
  return command.seq !== null
}

function write(command: Command): Decision {
  return { do: "write", command }
}

function settle(command: Command, outcome: Outcome, detail: string): Decision {
  return { do: "settle", command, outcome, detail }
}
