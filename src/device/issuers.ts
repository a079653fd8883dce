/**
 * The end of validity of the issuers of a device's certificate, for resumed TLS sessions. TLS
 * verifies the chain in a full handshake only, and an intermediate CA may have expired since.
 *
 * Reads only; the authenticator decides. Bound: a chain of `MAX_CHAIN` certificates.
 */

const MAX_CHAIN = 10

interface ChainedCertificate {
  /** In a format that `Date.parse` accepts. */
  readonly valid_to?: string
  readonly issuerCertificate?: ChainedCertificate
}

/** The methods of Bun's TLS socket that are used here. */
export interface ResumableSocket {
  isSessionReused(): boolean
  /** With false the result includes the chain: each certificate has that of its issuer. */
  getPeerCertificate(abbreviated: boolean): ChainedCertificate
}

/**
 * @returns milliseconds since 1970; `Infinity` after a full handshake, which has just verified the
 * issuers.
 */
export function issuersValidUntilMs(socket: unknown): number {
  // The argument of `getPeerCertificate` works but is not in the types.
  const resumable = socket as ResumableSocket
  if (!resumable.isSessionReused()) return Number.POSITIVE_INFINITY
  let validUntilMs = Number.POSITIVE_INFINITY
  let certificate: ChainedCertificate | undefined = resumable.getPeerCertificate(false)
  for (let n = 0; n < MAX_CHAIN && certificate !== undefined; n += 1) {
    const untilMs = Date.parse(certificate.valid_to ?? "")
    // A chain that cannot be read is not trusted.
    if (Number.isNaN(untilMs)) return Number.NEGATIVE_INFINITY
    validUntilMs = Math.min(validUntilMs, untilMs)
    const issuer: ChainedCertificate | undefined = certificate.issuerCertificate
    if (issuer === certificate) break
    certificate = issuer
  }
  return validUntilMs
}
