/**
 * The framing: what delimits lines on the wire, in both directions. `DEVICE_FRAMING` sets it.
 *
 *   line   the line, LF               from a device, one CR before the LF is removed
 *   u16    length of 2 bytes, the line
 *   u32    length of 4 bytes, the line
 *
 * Lengths are big-endian and count the bytes of the line without themselves. With a length all
 * bytes of a line are opaque, so it may contain LF and CR.
 *
 * Pure. Here framings are chosen; framers read lines, and `writeLine` writes them.
 */

import type { Framer } from "./framer.ts"
import { LengthFramer } from "./length-framer.ts"
import { LineFramer } from "./line-framer.ts"

const LF = 10

export const FRAMINGS = ["line", "u16", "u32"] as const
export type Framing = (typeof FRAMINGS)[number]

export interface LineFormat {
  readonly framing: Framing
  /** The longest line in either direction, without LF or length. */
  readonly maxLineBytes: number
}

/** Bytes that each framing adds to a line: LF or the length. */
export const OVERHEAD_BYTES = { line: 1, u16: 2, u32: 4 } as const

/** The longest line that each framing can carry. */
export const MAX_FRAMED_BYTES: Readonly<Record<Framing, number>> = {
  line: Number.POSITIVE_INFINITY,
  u16: 0xffff,
  u32: 0xffff_ffff,
}

export function makeFramer({ framing, maxLineBytes }: LineFormat): Framer {
  switch (framing) {
    case "line":
      return new LineFramer(maxLineBytes)
    case "u16":
    case "u32":
      return new LengthFramer(OVERHEAD_BYTES[framing], maxLineBytes)
  }
}

/** The bytes of a line on the wire, with its LF or length. */
export function framedLine(framing: Framing, line: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(line.length + OVERHEAD_BYTES[framing])
  writeLine(framing, line, bytes, 0)
  return bytes
}

/**
 * Writes a line to `target` from `at` on, with its LF or length.
 * @returns the number of bytes: `line.length + OVERHEAD_BYTES[framing]`.
 */
export function writeLine(
  framing: Framing,
  line: Uint8Array,
  target: Uint8Array,
  at: number,
): number {
  const overheadBytes = OVERHEAD_BYTES[framing]
  if (framing === "line") {
    target.set(line, at)
    target[at + line.length] = LF
  } else {
    for (let index = 0; index < overheadBytes; index += 1) {
      // A Uint8Array keeps the lowest byte of a number.
      target[at + index] = line.length >>> (8 * (overheadBytes - 1 - index))
    }
    target.set(line, at + overheadBytes)
  }
  return line.length + overheadBytes
}
