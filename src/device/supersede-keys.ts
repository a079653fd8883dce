/**
 * Supersede keys of one connection: of the commands with one key that no byte was offered of, only
 * the newest is written.
 *
 *   take(command) ─┬─ null      no other command with its key waits
 *                  └─ a command  the older one of both: it ends as `superseded`
 *
 * Which of two commands is the newer one:
 *
 *   both are numbered          the one with the larger number, in whatever order they arrived
 *   one of them is redelivered the other one: the broker delivered the redelivered one before
 *   otherwise                  the one that arrived later at the connection
 *
 * A command that was superseded stays so when the newer one expires, or ends in another way, or is
 * redelivered: `Outcomes` gives a redelivery of it the same outcome. Lost commands that the
 * connection gives back arrive again in the order of their queue.
 *
 * Pure. Bound: the commands that wait at the connection.
 */

import type { Command } from "./command.ts"

export type KeyedCommand = Command & { readonly supersedeKey: string }

export class SupersedeKeys {
  readonly #newest = new Map<string, KeyedCommand>()

  /**
   * Takes a command that the connection has accepted.
   * @returns the command that ends as `superseded`: this one or an older one; null without one.
   */
  take(command: KeyedCommand): Command | null {
    const waiting = this.#newest.get(command.supersedeKey)
    const isAlone = waiting === undefined || waiting.isOffered
    if (!isAlone && !isNewer(command, waiting)) return command
    this.#newest.set(command.supersedeKey, command)
    return isAlone ? null : waiting
  }

  /** The command does not wait any more. */
  forget(command: Command): void {
    const { supersedeKey } = command
    if (supersedeKey === null || this.#newest.get(supersedeKey) !== command) return
    this.#newest.delete(supersedeKey)
  }
}

/** @param waiting arrived before `command`. */
function isNewer(command: Command, waiting: Command): boolean {
  if (command.seq !== null && waiting.seq !== null) return command.seq > waiting.seq
  return !command.redelivered || waiting.redelivered
}
