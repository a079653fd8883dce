/**
 * Strings for bytes that are not UTF-8: each such byte is escaped as a lone surrogate, U+DC80 to
 * U+DCFF, which valid UTF-8 never contains. This is Python's "surrogateescape" (PEP 383). So a
 * `correlation_id` or the name of a queue of any bytes can be compared and stored as a string, and
 * is sent as the same bytes.
 *
 * Rejected: Latin-1, which would misread ids in UTF-8; U+FFFD, which would make different ids
 * equal. The string has at most one character a byte.
 */

const ESCAPE = 0xdc00
const ESCAPED = /[\udc80-\udcff]/gu

/** The text of bytes that may not be UTF-8. */
export function escapeBytes(bytes: Uint8Array): string {
  let text = ""
  let from = 0
  for (let at = 0; at < bytes.length; ) {
    const length = sequenceLength(bytes, at)
    if (length > 0) {
      at += length
      continue
    }
    text += utf8(bytes, from, at) + String.fromCharCode(ESCAPE + (bytes[at] as number))
    at += 1
    from = at
  }
  return text + utf8(bytes, from, bytes.length)
}

/** The bytes of a text; surrogates that are not escapes become U+FFFD. */
export function unescapeBytes(text: string): Uint8Array {
  const parts: Uint8Array[] = []
  let from = 0
  for (const { 0: escaped, index } of text.matchAll(ESCAPED)) {
    parts.push(Buffer.from(text.slice(from, index)), Uint8Array.of(escaped.charCodeAt(0) - ESCAPE))
    from = index + 1
  }
  return Buffer.concat([...parts, Buffer.from(text.slice(from))])
}

function utf8(bytes: Uint8Array, from: number, to: number): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset + from, to - from).toString()
}

/**
 * Bytes of the UTF-8 sequence at `at`, 0 when it is not valid (RFC 3629: not overlong, not a
 * surrogate, not over U+10FFFF).
 */
function sequenceLength(bytes: Uint8Array, at: number): number {
  const first = bytes[at] as number
  if (first < 0x80) return 1
  if (first < 0xc2 || first > 0xf4) return 0
  const length = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4
  const second = bytes[at + 1] ?? 0
  const min = first === 0xe0 ? 0xa0 : first === 0xf0 ? 0x90 : 0x80
  const max = first === 0xed ? 0x9f : first === 0xf4 ? 0x8f : 0xbf
  if (second < min || second > max) return 0
  for (let i = 2; i < length; i += 1) if (((bytes[at + i] ?? 0) & 0xc0) !== 0x80) return 0
  return length
}
