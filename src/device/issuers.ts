/**
 * The issuers of a device's certificate, looked at once more when a TLS session is resumed: TLS verifies
 * the chain in a full handshake only, and a CA in between may have expired since.
 *
 * Reads, and never decides who is let in. Bound: a chain of `MAX_CHAIN` certificates.
 */

const MAX_CHAIN = 10

interface ChainedCertificate {
  /** A date that a Date can read. */
  readonly valid_to?: string
  readonly issuerCertificate?: ChainedCertificate
}

/** What is asked of a socket of Bun. */
export interface ResumableSocket {
  isSessionReused(): boolean
  /** False gives the chain too, each certificate with its issuer's. */
  getPeerCertificate(abbreviated: boolean): ChainedCertificate
}

/** @returns milliseconds since 1970: never after a full handshake, which has just verified them. */
export function issuersValidUntilMs(socket: unknown): number {
  // The argument of `getPeerCertificate` works but is not in the types.
  const resumable = socket as ResumableSocket
  if (!resumable.isSessionReused()) return Number.POSITIVE_INFINITY
  let validUntilMs = Number.POSITIVE_INFINITY
  let certificate: ChainedCertificate | undefined = resumable.getPeerCertificate(false)
  for (let n = 0; n < MAX_CHAIN && certificate !== undefined; n += 1) {
    const untilMs = Date.parse(certificate.valid_to ?? "")
    // A chain that can't be read is not trusted.
    if (Number.isNaN(untilMs)) return Number.NEGATIVE_INFINITY
    validUntilMs = Math.min(validUntilMs, untilMs)
    const issuer: ChainedCertificate | undefined = certificate.issuerCertificate
    if (issuer === certificate) break
    certificate = issuer
  }
  return validUntilMs
}
