/**
 * The keys by which workers of a fleet authenticate their messages. Both are derived from the
 * fleet's secret.
 *
 *   secret ── HKDF (RFC 5869) ─┬─► MAC key: HMAC-SHA256 (RFC 2104) of each fleet message, in the header `owsla-mac`
 *                              └─► command key: the header `owsla-member` of each command that a worker forwards
 *
 * A back-end that may publish to the default exchange can publish to every queue. So only a message
 * with one of these headers is accepted as a member's. A user that can read the workers' queues can
 * read the command key; permissions at the broker must prevent that. A MAC for each forwarded
 * command was rejected: two more HMACs cost 3 % of the time of such a command and give no
 * additional protection.
 */

import { hkdfSync, timingSafeEqual } from "node:crypto"
import type { HeaderValue, MessageProperties } from "../broker/broker.ts"
import { MEMBER_HEADER } from "../commands/command-message.ts"

/** Its value is the base64url encoding of the HMAC-SHA256 of the body. */
export const MAC_HEADER = "owsla-mac"

const OWN_PREFIX = "owsla-"
const MAC_KEY_BYTES = 32
const COMMAND_KEY_BYTES = 16
const MAC_BYTES = 32

export class FleetKeys {
  readonly #macKey: Uint8Array
  /** The value of `owsla-member` on forwarded commands. */
  readonly commandKey: string

  /** @param secret the same for all instances on one broker. */
  constructor(secret: string) {
    this.#macKey = derived(secret, "owsla fleet messages 1", MAC_KEY_BYTES)
    const commandKey = derived(secret, "owsla forwarded commands 1", COMMAND_KEY_BYTES)
    this.commandKey = Buffer.from(commandKey).toString("base64url")
  }

  /** The value of `owsla-mac` for a message with this body. */
  mac(body: Uint8Array): string {
    return this.#hmac(body).toString("base64url")
  }

  /**
   * Whether this `owsla-mac` is valid for the body. For a MAC of the right length the time depends
   * on the body only.
   */
  verifies(body: Uint8Array, mac: HeaderValue): boolean {
    if (typeof mac !== "string") return false
    const shown = Buffer.from(mac, "base64url")
    return shown.length === MAC_BYTES && timingSafeEqual(shown, this.#hmac(body))
  }

  /**
   * Removes the internal headers (`owsla-*`) from a message that no member has sent, so that they
   * have no effect and are not forwarded.
   *
   * @returns whether a member has sent the message.
   */
  admit({ headers }: MessageProperties): boolean {
    if (headers === undefined) return false
    if (this.#isCommandKey(headers[MEMBER_HEADER])) return true
    removeOwnHeaders(headers)
    return false
  }

  #hmac(body: Uint8Array): Buffer {
    return new Bun.CryptoHasher("sha256", this.#macKey).update(body).digest()
  }

  /**
   * Compares in constant time. `timingSafeEqual` was rejected: it needs two buffers for each
   * command.
   */
  #isCommandKey(value: HeaderValue): boolean {
    const known = this.commandKey
    if (typeof value !== "string" || value.length !== known.length) return false
    let difference = 0
    for (let at = 0; at < known.length; at += 1) {
      difference |= known.charCodeAt(at) ^ value.charCodeAt(at)
    }
    return difference === 0
  }
}

function removeOwnHeaders(headers: Record<string, HeaderValue>): void {
  for (const name in headers) if (name.startsWith(OWN_PREFIX)) delete headers[name]
}

function derived(secret: string, purpose: string, bytes: number): Uint8Array {
  return new Uint8Array(hkdfSync("sha256", secret, "", purpose, bytes))
}
