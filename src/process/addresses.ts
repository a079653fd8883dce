/**
 * Where a started instance can be reached: URLs, and commands to paste into a shell. Logged at the
 * start.
 *
 * Without a secret: a command that needs a token or a key has a placeholder. A command that would
 * not work is left out, such as `openssl` for devices that send lengths. Pure.
 */

import { dirname, join } from "node:path"
import type { Config } from "../config/config.ts"

export interface Addresses {
  /** The operator's page. */
  readonly page: string
  /** Follows the published lines; only with the embedded broker. */
  readonly lines?: string
  /** Connects as a device and sends each typed line. */
  readonly device?: string
  /** Sends a command to a device. */
  readonly command: string
}

interface Ports {
  readonly devicePort: number
  readonly httpPort: number
}

/** Prints the first line of a device that identifies itself by it. */
const FIRST_LINE: Partial<Record<Config["device"]["auth"], string>> = {
  hello: "bun run --silent certs hello <device_id>",
  token: "echo TOKEN <token>",
}
const OPENSSL = "openssl s_client -quiet -nocommands -connect"

export function addressesOf(config: Config, { devicePort, httpPort }: Ports): Addresses {
  const { device, http, tls } = config
  const page = `http://${reachable(http.host)}:${httpPort}/`
  const isOpen = http.tokens.length + http.readTokens.length === 0
  const token = isOpen ? "" : "-H 'authorization: Bearer <token>' "
  const text = "-H 'content-type: text/plain' -d 'open the door'"
  const command = `curl ${token}${text} ${page}devices/<device_id>/send`
  const canType = device.framing === "line" && device.proxyFrom === null
  // The development certificate is valid for localhost.
  const host = isAnywhere(device.host) && tls.development ? "localhost" : reachable(device.host)
  const ca = tls.development ? ` -CAfile ${join(dirname(tls.certFile), "ca.crt")}` : ""
  // The first line identifies the device; the person types the others.
  const first = FIRST_LINE[device.auth]
  const identified = first === undefined ? "" : `(${first}; cat) | `
  const own = device.auth === "mtls" ? " -cert <device>.crt -key <device>.key" : ""
  return {
    page,
    ...(config.amqp === null ? { lines: `curl -N ${token}${page}messages` } : {}),
    ...(canType ? { device: `${identified}${OPENSSL} ${host}:${devicePort}${ca}${own}` } : {}),
    command,
  }
}

/** One line for each address, for a person. */
export function addressesText(addresses: Addresses): string {
  const lines = Object.entries({ ...addresses, check: "bun run doctor" })
  return lines.map(([name, value]) => `    ${name.padEnd(8)} ${value}`).join("\n")
}

/** An address that a program on this machine can connect to. */
function reachable(host: string): string {
  if (host === "0.0.0.0") return "127.0.0.1"
  if (host === "::") return "[::1]"
  return host.includes(":") ? `[${host}]` : host
}

function isAnywhere(host: string): boolean {
  return host === "0.0.0.0" || host === "::"
}
