/**
 * The counters of one worker, from its start. Hot paths increment them directly; metrics and health
 * read them. They never decrease. Pure data without I/O. Labels come from closed lists.
 */

import { CLOSE_REASONS, type CloseReason } from "./device/close-reason.ts"
import { OUTCOMES, type Outcome } from "./device/command.ts"
import { HTTP_CLOSE_REASONS, type HttpCloseReason } from "./http/http-connections.ts"
import { Histogram } from "./structures/histogram.ts"

/** Bucket bounds of lines and commands, which wait for the broker and for devices, seconds. */
const MESSAGE_BOUNDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30]
/** Bucket bounds of what the gateway itself does, seconds. */
const WORK_BOUNDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10]

export class Counters {
  connectionsAccepted = 0
  connectionsAdmitted = 0
  /** Of completed TLS handshakes, from their start, without the time in the handshake queue. */
  readonly handshakes = new Histogram(WORK_BOUNDS)
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
  /** From the receipt of a line until its confirm. */
  readonly lineConfirm = new Histogram(MESSAGE_BOUNDS)

  commandsReceived = 0
  readonly commandsSettled = zeroes<Outcome>(OUTCOMES)
  /**
   * From the arrival of a command at this worker until its outcome is final. Without held commands
   * and lines of broadcasts, whose times their senders choose.
   */
  readonly commandTimes = record<Outcome, Histogram>(OUTCOMES, () => new Histogram(MESSAGE_BOUNDS))
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
  /** Ended before their time, because their queue had no room for others. */
  commandsGaveWay = 0
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
  /** Of traced lines: sent to the collector, and not taken by it. */
  readonly spans = { exported: 0, dropped: 0 }

  brokerConnects = 0
  brokerLosses = 0
  httpErrors = new Map<string, number>()
  readonly httpConnectionsClosed = zeroes<HttpCloseReason>(HTTP_CLOSE_REASONS)
  logLinesDropped = 0
  faults = 0
  /** How late the periodic work of this worker has begun. */
  readonly eventLoopLag = new Histogram(WORK_BOUNDS)
}

function zeroes<K extends string>(keys: readonly K[]): Record<K, number> {
  return record(keys, () => 0)
}

function record<K extends string, V>(keys: readonly K[], make: () => V): Record<K, V> {
  return Object.fromEntries(keys.map((key) => [key, make()])) as Record<K, V>
}
