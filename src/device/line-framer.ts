/**
 * The framer of `DEVICE_FRAMING=line`. A line ends with LF. One CR before the LF is removed; all
 * other bytes are opaque.
 *
 * Pure; see `framer.ts`. Bound: an unfinished line holds at most `maxLineBytes` + 1 bytes. The last
 * one is a CR that may be removed.
 */

import { Framer, LineTooLong } from "./framer.ts"

const LF = 10
const CR = 13

export class LineFramer extends Framer {
  next(): Uint8Array | null {
    const heldBytes = this.heldBytes
    const chunk = this.chunk
    const start = this.position
    if (start === chunk.length) return null
    const end = chunk.indexOf(LF, start)
    if (end === -1) {
      const certain = chunk[chunk.length - 1] === CR ? heldBytes - 1 : heldBytes
      if (certain > this.maxLineBytes) throw new LineTooLong(certain, this.maxLineBytes, heldBytes)
      this.keep(this.maxLineBytes + 1)
      return null
    }
    this.position = end + 1
    const line =
      this.partialBytes === 0
        ? chunk.slice(start, withoutCr(chunk, start, end))
        : this.#finish(start, end)
    if (this.position === chunk.length) this.release()
    if (line.length > this.maxLineBytes) {
      throw new LineTooLong(line.length, this.maxLineBytes, heldBytes)
    }
    return line
  }

  #finish(start: number, end: number): Uint8Array {
    const whole = this.finishPartial(0, start, end)
    const length = withoutCr(whole, 0, whole.length)
    return length === whole.length ? whole : whole.subarray(0, length)
  }
}

function withoutCr(bytes: Uint8Array, start: number, end: number): number {
  return end > start && bytes[end - 1] === CR ? end - 1 : end
}
