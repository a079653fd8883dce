/**
 * Texts that come again and again in frames: names of headers, queues and consumers, ids of connections. Each is
 * made once; the client would make a `Buffer` and a string for each of the 15 in a command. Bytes that are not UTF-8
 * are kept as escapes (`escaped-text.ts`).
 *
 * Pure. Bound: `SLOTS` texts of `MAX_BYTES`; a newer one takes the slot of an older.
 */

import { escapeBytes } from "./escaped-text.ts"

const SLOTS = 4_096
const MAX_BYTES = 64

export class StringCache {
  readonly #known: (string | undefined)[] = new Array(SLOTS)

  /** The text in UTF-8 at `at`. */
  read(frame: Uint8Array, at: number, bytes: number): string {
    if (bytes > MAX_BYTES) return decode(frame, at, bytes)
    let hash = bytes
    for (let i = 0; i < bytes; i += 1) hash = (Math.imul(hash, 31) + (frame[at + i] as number)) | 0
    // The upper bits have seen all the bytes, the lower ones hardly the first.
    const slot = (hash ^ (hash >>> 15)) & (SLOTS - 1)
    const known = this.#known[slot]
    if (known !== undefined && isAt(frame, at, bytes, known)) return known
    const text = decode(frame, at, bytes)
    if (text.length === bytes) this.#known[slot] = text
    return text
  }
}

/** Only of ASCII is a code a byte; of others no byte, being over 127, equals the code of an ASCII text. */
function isAt(frame: Uint8Array, at: number, bytes: number, text: string): boolean {
  if (text.length !== bytes) return false
  for (let i = 0; i < bytes; i += 1) if (frame[at + i] !== text.charCodeAt(i)) return false
  return true
}

function decode(frame: Uint8Array, at: number, bytes: number): string {
  const text = Buffer.from(frame.buffer, frame.byteOffset + at, bytes).toString()
  // U+FFFD: in place of bytes that are not UTF-8, or part of the text itself.
  return text.includes("\ufffd") ? escapeBytes(frame.subarray(at, at + bytes)) : text
}
