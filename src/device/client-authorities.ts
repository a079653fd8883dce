/**
 * The CAs of `TLS_CLIENT_CA_FILE`, and whether they vouch for a certificate that a device has shown before. TLS looks at
 * a chain in the handshake only; this is for connections that are older than the file, see `recheck.ts`.
 *
 *   device's certificate ──issued by──► CA of the file: trusted
 *          │                                  ▲
 *          └──issued by──► CAs that the device sent, each issued by the next
 *
 * As in the handshake, each CA of the file is trusted by itself, whatever the state of those above it
 * (`allowPartialTrustChain`), and every certificate of the path must be within its time. What else OpenSSL knows of (path
 * lengths, name constraints) was looked at in the handshake and is not looked at again.
 *
 * Reads no file and no clock. Bound: `MAX_SENT` certificates of a device, each followed once.
 */

import { type KeyObject, X509Certificate } from "node:crypto"

const PEM_CERTIFICATE = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g
const MAX_SENT = 10

export const UNKNOWN_CA = "no CA of TLS_CLIENT_CA_FILE vouches for its certificate any more"
export const EXPIRED = "its certificate or a CA of it has expired or is not yet valid"

interface Authority {
  readonly certificate: X509Certificate
  readonly publicKey: KeyObject
}

export class ClientAuthorities {
  readonly #authorities: readonly Authority[]

  /** @param pem certificates of CAs, as `readClientAuthorities` has checked them. */
  constructor(pem: string) {
    this.#authorities = (pem.match(PEM_CERTIFICATE) ?? []).map((text) => {
      const certificate = new X509Certificate(text)
      return { certificate, publicKey: certificate.publicKey }
    })
  }

  /**
   * Why the device would not be let in with this chain now, or null.
   * @param chain its certificate first, then those that it sent, in any order; null when it cannot be read.
   */
  faultOf(chain: readonly X509Certificate[] | null, nowMs: number): string | null {
    const [certificate, ...sent] = chain ?? []
    if (certificate === undefined) return UNKNOWN_CA
    return this.#follow(certificate, new Set(sent.slice(0, MAX_SENT)), nowMs)
  }

  /** Each certificate that was sent is followed once, however many of them have signed each other. */
  #follow(certificate: X509Certificate, sent: Set<X509Certificate>, nowMs: number): string | null {
    let found = UNKNOWN_CA
    const reached = [certificate]
    for (let next = reached.pop(); next !== undefined; next = reached.pop()) {
      if (!isWithinItsTime(next, nowMs)) {
        found = EXPIRED
        continue
      }
      for (const { certificate: authority, publicKey } of this.#authorities) {
        if (!isIssued(next, authority, publicKey)) continue
        if (isWithinItsTime(authority, nowMs)) return null
        found = EXPIRED
      }
      for (const issuer of sent) {
        if (!issuer.ca || !isIssued(next, issuer, issuer.publicKey)) continue
        sent.delete(issuer)
        reached.push(issuer)
      }
    }
    return found
  }
}

function isIssued(
  certificate: X509Certificate,
  issuer: X509Certificate,
  publicKey: KeyObject,
): boolean {
  // The names first: they cost next to nothing.
  return certificate.checkIssued(issuer) && certificate.verify(publicKey)
}

function isWithinItsTime({ validFrom, validTo }: X509Certificate, nowMs: number): boolean {
  return nowMs >= Date.parse(validFrom) && nowMs < Date.parse(validTo)
}
