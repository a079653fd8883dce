/**
 * The chain of certificates that a connected device has shown, as its socket still knows it: so none has to be kept for
 * a connection. Reads, and never decides. Bound: `MAX_CHAIN` certificates.
 */

import { X509Certificate } from "node:crypto"

const MAX_CHAIN = 10

interface ShownCertificate {
  /** DER. */
  readonly raw?: Uint8Array
  readonly issuerCertificate?: ShownCertificate
}

/** What is asked of a socket of Bun. */
export interface ShowingSocket {
  /** False gives the chain too, each certificate with its issuer's. */
  getPeerCertificate(abbreviated: boolean): ShownCertificate | undefined
}

/**
 * @returns the device's certificate first, then what TLS made its chain of: those that the device sent, and CAs that
 *   were trusted when it connected. Null when it cannot be read.
 */
export function shownChain(socket: unknown): X509Certificate[] | null {
  const chain: X509Certificate[] = []
  try {
    // The argument of `getPeerCertificate` works but is not in the types.
    let shown = (socket as ShowingSocket).getPeerCertificate(false)
    for (let n = 0; n < MAX_CHAIN && shown !== undefined; n += 1) {
      if (shown.raw === undefined) return null
      chain.push(new X509Certificate(shown.raw))
      if (shown.issuerCertificate === shown) break
      shown = shown.issuerCertificate
    }
    return chain
  } catch {
    return null
  }
}
