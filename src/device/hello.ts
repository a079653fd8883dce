/**
 * `HELLO <device id> <proof>`: how a device says who it is in its first line, with `DEVICE_AUTH=hello`.
 * The proof is HMAC-SHA256(secret, device id) in hexadecimal; any of several secrets counts, so that
 * they can be rotated.
 *
 * Every secret is tried and compared in constant time, whichever of them fits. Bound: a first line of
 * `MAX_HELLO_BYTES`, its terminator not counted.
 */

import { createHmac, timingSafeEqual } from "node:crypto"
import { isDeviceName } from "./ids.ts"

/** The longest that can be right is "HELLO", an id of 128, a proof of 64, two spaces and a CR. */
export const MAX_HELLO_BYTES = 200

const LF = 10
const HELLO = /^HELLO ([A-Za-z0-9._:-]{1,128}) ([0-9A-Fa-f]{64})\r?$/

export type HelloVerdict =
  | { readonly kind: "proven"; readonly deviceId: string }
  /** No hello at all. */
  | { readonly kind: "malformed" }
  /** A hello whose proof is wrong, or that names what no device may be called. */
  | { readonly kind: "refused"; readonly deviceId: string }

export function verifyHello(line: string, secrets: readonly string[]): HelloVerdict {
  const [, deviceId, proof] = HELLO.exec(line) ?? []
  if (deviceId === undefined || proof === undefined) return { kind: "malformed" }
  const told = Buffer.from(proof, "hex")
  let proven = false
  for (const secret of secrets) {
    if (timingSafeEqual(told, digest(deviceId, secret))) proven = true
  }
  if (!proven || !isDeviceName(deviceId)) return { kind: "refused", deviceId }
  return { kind: "proven", deviceId }
}

/** The line that proves `deviceId`, without terminator. */
export function helloLine(deviceId: string, secret: string): string {
  return `HELLO ${deviceId} ${digest(deviceId, secret).toString("hex")}`
}

function digest(deviceId: string, secret: string): Buffer {
  return createHmac("sha256", secret).update(deviceId).digest()
}

/** The first line of one connection, as its bytes come. */
export class FirstLine {
  #bytes = ""

  /** The line and what came after it; null while it is unfinished, "too_long" when it can't be one. */
  push(chunk: Uint8Array): { line: string; rest: Uint8Array } | "too_long" | null {
    const end = chunk.indexOf(LF)
    const part = end === -1 ? chunk : chunk.subarray(0, end)
    if (this.#bytes.length + part.length > MAX_HELLO_BYTES) return "too_long"
    // One character a byte: whatever is not ASCII fits no hello.
    this.#bytes += Buffer.from(part.buffer, part.byteOffset, part.length).toString("latin1")
    return end === -1 ? null : { line: this.#bytes, rest: chunk.subarray(end + 1) }
  }
}
