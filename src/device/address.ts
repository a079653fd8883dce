/**
 * Network addresses of peers in one spelling, and the groups of addresses that one peer can choose
 * from. Pure.
 */

import { BlockList, isIP, isIPv4, isIPv6 } from "node:net"

const MAPPED = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i

/**
 * The address in its usual spelling: an IPv4 address that a socket for IPv6 reports
 * (`::ffff:192.0.2.1`) as IPv4, IPv6 as RFC 5952 writes it, without a zone.
 * @returns null when the text is not an address.
 */
export function normalAddress(text: string): string | null {
  if (isIPv4(text)) return text
  const mapped = MAPPED.exec(text)?.[1]
  if (mapped !== undefined) return isIPv4(mapped) ? mapped : null
  const address = text.replace(/%.*$/, "")
  if (!isIPv6(address)) return null
  // The parser of URLs knows all spellings and writes one (WHATWG URL, "IPv6 serializer").
  const usual = new URL(`http://[${address}]`).hostname.slice(1, -1)
  const words = /^::ffff:([0-9a-f]+):([0-9a-f]+)$/.exec(usual)
  if (words === null) return usual
  const [high, low] = [Number.parseInt(words[1] ?? "", 16), Number.parseInt(words[2] ?? "", 16)]
  return [high >> 8, high & 255, low >> 8, low & 255].join(".")
}

/**
 * What limits by address count as one: an IPv4 address, or the /64 of an IPv6 address, since one
 * peer usually has a whole /64.
 * @param address as `normalAddress` returns it.
 */
export function addressGroup(address: string): string {
  if (!address.includes(":")) return address
  const [before = "", after = ""] = address.split("::")
  const head = before === "" ? [] : before.split(":")
  const tail = after === "" ? [] : after.split(":")
  const zeros = Array<string>(8 - head.length - tail.length).fill("0")
  const words = address.includes("::") ? [...head, ...zeros, ...tail] : head
  return `${words.slice(0, 4).join(":")}::/64`
}

/** @returns the rule that the text violates as a CIDR block or an address; null when it is one. */
export function cidrFault(text: string): string | null {
  const { address, bits } = split(text)
  const family = isIP(address)
  const widest = family === 4 ? 32 : 128
  if (family === 0 || bits === null || bits > widest) return `must be ${CIDR_RANGE}`
  return null
}

export const CIDR_RANGE = "an address or a block, such as 10.0.0.0/8 or fd00::/8"

/** A set of addresses. */
export class AddressBlocks {
  readonly #blocks = new BlockList()

  /** @param texts each valid for `cidrFault`. */
  constructor(texts: readonly string[]) {
    for (const text of texts) {
      const { address, bits } = split(text)
      const family = isIP(address)
      this.#blocks.addSubnet(
        address,
        bits ?? (family === 4 ? 32 : 128),
        family === 4 ? "ipv4" : "ipv6",
      )
    }
  }

  /** @param address as `normalAddress` returns it. */
  has(address: string): boolean {
    return this.#blocks.check(address, isIPv4(address) ? "ipv4" : "ipv6")
  }
}

/** @returns bits: the full width by default; null when the text after `/` is not a number. */
function split(text: string): { address: string; bits: number | null } {
  const [address = "", bits, ...more] = text.split("/")
  if (bits === undefined) return { address, bits: isIP(address) === 4 ? 32 : 128 }
  const isNumber = /^(0|[1-9][0-9]{0,2})$/.test(bits) && more.length === 0
  return { address, bits: isNumber ? Number(bits) : null }
}
