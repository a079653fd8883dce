/**
 * The message ids of the latest commands of one connection, so that no command is written twice.
 *
 *   waiting ──► written ──► forgotten: one of the oldest of the connection, or of the worker
 *
 * An id takes up to 190 bytes of memory. A device that gets a command a minute has 1,024 after a
 * day, and its connection would need 30 times the memory of one without commands. Hence the second
 * bound.
 *
 * Pure. Bounds: `REMEMBERED_COMMANDS` ids of a connection; `REMEMBERED_OF_WORKER` written ones of
 * all connections. Beyond each the oldest id is forgotten.
 */

import { BoundedMap } from "../structures/bounded-map.ts"
import type { Command } from "./command.ts"

export const REMEMBERED_COMMANDS = 1024
export const REMEMBERED_OF_WORKER = 200_000

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

/** The written ids of all connections of a worker, in a ring from the oldest to the newest. */
export class WrittenIds {
  readonly #max: number
  /** Two arrays of the same length, because a pair for each id would be one object more. */
  readonly #owners: RememberedIds[] = []
  readonly #ids: string[] = []
  #next = 0

  constructor(max = REMEMBERED_OF_WORKER) {
    this.#max = max
  }

  add(owner: RememberedIds, id: string): void {
    this.#owners[this.#next]?.expire(this.#ids[this.#next] ?? "")
    this.#owners[this.#next] = owner
    this.#ids[this.#next] = id
    this.#next = (this.#next + 1) % this.#max
  }
}

export class RememberedIds {
  readonly #ofWorker: WrittenIds
  readonly #commands = new BoundedMap<string, Remembered>(REMEMBERED_COMMANDS)
  /** Waiting commands whose forward was received. */
  readonly #forwarded = new WeakSet<Command>()

  constructor(ofWorker: WrittenIds) {
    this.#ofWorker = ofWorker
  }

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
    this.#ofWorker.add(this, messageId)
  }

  /**
   * The forward of a redelivered command was received, before or after it was written. Another
   * forward is a duplicate.
   */
  forwardCame(messageId: string): void {
    const known = this.#commands.get(messageId)
    if (known !== undefined && known !== "written" && !("writtenSeq" in known)) {
      this.#forwarded.add(known)
      return
    }
    this.#commands.set(messageId, "written")
    if (known === undefined) this.#ofWorker.add(this, messageId)
  }

  /** Whether the forward of this waiting command was received. */
  hasForward(command: Command): boolean {
    return this.#forwarded.has(command)
  }

  /** Too many others were written after it, on any connection. One that waits stays. */
  expire(messageId: string): void {
    const known = this.#commands.get(messageId)
    if (known === "written" || (known !== undefined && "writtenSeq" in known)) {
      this.#commands.delete(messageId)
    }
  }

  /** The connection has ended. */
  clear(): void {
    this.#commands.clear()
  }

  /** The command ended and was not written. A later command with its id may be written. */
  forget(messageId: string, command: Command): void {
    if (this.#commands.get(messageId) === command) this.#commands.delete(messageId)
  }
}
