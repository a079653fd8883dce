/**
 * A TLS handshake of this program with itself: the listener of the gateway (`TlsPort`), with the
 * configured certificate, on a free loopback port, and a client.
 *
 * The client does not check the certificate; `certificate.ts` does. With `DEVICE_AUTH=mtls` the
 * client has no certificate, so the handshake is complete when the listener misses it. Bound:
 * `HANDSHAKE_MS`.
 */

import { connect } from "node:tls"
import type { Config } from "../../config/config.ts"
import { TlsPort } from "../../device/tls-port.ts"
import { errorText } from "../../errors.ts"
import { readListenerTls } from "../server-certificate.ts"
import { missingFiles } from "./certificate.ts"
import { type Finding, failure, ok, skipped } from "./finding.ts"

const CHECK = "handshake"
export const HANDSHAKE_MS = 5_000
const ADVICE = "see the findings about the certificate; TLS_MIN_VERSION is the lowest version"

export async function checkHandshake(config: Config): Promise<Finding[]> {
  const missing = missingFiles(config)
  if (missing !== null) return [skipped(CHECK, missing)]
  const { resumption, minVersion, maxRecordBytes, clientCaFile } = config.device
  const { promise, resolve } = Promise.withResolvers<Finding>()
  const refused = (reason: string) => resolve(failure(CHECK, `it failed: ${reason}`, ADVICE))
  const options = { host: "127.0.0.1", port: 0, backlog: 1, resumption, minVersion, maxRecordBytes }
  const port = new TlsPort<undefined>(options, {
    opened: () => undefined,
    handshook: (_socket, success, error) => {
      if (!success && clientCaFile === null) refused(error?.message ?? "no reason")
      else if (clientCaFile !== null) {
        resolve(ok(CHECK, "it succeeds up to the certificate that a device must present"))
      }
    },
    received: () => undefined,
    drained: () => undefined,
    closed: () => undefined,
    failed: (_socket, error) => refused(error.message),
    notice: () => undefined,
  })
  try {
    port.listen(readListenerTls(config.tls, clientCaFile))
  } catch (error) {
    return [failure(CHECK, `the listener does not start: ${errorText(error)}`, ADVICE)]
  }
  const startedAtMs = performance.now()
  const client = connect({ host: options.host, port: port.port, rejectUnauthorized: false })
  client.on("secureConnect", () => {
    if (clientCaFile !== null) return
    const version = client.getProtocol() ?? "TLS"
    const ms = Math.ceil(performance.now() - startedAtMs)
    resolve(ok(CHECK, `${version} with ${client.getCipher().standardName}, in ${ms} ms`))
  })
  client.on("error", (error) => refused(errorText(error)))
  const timer = setTimeout(() => refused(`not done within ${HANDSHAKE_MS} ms`), HANDSHAKE_MS)
  try {
    return [await promise]
  } finally {
    clearTimeout(timer)
    client.destroy()
    port.stop()
  }
}
