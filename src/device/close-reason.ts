/**
 * The close reasons: a closed list, with the same words in presence, logs, metrics and docs.
 * Each connection ends with exactly one of them, the first that applied.
 */

export const CLOSE_REASONS = [
  /** The device closed the connection, its TLS session broke, or the network cut the connection. */
  "peer_closed",
  /** The peer is not a proxy of PROXY_FROM, or sent no valid PROXY header. */
  "not_proxied",
  /** The peer sent no TLS handshake, or the handshake failed. */
  "handshake_failed",
  "handshake_timeout",
  "not_identified",
  "refused",
  "denied",
  /** The token of the device has expired since its admission. */
  "expired",
  /** The gate is closed for this device. */
  "gated",
  /** The device has connected more than FLAP_LIMIT times within FLAP_WINDOW_MS. */
  "flapping",
  "taken_over",
  "idle",
  "line_too_long",
  /**
   * An unfinished line exceeded LINE_TIMEOUT_MS, or was the oldest when the worker reached
   * MAX_PARTIAL_BYTES.
   */
  "line_timeout",
  "slow_device",
  "overloaded",
  /** The address has reached MAX_CONNECTIONS_PER_ADDRESS or MAX_HANDSHAKES_PER_ADDRESS_PER_S. */
  "overloaded_address",
  "kicked",
  /** The connection has reached MAX_CONNECTION_AGE_MS. */
  "aged",
  "drained",
  /** An unexpected exception in the gateway closed this connection. The process continues. */
  "fault",
] as const

export type CloseReason = (typeof CLOSE_REASONS)[number]

/** The close reasons of connections that did not become devices: refusals. */
export const REFUSAL_REASONS = [
  "peer_closed",
  "not_proxied",
  "handshake_failed",
  "handshake_timeout",
  "not_identified",
  "refused",
  "denied",
  "gated",
  "flapping",
  "overloaded",
  "overloaded_address",
  "drained",
  "fault",
] as const satisfies readonly CloseReason[]

/** The detail of refusals with the reason `drained`. */
export const TAKES_NO_DEVICES = "this worker takes no devices: it is being drained"

/** What is known about the end of a connection besides its reason. */
export interface CloseDetails {
  /** The cause. Never contains a secret; may contain text that the peer has chosen. */
  readonly detail?: string
  /** Of a connection that is not admitted: the device id that it has shown. */
  readonly deviceId?: string | null
  /** When the device should come back, for the goodbye line; null when that is not known. */
  readonly retryAfterMs?: number | null
}
