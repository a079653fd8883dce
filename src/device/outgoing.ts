/**
 * The outgoing queue of one connection: commands that wait for the socket, and bytes that were
 * offered to it.
 *
 *   push ─► waiting ─► batch (offered to the socket) ─► accepted(n) ─► written commands
 *
 * After the socket has accepted part of a batch, exactly the rest must be offered next, because TLS
 * may already have encrypted those bytes in a record. So only commands that are still waiting can
 * expire.
 *
 * A command that waits for the next line of the device (`reply_next`) stays in the queue, and so do
 * all commands behind it, until the one before has its reply (`replyEnded`). So commands keep their
 * order. Acknowledgements of lines do not wait behind commands: a device may wait for one before it
 * sends its reply.
 *
 * Pure: no socket, no clock. Bounds: `maxBytes` of waiting and offered bytes, beyond which `push`
 * refuses a command, and `maxBytes` of acknowledgements besides, so that commands behind one with
 * `reply_next` leave room for them. A batch has at most `BATCH_BYTES`, or consists of one longer
 * command.
 */

import { Fifo } from "../structures/fifo.ts"
import type { Command } from "./command.ts"
import { type Framing, framedLine, OVERHEAD_BYTES, writeLine } from "./framing.ts"

/** The plaintext of one full TLS record. */
export const BATCH_BYTES = 16_384

/**
 * Taken commands are removed from the front of the array in blocks of this size, or when all are
 * taken.
 */
const COMPACT_AFTER = 1024
const EMPTY = new Uint8Array(0)

export class Outgoing {
  readonly #maxBytes: number
  readonly #framing: Framing
  #waiting: (Command | undefined)[] = []
  #waitingFrom = 0
  /** Acknowledgements that wait; null before the first one. */
  #acknowledgements: Fifo<Command> | null = null
  #acknowledgementBytes = 0
  #batch: Command[] = []
  /** Bytes of the batch that the socket has not accepted yet. */
  #offered: Uint8Array = EMPTY
  /** Bytes of the first command of the batch that were accepted. */
  #acceptedOfFirst = 0
  #bytes = 0
  /** The offered command that waits for the next line; null without one. */
  #asking: Command | null = null

  constructor(maxBytes: number, framing: Framing) {
    this.#maxBytes = maxBytes
    this.#framing = framing
  }

  get empty(): boolean {
    return this.#bytes === 0
  }

  get bytes(): number {
    return this.#bytes
  }

  /** True while the socket has not accepted all bytes that were offered to it. */
  get isCut(): boolean {
    return this.#offered.length > 0
  }

  /**
   * False when the command does not fit and was not taken. One command always fits into an empty
   * queue.
   */
  push(command: Command): boolean {
    const bytes = this.#bytesOf(command)
    if (command.cameBy === "gateway") {
      if (this.#acknowledgementBytes + bytes > this.#maxBytes) return false
      this.#acknowledgements ??= new Fifo()
      this.#acknowledgements.push(command)
      this.#acknowledgementBytes += bytes
    } else {
      if (this.#bytes > 0 && this.#bytes + bytes > this.#maxBytes) return false
      this.#waiting.push(command)
    }
    this.#bytes += bytes
    return true
  }

  /**
   * Removes and returns, in order, the lost commands of which no byte was offered to the socket.
   */
  withdrawLost(): Command[] {
    return this.#removeWaiting((command) => command.lost)
  }

  /** Removes and returns, in order, the commands that have expired. */
  expire(nowMs: number): Command[] {
    return this.#removeWaiting((command) => command.expiresAtMs <= nowMs)
  }

  /** False when the command does not wait: bytes of it were offered, or it has left the queue. */
  remove(command: Command): boolean {
    return this.#removeWaiting((each) => each === command).length > 0
  }

  /** The reply of a written command came, or will not come. */
  replyEnded(command: Command): void {
    if (this.#asking === command) this.#asking = null
  }

  /**
   * The bytes to offer to the socket next; empty when nothing waits. They are valid until the next
   * call. Expired commands are left out and appended to `expired`.
   *
   * @param scratch at least `BATCH_BYTES` long. All connections may share it.
   */
  nextBytes(nowMs: number, scratch: Uint8Array, expired: Command[]): Uint8Array {
    if (this.#offered.length > 0) return this.#offered
    let length = 0
    for (;;) {
      const command = this.#acknowledgements?.first ?? this.#waiting[this.#waitingFrom]
      if (command === undefined) break
      const bytes = this.#bytesOf(command)
      if (command.expiresAtMs <= nowMs) {
        this.#takeWaiting()
        this.#bytes -= bytes
        expired.push(command)
        continue
      }
      if (this.#asking !== null && asksForNext(command)) break
      if (length + bytes > BATCH_BYTES) {
        if (length > 0) break
        this.#takeWaiting()
        this.#offer(command)
        this.#offered = framedLine(this.#framing, command.body)
        return this.#offered
      }
      this.#takeWaiting()
      this.#offer(command)
      length += writeLine(this.#framing, command.body, scratch, length)
    }
    this.#offered = scratch.subarray(0, length)
    return this.#offered
  }

  /**
   * Call this with the number of offered bytes that the socket accepted. Appends the written
   * commands to `written`.
   */
  accepted(bytes: number, written: Command[]): void {
    this.#bytes -= bytes
    // Other connections use the scratch buffer from now on, so the rest is copied.
    this.#offered = bytes === this.#offered.length ? EMPTY : this.#offered.slice(bytes)
    let accepted = this.#acceptedOfFirst + bytes
    let done = 0
    for (const command of this.#batch) {
      const commandBytes = this.#bytesOf(command)
      if (accepted < commandBytes) break
      accepted -= commandBytes
      written.push(command)
      done += 1
    }
    this.#acceptedOfFirst = accepted
    if (done > 0) this.#batch = done === this.#batch.length ? [] : this.#batch.slice(done)
  }

  /** Removes and returns all commands that were not written, in order. */
  clear(): Command[] {
    const waiting = this.#waiting
      .slice(this.#waitingFrom)
      .filter((command) => command !== undefined)
    const acknowledgements: Command[] = []
    for (;;) {
      const first = this.#acknowledgements?.shift()
      if (first === undefined) break
      acknowledgements.push(first)
    }
    const left = [...this.#batch, ...acknowledgements, ...waiting]
    this.#batch = []
    this.#waiting = []
    this.#waitingFrom = 0
    this.#acknowledgementBytes = 0
    this.#offered = EMPTY
    this.#acceptedOfFirst = 0
    this.#bytes = 0
    this.#asking = null
    return left
  }

  /** Bytes on the wire. */
  #bytesOf(command: Command): number {
    return command.body.length + OVERHEAD_BYTES[this.#framing]
  }

  #offer(command: Command): void {
    this.#batch.push(command)
    if (command.isOffered === false) command.isOffered = true
    if (asksForNext(command)) this.#asking = command
  }

  #removeWaiting(isRemoved: (command: Command) => boolean): Command[] {
    const removed: Command[] = []
    const kept: Command[] = []
    for (const command of this.#waiting.slice(this.#waitingFrom)) {
      if (command === undefined) continue
      if (isRemoved(command)) {
        removed.push(command)
        this.#bytes -= this.#bytesOf(command)
      } else kept.push(command)
    }
    this.#waiting = kept
    this.#waitingFrom = 0
    return removed
  }

  /** Takes the command that `nextBytes` has looked at. */
  #takeWaiting(): void {
    const acknowledgement = this.#acknowledgements?.shift()
    if (acknowledgement !== undefined) {
      this.#acknowledgementBytes -= this.#bytesOf(acknowledgement)
      return
    }
    this.#waiting[this.#waitingFrom] = undefined
    this.#waitingFrom += 1
    const taken = this.#waitingFrom
    if (taken < this.#waiting.length && taken < COMPACT_AFTER) return
    this.#waiting = this.#waiting.slice(taken)
    this.#waitingFrom = 0
  }
}

function asksForNext({ reply }: Command): boolean {
  return reply !== null && reply.condition.kind === "next"
}
