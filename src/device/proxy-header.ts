/**
 * Reads the header of the PROXY protocol, versions 1 and 2, which a proxy sends before the bytes of
 * the client it stands for. Source: "The PROXY protocol", HAProxy, doc/proxy-protocol.txt.
 *
 *   PROXY TCP4 192.0.2.1 198.51.100.7 41000 443\r\n        version 1: text, at most 107 bytes
 *   signature (12), version and command, family,
 *   length (2), addresses, TLVs                            version 2: binary
 *
 *   parse ─┬─ incomplete: more bytes are needed
 *          ├─ header: its length, the command, the client's address or null
 *          └─ invalid: what is wrong
 *
 * The address is null where the header names none: UNKNOWN, LOCAL (health checks of the proxy
 * itself), an unspecified family, a Unix socket. Then the address of the socket stands. TLVs are
 * skipped; their checksum is not verified, as TCP has one.
 *
 * Pure. Bound: `MAX_HEADER_BYTES`.
 */

import { isIPv4, isIPv6 } from "node:net"
import { normalAddress } from "./address.ts"

export type ProxyHeader =
  | { readonly kind: "incomplete" }
  | {
      readonly kind: "header"
      readonly bytes: number
      /** True when the proxy connects for itself. */
      readonly isLocal: boolean
      /** As `normalAddress` returns it. */
      readonly address: string | null
    }
  | { readonly kind: "invalid"; readonly detail: string }

const V1_PREFIX = Buffer.from("PROXY ")
const MAX_V1_BYTES = 107
const V2_SIGNATURE = Buffer.from("\r\n\r\n\0\r\nQUIT\n", "latin1")
const V2_FIXED_BYTES = 16
/** Senders' TLVs take some hundred bytes; a header may announce up to 64 KiB of them. */
const MAX_V2_BODY_BYTES = 4_096
export const MAX_HEADER_BYTES = V2_FIXED_BYTES + MAX_V2_BODY_BYTES

const VERSION_2 = 2
const LOCAL = 0
const PROXY = 1
/** Upper half: family, lower half: transport. */
const FAMILIES: ReadonlyMap<number, { readonly addressBytes: number; readonly bodyBytes: number }> =
  new Map([
    [0x11, { addressBytes: 4, bodyBytes: 12 }],
    [0x21, { addressBytes: 16, bodyBytes: 36 }],
    // An unspecified family and Unix sockets have no address of use here.
    [0x00, { addressBytes: 0, bodyBytes: 0 }],
    [0x31, { addressBytes: 0, bodyBytes: 216 }],
  ])

const INCOMPLETE: ProxyHeader = { kind: "incomplete" }

/** @param bytes what the peer has sent so far, from its first byte. */
export function parseProxyHeader(bytes: Uint8Array): ProxyHeader {
  if (bytes.length === 0) return INCOMPLETE
  if (startsLike(bytes, V1_PREFIX)) return bytes.length < V1_PREFIX.length ? INCOMPLETE : v1(bytes)
  if (!startsLike(bytes, V2_SIGNATURE))
    return invalid("the connection does not start with a PROXY header")
  return bytes.length < V2_FIXED_BYTES ? INCOMPLETE : v2(bytes)
}

/** Whether one is the beginning of the other. */
function startsLike(bytes: Uint8Array, expected: Uint8Array): boolean {
  const length = Math.min(bytes.length, expected.length)
  for (let at = 0; at < length; at += 1) if (bytes[at] !== expected[at]) return false
  return true
}

function v1(bytes: Uint8Array): ProxyHeader {
  const head = Buffer.from(bytes.subarray(0, MAX_V1_BYTES)).toString("latin1")
  const end = head.indexOf("\r\n")
  if (end === -1) {
    if (bytes.length < MAX_V1_BYTES) return INCOMPLETE
    return invalid(`a PROXY header of version 1 without CRLF in its first ${MAX_V1_BYTES} bytes`)
  }
  const [family, source = "", destination = "", ...ports] = head.slice(6, end).split(" ")
  const found = (address: string | null): ProxyHeader => ({
    kind: "header",
    ...{ bytes: end + 2, isLocal: false, address },
  })
  // Anything may follow UNKNOWN.
  if (family === "UNKNOWN") return found(null)
  const isAddress = family === "TCP4" ? isIPv4 : family === "TCP6" ? isIPv6 : null
  if (isAddress === null)
    return invalid("a PROXY header of version 1 for another protocol than TCP4, TCP6")
  if (!isAddress(source) || !isAddress(destination) || source.includes("%")) {
    return invalid(`a PROXY header of version 1 with addresses that are not ${family}`)
  }
  if (ports.length !== 2 || !ports.every(isPort)) {
    return invalid("a PROXY header of version 1 with ports that are not valid")
  }
  return found(normalAddress(source))
}

function isPort(text: string): boolean {
  return /^(0|[1-9][0-9]{0,4})$/.test(text) && Number(text) <= 65_535
}

function v2(bytes: Uint8Array): ProxyHeader {
  const [versionAndCommand = 0, family = 0, high = 0, low = 0] = bytes.subarray(12, V2_FIXED_BYTES)
  const [version, command] = [versionAndCommand >> 4, versionAndCommand & 0x0f]
  if (version !== VERSION_2) return invalid(`unsupported PROXY header version ${version}`)
  if (command !== LOCAL && command !== PROXY)
    return invalid(`unknown command ${command} in the PROXY header`)
  const bodyBytes = high * 256 + low
  if (bodyBytes > MAX_V2_BODY_BYTES) {
    return invalid(`a PROXY header of ${bodyBytes} bytes, at most ${MAX_V2_BODY_BYTES} are allowed`)
  }
  const layout = FAMILIES.get(family)
  const isLocal = command === LOCAL
  // The family of a LOCAL header has no meaning.
  if (!isLocal) {
    if (layout === undefined)
      return invalid(`unsupported address family and transport ${family} in the PROXY header`)
    if (bodyBytes < layout.bodyBytes)
      return invalid("the PROXY header is too short for its addresses")
  }
  if (bytes.length < V2_FIXED_BYTES + bodyBytes) return INCOMPLETE
  const addressBytes = isLocal ? 0 : (layout?.addressBytes ?? 0)
  const source = bytes.subarray(V2_FIXED_BYTES, V2_FIXED_BYTES + addressBytes)
  return {
    kind: "header",
    bytes: V2_FIXED_BYTES + bodyBytes,
    isLocal,
    address: addressBytes === 0 ? null : addressOf(source),
  }
}

/** @param bytes 4 or 16, in network order. */
function addressOf(bytes: Uint8Array): string | null {
  if (bytes.length === 4) return bytes.join(".")
  const words: string[] = []
  for (let at = 0; at < 16; at += 2) {
    words.push(((bytes[at] ?? 0) * 256 + (bytes[at + 1] ?? 0)).toString(16))
  }
  return normalAddress(words.join(":"))
}

function invalid(detail: string): ProxyHeader {
  return { kind: "invalid", detail }
}
