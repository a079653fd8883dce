/**
 * `HELLO <device id> <proof>`: with `DEVICE_AUTH=hello`, the first line by which a device
 * identifies itself. The proof is HMAC-SHA256(secret, device id) in hexadecimal. Several secrets
 * are accepted, so that they can be rotated.
 *
 * All secrets are compared, each in constant time, even after one has matched. Bound: a first line
 * of `MAX_HELLO_BYTES` bytes without its LF or length.
 */

import { createHmac, timingSafeEqual } from "node:crypto"
import { isDeviceName } from "./ids.ts"

/**
 * The longest valid line has 199 bytes: "HELLO", an id of 128, a proof of 64 and two spaces.
 */
export const MAX_HELLO_BYTES = 199

const HELLO = /^HELLO ([A-Za-z0-9._:-]{1,128}) ([0-9A-Fa-f]{64})$/

export type HelloVerdict =
  | { readonly kind: "proven"; readonly deviceId: string }
  /** The line does not have the form of a HELLO. */
  | { readonly kind: "malformed" }
  /** The proof is wrong or the device id is not valid. */
  | { readonly kind: "refused"; readonly deviceId: string }

export function verifyHello(line: string, secrets: readonly string[]): HelloVerdict {
  const [, deviceId, proof] = HELLO.exec(line) ?? []
  if (deviceId === undefined || proof === undefined) return { kind: "malformed" }
  const shown = Buffer.from(proof, "hex")
  let proven = false
  for (const secret of secrets) {
    if (timingSafeEqual(shown, digest(deviceId, secret))) proven = true
  }
  if (!proven || !isDeviceName(deviceId)) return { kind: "refused", deviceId }
  return { kind: "proven", deviceId }
}

/** The HELLO line of a device, without LF or length. */
export function helloLine(deviceId: string, secret: string): string {
  return `HELLO ${deviceId} ${digest(deviceId, secret).toString("hex")}`
}

function digest(deviceId: string, secret: string): Buffer {
  return createHmac("sha256", secret).update(deviceId).digest()
}
