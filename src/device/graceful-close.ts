/**
 * Closes connections without losing lines, acknowledgements or commands: a connection is read no
 * further, its lines are confirmed and acknowledged, its commands are written, and then it is
 * closed.
 *
 *   begin ─► not read ─► lines confirmed, nothing to write ─► closed
 *                 └───── not within `MAX_WAIT_MS` ──────────► closed; aged: read again, tried a minute later
 *
 * While commands wait for replies, the connection is read all the same: otherwise the replies could
 * not arrive.
 *
 * Lines that are not confirmed by then are still published; only their acknowledgements are not
 * sent. Lines that wait for the rate of the device are taken at once.
 *
 * Pure: the time is passed in. Bound: the connections of the worker.
 */

import type { CloseReason } from "./close-reason.ts"
import type { Connection } from "./connection.ts"

const MAX_WAIT_MS = 5_000

export interface ConfirmedLines {
  /** Lines taken for publishing since the start of the worker. */
  readonly taken: () => number
  /** Those of them that are confirmed, and all before them. */
  readonly confirmed: () => number
}

interface Closing {
  readonly reason: CloseReason
  readonly sinceMs: number
  /** Whether it is read no further. */
  isStopped: boolean
  /** The value of `taken` after the last line of the connection; null while lines wait for room. */
  lastLine: number | null
}

export class GracefulClose {
  readonly #lines: ConfirmedLines
  readonly #closing = new Map<Connection, Closing>()

  constructor(lines: ConfirmedLines) {
    this.#lines = lines
  }

  /** Connections that are not closed yet. */
  get count(): number {
    return this.#closing.size
  }

  begin(connection: Connection, reason: CloseReason, steadyMs: number): void {
    if (connection.state !== "open" || this.#closing.has(connection)) return
    const closing = { reason, sinceMs: steadyMs, isStopped: false, lastLine: null }
    this.#closing.set(connection, closing)
    this.#adjustReading(connection, closing)
  }

  /** Call this every some milliseconds while `count` is not 0. */
  sweep(steadyMs: number): void {
    for (const [connection, closing] of this.#closing) {
      const isOpen = connection.state === "open"
      const isDone = isOpen && this.#isDone(connection, closing)
      if (isOpen && !isDone && steadyMs - closing.sinceMs < MAX_WAIT_MS) continue
      this.#closing.delete(connection)
      // Nothing requires it to be closed now: it is tried again later.
      if (isOpen && !isDone && closing.reason === "aged") connection.resume("drain")
      else connection.close(closing.reason)
    }
  }

  /** Stops reading, or begins again when commands wait for replies. */
  #adjustReading(connection: Connection, closing: Closing): void {
    if (closing.isStopped !== connection.awaitsReplies) return
    closing.isStopped = !closing.isStopped
    if (closing.isStopped) {
      connection.pause("drain")
      connection.takeAll()
    } else {
      closing.lastLine = null
      connection.resume("drain")
    }
  }

  #isDone(connection: Connection, closing: Closing): boolean {
    this.#adjustReading(connection, closing)
    if (!closing.isStopped || !connection.drained) return false
    closing.lastLine ??= this.#lines.taken()
    return this.#lines.confirmed() >= closing.lastLine && connection.outgoingBytes === 0
  }
}
