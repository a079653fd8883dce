/**
 * Server certificates for the gateway with RSA keys, self-signed by `openssl`. Those that the
 * gateway makes itself have ECDSA keys.
 */

import { join } from "node:path"
import { findProgram } from "./tools.ts"

/** RSA-2048, for localhost, valid for a year. It is its own CA. */
export function rsaCertificateFiles(directory: string): {
  TLS_CERT_FILE: string
  TLS_KEY_FILE: string
} {
  const files = {
    TLS_CERT_FILE: join(directory, "rsa.crt"),
    TLS_KEY_FILE: join(directory, "rsa.key"),
  }
  const command = [findProgram("openssl", "openssl"), "req", "-x509", "-newkey", "rsa:2048"]
  command.push("-nodes", "-days", "365", "-subj", "/CN=localhost")
  command.push("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
  command.push("-keyout", files.TLS_KEY_FILE, "-out", files.TLS_CERT_FILE)
  const made = Bun.spawnSync(command)
  if (!made.success) throw new Error(`no RSA certificate: ${made.stderr}`)
  return files
}
