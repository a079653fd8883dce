/**
 * Reads the certificate chain that a connected device presented from its socket, so that no chain
 * is kept for a connection. Bound: `MAX_CHAIN` certificates.
 */

import { X509Certificate } from "node:crypto"

const MAX_CHAIN = 10

interface ShownCertificate {
  /** DER. */
  readonly raw?: Uint8Array
  readonly issuerCertificate?: ShownCertificate
}

/** The method of Bun's TLS socket that is used here. */
export interface ShowingSocket {
  /** With false the result includes the chain: each certificate has that of its issuer. */
  getPeerCertificate(abbreviated: boolean): ShownCertificate | undefined
}

/**
 * @returns the device's certificate first, then the rest of the chain that TLS built: certificates
 * that the device
 *   sent, and CAs that were trusted when it connected. Null when the chain cannot be read.
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
