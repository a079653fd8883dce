/**
 * Whether a TLS handshake of ours, as a client of Bun, has led to a usable connection. Pure.
 *
 * Bun reports no success, with a usable connection, when the certificate does not name the host and none
 * was to be checked. A handshake that failed has one of two codes, or no error at all.
 */

const FAILED = ["EPROTO", "ECONNRESET"]

/** @param checksGateway the gateway's certificate was to be checked. */
export function handshakeSucceeded(
  success: boolean,
  error: (Error & { code?: string }) | null | undefined,
  checksGateway: boolean,
): boolean {
  if (success) return true
  if (checksGateway || error === null || error === undefined) return false
  return !FAILED.includes(error.code ?? "")
}
