/**
 * The message ids of the latest commands of one connection, so that no command is written twice.
 * Pure. Bound: `REMEMBERED_COMMANDS` ids. Beyond it the oldest id is forgotten.
 */

import { BoundedMap } from "../structures/bounded-map.ts"
import type { Command } from "./command.ts"

export const REMEMBERED_COMMANDS = 1024

/**
 * A command that was written from a redelivery. Another worker may have consumed and forwarded it
 * before.
 */
export interface WrittenRedelivery {
  readonly writtenSeq: number | null
  /** Identifies the body, which is not kept. */
  readonly bodyHash: bigint | number
}

/** The waiting command, or how it was written. */
export type Remembered = Command | "written" | WrittenRedelivery

export class RememberedIds {
  readonly #commands = new BoundedMap<string, Remembered>(REMEMBERED_COMMANDS)
  /** Waiting commands whose forward was received. */
  readonly #forwarded = new WeakSet<Command>()

  /** Undefined for an id that is not among the remembered ones. */
  find(messageId: string): Remembered | undefined {
    return this.#commands.get(messageId)
  }

  waiting(messageId: string, command: Command): void {
    this.#commands.set(messageId, command)
  }

  /** The command was written. Has no effect when another command has the id in the meantime. */
  written(messageId: string, command: Command): void {
    if (this.#commands.get(messageId) !== command) return
    const { seq, redelivered, bodyHash } = command
    const isRedelivery = redelivered && bodyHash !== null && !this.hasForward(command)
    this.#commands.set(messageId, isRedelivery ? { writtenSeq: seq, bodyHash } : "written")
  }

  /**
   * The forward of a redelivered command was received, before or after it was written. Another
   * forward is a duplicate.
   */
  forwardCame(messageId: string): void {
    const known = this.#commands.get(messageId)
    if (known !== undefined && known !== "written" && !("writtenSeq" in known)) {
      this.#forwarded.add(known)
    } else this.#commands.set(messageId, "written")
  }

  /** Whether the forward of this waiting command was received. */
  hasForward(command: Command): boolean {
    return this.#forwarded.has(command)
  }

  /** The command ended and was not written. A later command with its id may be written. */
  forget(messageId: string, command: Command): void {
    if (this.#commands.get(messageId) === command) this.#commands.delete(messageId)
  }
}
