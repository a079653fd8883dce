/**
 * The certificate that devices see and its key, read from their files and checked to be a pair before
 * a listener is given them: OpenSSL's own message about it names neither file.
 */

import { createPrivateKey, X509Certificate } from "node:crypto"
import { readFileSync } from "node:fs"
import { CertificateError, type PairFiles, type PemPair } from "./certificates.ts"

/**
 * @throws CertificateError `unusable`, naming the setting that is at fault, when a file cannot be read,
 *   holds no certificate or key, or the two do not belong together.
 */
export function readServerCertificate({ certFile, keyFile }: PairFiles): PemPair {
  const certPem = attempt("TLS_CERT_FILE", () => readFileSync(certFile, "utf8"))
  const keyPem = attempt("TLS_KEY_FILE", () => readFileSync(keyFile, "utf8"))
  const certificate = attempt("TLS_CERT_FILE", () => new X509Certificate(certPem))
  const key = attempt("TLS_KEY_FILE", () => createPrivateKey(keyPem))
  if (!certificate.checkPrivateKey(key)) {
    throw new CertificateError("unusable", "TLS_KEY_FILE: is not the key of TLS_CERT_FILE")
  }
  return { certPem, keyPem }
}

function attempt<T>(setting: string, act: () => T): T {
  try {
    return act()
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    throw new CertificateError("unusable", `${setting}: ${reason}`, error)
  }
}
