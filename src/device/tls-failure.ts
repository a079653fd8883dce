/**
 * What a failed TLS handshake says about its peer. Bun reports OpenSSL's and BoringSSL's message
 * only, so this file parses it, and no other does.
 *
 *   error:1000009c:SSL routines:OPENSSL_internal:HTTP_REQUEST ─► HTTP_REQUEST: the peer sent HTTP, not TLS
 *
 * The reason in BoringSSL's spelling stays in the text, because it can be searched for. Pure.
 */

import type { CloseReason } from "./close-reason.ts"

export interface TlsFailure {
  readonly reason: CloseReason
  readonly detail: string
}

/** The packed error of BoringSSL: `error:<code>:<library>:<function>:<reason>`. */
const PACKED = /^error:[0-9a-f]+:[^:]*:[^:]*:([A-Z0-9_]+)/i
const NO_CERTIFICATE = "PEER_DID_NOT_RETURN_A_CERTIFICATE"
const NOT_TLS = "the peer did not send TLS"
const CHECK_TRUST = "check its CA and the host name it connects to"
const NO_TRUST = `the device does not accept the server certificate: ${CHECK_TRUST}`

/** Bun's message when the peer has closed the connection before the handshake was complete. */
const DISCONNECTED =
  "Client network socket disconnected before secure TLS connection was established"

export const LEFT_HANDSHAKE =
  "the peer closed the connection during the TLS handshake: a health check, or a device that does " +
  `not accept the server certificate (${CHECK_TRUST})`

/** The meaning of the reasons that devices cause. */
const MEANINGS: Readonly<Record<string, string>> = {
  HTTP_REQUEST: "the peer sent HTTP, not TLS",
  HTTPS_PROXY_REQUEST: "the peer sent a CONNECT of HTTP, not TLS",
  WRONG_VERSION_NUMBER: NOT_TLS,
  UNEXPECTED_MESSAGE: NOT_TLS,
  // In TLS 1.3 OpenSSL sends its alert about the server certificate before it encrypts, and
  // BoringSSL expects a longer, encrypted record.
  BAD_PACKET_LENGTH: `most often, ${NO_TRUST}`,
  UNSUPPORTED_PROTOCOL: "the newest TLS version of the device is older than TLS_MIN_VERSION",
  NO_SHARED_CIPHER: "the device supports none of the cipher suites",
  NO_SHARED_GROUP: "the device supports none of the groups for key exchange",
  NO_COMMON_SIGNATURE_ALGORITHMS:
    "the device supports no signature algorithm of the server certificate",
  TLSV1_ALERT_UNKNOWN_CA: NO_TRUST,
  SSLV3_ALERT_BAD_CERTIFICATE: NO_TRUST,
  SSLV3_ALERT_CERTIFICATE_UNKNOWN: NO_TRUST,
  SSLV3_ALERT_CERTIFICATE_EXPIRED:
    "for the device the server certificate has expired: check the certificate and the device's clock",
  CERTIFICATE_VERIFY_FAILED: "the device's certificate is not trusted",
}

/** @param message of the error that Bun passes to the handshake callback; undefined without one. */
export function tlsFailure(message = "unknown cause"): TlsFailure {
  if (message.includes(NO_CERTIFICATE))
    return { reason: "not_identified", detail: "no certificate" }
  if (message === DISCONNECTED) return { reason: "handshake_failed", detail: LEFT_HANDSHAKE }
  const code = PACKED.exec(message)?.[1]
  const meaning = code === undefined ? undefined : MEANINGS[code]
  const detail = code === undefined || meaning === undefined ? message : `${code}: ${meaning}`
  return { reason: "handshake_failed", detail }
}
