/**
 * What a connection reports while its device is being recorded. A connection without a tape has
 * null in this place and reports nothing. `fleet/tape/recorder.ts` implements it.
 *
 *   pump ─► take ─► the lines' next stage        confirmed by the broker ─► confirmed
 *   commands ─► written, settled                 the connection ends ─► disconnected
 */

import type { CloseReason } from "./close-reason.ts"
import type { Command, Outcome } from "./command.ts"
import type { Connection, LineHandler } from "./connection.ts"

/** `take` records a line and passes it to the handler that takes the lines of all connections. */
export interface ConnectionTape extends LineHandler {
  /** The broker has confirmed the line with this number. */
  confirmed(connection: Connection, seq: number): void
  /** The socket has accepted these commands. Some of them may wait for replies. */
  written(connection: Connection, commands: readonly Command[]): void
  /** A command has ended otherwise than `written`. */
  settled(connection: Connection, command: Command, outcome: Outcome): void
  /** The connection begins to close. Lines that were read before may follow. */
  disconnected(connection: Connection, reason: CloseReason): void
}
