/**
 * Whether a TLS handshake of a Bun client gave a usable connection. Pure.
 *
 * When the certificate is not to be checked and does not name the host, Bun reports no success
 * although the connection is usable. A failed handshake has one of two codes, or no error at all.
 */

const FAILED = ["EPROTO", "ECONNRESET"]

/** @param checksGateway whether the certificate of the gateway is to be checked. */
export function handshakeSucceeded(
  success: boolean,
  error: (Error & { code?: string }) | null | undefined,
  checksGateway: boolean,
): boolean {
  if (success) return true
  if (checksGateway || error === null || error === undefined) return false
  return !FAILED.includes(error.code ?? "")
}
