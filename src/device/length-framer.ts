/**
 * The framer of `DEVICE_FRAMING=u16` and `u32`. A big-endian length of 2 or 4 bytes precedes each
 * line. It counts the bytes of the line without itself. All bytes of the line are opaque.
 *
 *   length │ line
 *   00 05  │ 68 65 6c 6c 6f       "hello" with u16
 *
 * Pure; see `framer.ts`. Bound: an unfinished line holds at most `maxLineBytes` and its length. A
 * length above `maxLineBytes` is refused before the line arrives. No memory is reserved for a line
 * that was only announced.
 */

import { Framer, LineTooLong } from "./framer.ts"

export class LengthFramer extends Framer {
  readonly #lengthBytes: 2 | 4

  constructor(lengthBytes: 2 | 4, maxLineBytes: number) {
    super(maxLineBytes)
    this.#lengthBytes = lengthBytes
  }

  next(): Uint8Array | null {
    const { chunk, position: start, partialBytes, heldBytes } = this
    const lengthBytes = this.#lengthBytes
    if (start === chunk.length) return null
    if (heldBytes < lengthBytes) {
      this.keep(lengthBytes + this.maxLineBytes)
      return null
    }
    const lineBytes = this.#readLength()
    if (lineBytes > this.maxLineBytes) {
      throw new LineTooLong(lineBytes, this.maxLineBytes, heldBytes)
    }
    const frameBytes = lengthBytes + lineBytes
    if (heldBytes < frameBytes) {
      this.keep(frameBytes)
      return null
    }
    const end = start + frameBytes - partialBytes
    this.position = end
    // Bytes of the length may be in the unfinished line, in the chunk, or in both.
    const lineStart = start + Math.max(0, lengthBytes - partialBytes)
    const line =
      partialBytes === 0
        ? chunk.slice(lineStart, end)
        : this.finishPartial(lengthBytes, lineStart, end)
    if (end === chunk.length) this.release()
    return line
  }

  #readLength(): number {
    let length = 0
    // Not by shifts: these would make a length of 2 GiB negative.
    for (let index = 0; index < this.#lengthBytes; index += 1) {
      length = length * 256 + (this.heldByte(index) ?? 0)
    }
    return length
  }
}
