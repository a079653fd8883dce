/**
 * The message ids of the last commands of one connection, so that none is written twice.
 * Pure. Bound: `REMEMBERED_COMMANDS` ids; the oldest is forgotten first.
 */

import type { Command } from "./command.ts"

export const REMEMBERED_COMMANDS = 1024

export class RememberedIds {
  /** The command while it waits, null once it was written. */
  readonly #commands = new Map<string, Command | null>()

  /** The waiting command with this id, "written", or undefined for an id not seen lately. */
  find(messageId: string): Command | "written" | undefined {
    const found = this.#commands.get(messageId)
    return found === null ? "written" : found
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
    if (this.#commands.get(messageId) === command) this.#commands.set(messageId, null)
  }

  /** The command ended unwritten: a later one with its id may be written. */
  forget(messageId: string, command: Command): void {
    if (this.#commands.get(messageId) === command) this.#commands.delete(messageId)
  }
}
