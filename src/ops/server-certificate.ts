/**
 * Reads the server certificate, its key and the client CAs from their files, and checks them before
 * the listener uses them, because OpenSSL's error messages name no file.
 */

import { createPrivateKey, X509Certificate } from "node:crypto"
import { readFileSync } from "node:fs"
import type { ListenerTls } from "../device/tls-port.ts"
import { errorText, fileErrorText } from "../errors.ts"
import { CertificateError, type PairFiles, type PemPair } from "./certificates.ts"

export const PEM_CERTIFICATE = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g

/**
 * @throws CertificateError `unusable`, which names each faulty setting, when a file cannot be read
 * or contains no
 *   certificate or key, or when key and certificate do not match.
 */
export function readServerCertificate({ certFile, keyFile }: PairFiles): PemPair {
  const faults: string[] = []
  const attempt = <T>(fault: string, act: () => T): T | null => {
    try {
      return act()
    } catch (error) {
      faults.push(`${fault}: ${errorText(error)}`)
      return null
    }
  }
  const read = (name: string, path: string) => {
    try {
      return readFileSync(path, "utf8")
    } catch (error) {
      faults.push(`${name}: ${fileErrorText(path, error)}`)
      return null
    }
  }
  const certPem = read("TLS_CERT_FILE", certFile)
  const keyPem = read("TLS_KEY_FILE", keyFile)
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

/**
 * When the first certificate of a chain expires, seconds since 1970; null without a certificate.
 * @param certPem the server certificate, perhaps with CAs above it.
 */
export function chainNotAfterS(certPem: string): number | null {
  const certificates = certPem.match(PEM_CERTIFICATE) ?? []
  if (certificates.length === 0) return null
  const ends = certificates.map((pem) => new X509Certificate(pem).validToDate.getTime())
  return Math.min(...ends) / 1_000
}

/**
 * The TLS files of the listener.
 * @param clientCaFile null when no device certificate is requested.
 * @throws CertificateError `unusable`, with all faults of all files.
 */
export function readListenerTls(files: PairFiles, clientCaFile: string | null): ListenerTls {
  const faults: string[] = []
  const attempt = <T>(act: () => T): T | null => {
    try {
      return act()
    } catch (error) {
      if (!(error instanceof CertificateError)) throw error
      faults.push(error.message)
      return null
    }
  }
  const pair = attempt(() => readServerCertificate(files))
  const clientCaPem = attempt(() =>
    clientCaFile === null ? null : readClientAuthorities(clientCaFile),
  )
  if (pair === null || faults.length > 0) {
    throw new CertificateError("unusable", faults.join("\n  "))
  }
  return { ...pair, clientCaPem }
}

/**
 * The CAs that may sign device certificates, as PEM.
 * @throws CertificateError `unusable` when the file cannot be read or contains anything but CA
 * certificates.
 */
export function readClientAuthorities(path: string): string {
  const fault = (reason: string) =>
    new CertificateError("unusable", `TLS_CLIENT_CA_FILE: ${path} ${reason}`)
  let pem: string
  try {
    pem = readFileSync(path, "utf8")
  } catch (error) {
    throw new CertificateError("unusable", `TLS_CLIENT_CA_FILE: ${fileErrorText(path, error)}`)
  }
  const certificates = pem.match(PEM_CERTIFICATE) ?? []
  if (certificates.length === 0) throw fault("contains no PEM certificate")
  for (const [at, certificate] of certificates.entries()) {
    let isAuthority: boolean
    try {
      isAuthority = new X509Certificate(certificate).ca
    } catch {
      throw fault(`contains something other than a certificate, entry ${at + 1}`)
    }
    // OpenSSL accepts it at start, and then refuses each device whose certificate it has signed.
    if (!isAuthority) throw fault(`holds a certificate that is not a CA, entry ${at + 1}`)
  }
  return pem
}
