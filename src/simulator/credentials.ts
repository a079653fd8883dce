/**
 * The credentials of a simulated device according to `--auth`: the TLS options of its connection,
 * and its first line.
 *
 * A certificate takes some 3 ms of CPU and is made when its device first connects. No key is
 * written to a file. Bound: with mtls one certificate and key for each device (2.5 KB, and a TLS
 * context in Bun).
 */

import { readFileSync } from "node:fs"
import { helloLine } from "../device/hello.ts"
import { errorText } from "../errors.ts"
import { createDeviceCertificate, type PemPair } from "../ops/certificates.ts"
import type { Auth, ReplayOptions } from "./options.ts"

export interface Credentials {
  readonly tls: Bun.TLSOptions
  /** The hello or the token with its LF; empty without one. */
  readonly hello: string
}

export class CredentialsError extends Error {
  override readonly name = "CredentialsError"
}

export class Issuer {
  readonly #auth: Auth | ReplayOptions["auth"]
  readonly #tls: Bun.TLSOptions
  readonly #authority: PemPair | null
  readonly #certificates = new Map<string, Promise<PemPair>>()

  /** @throws CredentialsError when a file cannot be read. */
  constructor(options: {
    readonly auth: Auth | ReplayOptions["auth"]
    readonly host: string
    readonly caFile: string | null
  }) {
    const { auth, host, caFile } = options
    this.#auth = auth
    this.#tls = {
      rejectUnauthorized: caFile !== null,
      serverName: host,
      ...(caFile === null ? {} : { ca: read(caFile) }),
    }
    this.#authority =
      auth.kind === "mtls" ? { certPem: read(auth.caCertFile), keyPem: read(auth.caKeyFile) } : null
  }

  /** False: the certificate of the gateway is not checked. */
  get checksGateway(): boolean {
    return this.#tls.rejectUnauthorized === true
  }

  /**
   * @throws CertificateError when the CA cannot sign.
   * @throws CredentialsError when the token cannot be read.
   */
  async of(deviceId: string): Promise<Credentials> {
    if (this.#authority === null) {
      return { tls: this.#tls, hello: this.#firstLine(deviceId) }
    }
    const made =
      this.#certificates.get(deviceId) ?? createDeviceCertificate(this.#authority, deviceId)
    this.#certificates.set(deviceId, made)
    const { certPem, keyPem } = await made
    return { tls: { ...this.#tls, cert: certPem, key: keyPem }, hello: "" }
  }

  #firstLine(deviceId: string): string {
    switch (this.#auth.kind) {
      case "hello":
        return `${helloLine(deviceId, this.#auth.secret)}\n`
      case "token":
        return `TOKEN ${read(this.#auth.file).trim()}\n`
      default:
        return ""
    }
  }
}

function read(path: string): string {
  try {
    return readFileSync(path, "utf8")
  } catch (cause) {
    const reason = errorText(cause)
    throw new CredentialsError(`${path} cannot be read: ${reason}`, { cause })
  }
}
