/**
 * The CAs of `TLS_CLIENT_CA_FILE`. Checks whether they still trust the certificate of a connected
 * device. TLS verifies a chain in the handshake only; this check is for connections that are older
 * than the file, see `recheck.ts`.
 *
 *   device certificate ──issued by──► CA of the file: trusted
 *          │                                  ▲
 *          └──issued by──► CAs that the device sent, each issued by the next
 *
 * As in the handshake, each CA of the file is a trust anchor, even if its own issuer has expired or
 * is missing (`allowPartialTrustChain`), and each certificate of the path must be within its
 * validity period. The other rules of OpenSSL (path lengths, name constraints) were verified in the
 * handshake and are not checked again.
 *
 * Pure: the time is passed in. Bound: `MAX_SENT` certificates of a device, each followed once.
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

  /** @param pem CA certificates, checked by `readClientAuthorities`. */
  constructor(pem: string) {
    this.#authorities = (pem.match(PEM_CERTIFICATE) ?? []).map((text) => {
      const certificate = new X509Certificate(text)
      return { certificate, publicKey: certificate.publicKey }
    })
  }

  /**
   * Why the CAs of the file do not trust this chain, or null when they do.
   * @param chain the device's certificate first, then those that it sent, in any order; null when
   * it cannot be read.
   */
  faultOf(chain: readonly X509Certificate[] | null, nowMs: number): string | null {
    const [certificate, ...sent] = chain ?? []
    if (certificate === undefined) return UNKNOWN_CA
    return this.#follow(certificate, new Set(sent.slice(0, MAX_SENT)), nowMs)
  }

  /**
   * Follows each sent certificate once, so that certificates that have signed each other cause no
   * loop.
   */
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
  // Compare the names first: verifying a signature is expensive.
  return certificate.checkIssued(issuer) && certificate.verify(publicKey)
}

function isWithinItsTime({ validFrom, validTo }: X509Certificate, nowMs: number): boolean {
  return nowMs >= Date.parse(validFrom) && nowMs < Date.parse(validTo)
}
