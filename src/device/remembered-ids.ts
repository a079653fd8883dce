/**
 * The message ids of the last commands of one connection, so that none is written twice.
 * Pure. Bound: `REMEMBERED_COMMANDS` ids; the oldest is forgotten first.
 */

import type { Command } from "./command.ts"

export const REMEMBERED_COMMANDS = 1024

/** Written from a delivery that another worker may have had before, and may have forwarded. */
export interface WrittenRedelivery {
  readonly writtenSeq: number | null
  /** Bodies are not kept. */
  readonly bodyHash: bigint | number
}

/** The command while it waits, or how it was written. */
export type Remembered = Command | "written" | WrittenRedelivery

export class RememberedIds {
  readonly #commands = new Map<string, Remembered>()
  /** Waiting commands whose forward has come. */
  readonly #forwarded = new WeakSet<Command>()

  /** Undefined for an id not seen lately. */
  find(messageId: string): Remembered | undefined {
    return this.#commands.get(messageId)
  }

  waiting(messageId: string, command: Command): void {
    this.#commands.set(messageId, command)
    if (this.#commands.size <= REMEMBERED_COMMANDS) return
    for (const oldest of this.#commands.keys()) {
      this.#commands.delete(oldest)
      return
    }
  }

  /** The command was written; says nothing of another that has its id by now. */
  written(messageId: string, command: Command): void {
    if (this.#commands.get(messageId) !== command) return
    const { seq, redelivered, bodyHash } = command
    const isRedelivery = redelivered && bodyHash !== null && !this.hasForward(command)
    this.#commands.set(messageId, isRedelivery ? { writtenSeq: seq, bodyHash } : "written")
  }

  /** The forward of a command that was delivered again has come, before or after it was written: a further one is a duplicate. */
  forwardCame(messageId: string): void {
    const known = this.#commands.get(messageId)
    if (known !== undefined && known !== "written" && !("writtenSeq" in known)) {
      this.#forwarded.add(known)
    } else this.#commands.set(messageId, "written")
  }

  /** Whether the forward of this waiting command has come. */
  hasForward(command: Command): boolean {
    return this.#forwarded.has(command)
  }

  /** The command ended unwritten: a later one with its id may be written. */
  forget(messageId: string, command: Command): void {
    if (this.#commands.get(messageId) === command) this.#commands.delete(messageId)
  }
}
