/**
 * What the members of a fleet recognise each other by, derived from one secret that all of them have.
 *
 *   secret ── HKDF (RFC 5869) ─┬─► MAC key: HMAC-SHA256 (RFC 2104) of each fleet message, in `owsla-mac`
 *                              └─► command key: `owsla-member` on each command that a worker forwards
 *
 * A back-end that may publish through the default exchange can publish to every queue, so a message is a member's only
 * when it carries one of these. Whoever can read the queues of the workers can read the command key too: the broker's
 * permissions keep others from reading. A MAC of each forwarded command was rejected: two more HMACs cost 3 % of such a
 * command, and protect against nobody else.
 */

import { hkdfSync, timingSafeEqual } from "node:crypto"
import type { HeaderValue, MessageProperties } from "../broker/broker.ts"
import { MEMBER_HEADER } from "../commands/command-message.ts"

/** Base64url of the HMAC-SHA256 of the body. */
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

  /** Whether a member has made this `owsla-mac` for this body. For a value of the right length the time depends on the body alone. */
  verifies(body: Uint8Array, mac: HeaderValue): boolean {
    if (typeof mac !== "string") return false
    const shown = Buffer.from(mac, "base64url")
    return shown.length === MAC_BYTES && timingSafeEqual(shown, this.#hmac(body))
  }

  /**
   * Removes the headers that only members may set from the message of anybody else, so that none of them is acted on or
   * passed on.
   *
   * @returns whether a member has sent it.
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

  /** In constant time, without the buffers that `timingSafeEqual` needs: it is asked for each command. */
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
