/**
 * The certificate that devices see and its key, read from their files and checked to be a pair before
 * a listener is given them: OpenSSL's own message about it names neither file.
 */

import { createPrivateKey, X509Certificate } from "node:crypto"
import { readFileSync } from "node:fs"
import { CertificateError, type PairFiles, type PemPair } from "./certificates.ts"

/**
 * @throws CertificateError `unusable`, naming each setting that is at fault, when a file cannot be read,
 *   holds no certificate or key, or the two do not belong together.
 */
export function readServerCertificate({ certFile, keyFile }: PairFiles): PemPair {
  const faults: string[] = []
  const attempt = <T>(fault: string, act: () => T): T | null => {
    try {
      return act()
    } catch (error) {
      faults.push(`${fault}: ${error instanceof Error ? error.message : error}`)
      return null
    }
  }
  const certPem = attempt("TLS_CERT_FILE", () => readFileSync(certFile, "utf8"))
  const keyPem = attempt("TLS_KEY_FILE", () => readFileSync(keyFile, "utf8"))
  const certificate =
    certPem === null
      ? null
      : attempt(`TLS_CERT_FILE: ${certFile} is no PEM certificate`, () => {
          return new X509Certificate(certPem)
        })
  const key =
    keyPem === null
      ? null
      : attempt(`TLS_KEY_FILE: ${keyFile} is no PEM private key`, () => createPrivateKey(keyPem))
  if (certificate !== null && key !== null && !certificate.checkPrivateKey(key)) {
    faults.push(`TLS_KEY_FILE: ${keyFile} is not the key of ${certFile}`)
  }
  if (certPem === null || keyPem === null || faults.length > 0) {
    throw new CertificateError("unusable", faults.join("\n  "))
  }
  return { certPem, keyPem }
}
