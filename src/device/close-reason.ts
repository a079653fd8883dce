/**
 * Why a connection ended: one closed list, the same word in presence, logs, metrics and docs.
 * Each connection ends with exactly one of them: the first that applied.
 */

export const CLOSE_REASONS = [
  /** The device closed, its TLS session broke, or the network cut the connection. */
  "peer_closed",
  /** What came was no TLS handshake, or TLS refused it. */
  "handshake_failed",
  "handshake_timeout",
  "not_identified",
  "refused",
  "denied",
  "taken_over",
  "idle",
  "line_too_long",
  /** An unfinished line took too long, or was the oldest when those of the worker took too much memory. */
  "line_timeout",
  "slow_device",
  "overloaded",
  "kicked",
  "drained",
  /** A defect of the gateway closed this connection; the process goes on. */
  "fault",
] as const

export type CloseReason = (typeof CLOSE_REASONS)[number]
