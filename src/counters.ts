/**
 * The counters of one worker, from its start. Hot paths increment them directly; metrics and health
 * read them. They never decrease. Pure data without I/O. Labels come from closed lists.
 */

import { CLOSE_REASONS, type CloseReason } from "./device/close-reason.ts"
import { OUTCOMES, type Outcome } from "./device/command.ts"
import { HTTP_CLOSE_REASONS, type HttpCloseReason } from "./http/http-connections.ts"

export class Counters {
  connectionsAccepted = 0
  connectionsAdmitted = 0
  readonly connectionsClosed = zeroes<CloseReason>(CLOSE_REASONS)

  linesIn = 0
  lineBytesIn = 0
  emptyLines = 0
  /** Bytes of unfinished lines of connections that ended. */
  unterminatedBytes = 0
  /** Bytes received after the gateway had begun to close the connection. */
  bytesAfterClose = 0
  readonly readingPaused = { window: 0, rate: 0 }

  linesConfirmed = 0
  linesRepublished = 0
  linesReturned = 0
  linesNacked = 0

  commandsReceived = 0
  readonly commandsSettled = zeroes<Outcome>(OUTCOMES)
  commandsForwarded = 0
  deadLettersReceived = 0
  commandsRedelivered = 0
  /**
   * Deliveries lost before their command was written or forwarded. The broker redelivers or
   * dead-letters it.
   */
  commandsDropped = 0
  /**
   * Redelivered commands that got their outcome here. Another worker may have given them an outcome
   * before.
   */
  commandsPossiblyRepeated = 0
  gapsSkipped = 0
  gapsGivenUpEarly = 0
  commandBytesOut = 0
  receiptsSent = 0
  outboundRepublished = 0
  receiptsUnroutable = 0
  /** Broadcasts that this worker has coordinated. `commandsSettled` counts their lines. */
  broadcasts = 0

  locationsAsked = 0
  fleetMessagesSent = 0
  fleetMessagesDropped = 0
  fleetMessagesUnknown = 0
  /** Fleet messages that are too large or whose MAC is not valid. */
  fleetMessagesUnverified = 0
  fleetRowsRefused = 0
  presenceSent = 0
  presenceDropped = 0

  brokerConnects = 0
  brokerLosses = 0
  httpErrors = new Map<string, number>()
  readonly httpConnectionsClosed = zeroes<HttpCloseReason>(HTTP_CLOSE_REASONS)
  logLinesDropped = 0
  faults = 0
}

function zeroes<K extends string>(keys: readonly K[]): Record<K, number> {
  return Object.fromEntries(keys.map((key) => [key, 0])) as Record<K, number>
}
