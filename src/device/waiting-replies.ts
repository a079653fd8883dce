/**
 * The commands of one connection that wait for a reply (`reply-request.ts`).
 *
 *   add ─► to be written ─► written ─┬─ match: a line from the device ─► answered
 *              │                     ├─ expire: no line in time ───────► no_reply
 *              └─ remove             └─ clear: the connection ends ────► no_reply
 *
 * A line answers at most one command: of those that were written, the oldest one that it matches.
 *
 * Pure: the time is passed in. Bounds: `MAX_WAITING_REPLIES` commands, including those that are not
 * written yet; `MAX_NEXT_MS` for those with `reply_next`, which wait one after another.
 */

import type { Command } from "./command.ts"
import { matches, type ReplyRequest } from "./reply-request.ts"

export const MAX_WAITING_REPLIES = 64
/**
 * The largest sum of their time-outs. RabbitMQ closes a channel that leaves a delivery
 * unacknowledged for 30 minutes. At least the largest `MAX_REPLY_MS`.
 */
export const MAX_NEXT_MS = 900_000

export type AskingCommand = Command & { readonly reply: ReplyRequest }

export class WaitingReplies {
  /** In the order in which they are written, with the end of their time; null before. */
  readonly #untilMs = new Map<AskingCommand, number | null>()

  get count(): number {
    return this.#untilMs.size
  }

  /** Adds the command. @returns the reason for which it was not added, or null. */
  add(command: AskingCommand): string | null {
    if (this.#untilMs.size >= MAX_WAITING_REPLIES) {
      return `${MAX_WAITING_REPLIES} commands already wait for replies of this device`
    }
    const nextMs = nextMsOf(command)
    if (nextMs > 0 && this.#nextMs() + nextMs > MAX_NEXT_MS) {
      return `the reply_timeout_ms of its commands with reply_next add up to more than ${MAX_NEXT_MS} ms`
    }
    this.#untilMs.set(command, null)
    return null
  }

  /** The command ended before it was written. */
  remove(command: AskingCommand): void {
    this.#untilMs.delete(command)
  }

  written(command: AskingCommand, steadyMs: number): void {
    this.#untilMs.set(command, steadyMs + command.reply.timeoutMs)
  }

  /** The command that this line answers, which waits no longer; null when there is none. */
  match(line: Uint8Array): AskingCommand | null {
    for (const [command, untilMs] of this.#untilMs) {
      if (untilMs === null) return null
      if (!matches(command.reply.condition, line)) continue
      this.#untilMs.delete(command)
      return command
    }
    return null
  }

  /** False when the command does not wait for a reply, or was not written yet. */
  giveUp(command: AskingCommand): boolean {
    return (this.#untilMs.get(command) ?? null) !== null && this.#untilMs.delete(command)
  }

  /** Removes and returns the commands whose time is over. */
  expire(steadyMs: number): AskingCommand[] {
    const over: AskingCommand[] = []
    for (const [command, untilMs] of this.#untilMs) {
      if (untilMs !== null && untilMs <= steadyMs) over.push(command)
    }
    for (const command of over) this.#untilMs.delete(command)
    return over
  }

  /** Removes all commands and returns those that were written. */
  clear(): AskingCommand[] {
    const written = [...this.#untilMs].flatMap(([command, untilMs]) =>
      untilMs === null ? [] : [command],
    )
    this.#untilMs.clear()
    return written
  }

  #nextMs(): number {
    let sum = 0
    for (const command of this.#untilMs.keys()) sum += nextMsOf(command)
    return sum
  }
}

function nextMsOf({ reply }: AskingCommand): number {
  return reply.condition.kind === "next" ? reply.timeoutMs : 0
}
