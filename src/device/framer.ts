/**
 * Framing: chunks of bytes in, lines out. The first stage of a line's way after TLS.
 *
 * A line ends in LF; one CR before it is dropped; all else is opaque bytes. The framer hands out one
 * line a call, so that its caller can stop in the middle of a chunk while the window is full and the
 * rest waits here as it came, unparsed.
 *
 *   push(chunk) ─► next() ─► line … line ─► null       (null: needs more bytes)
 *                       └──► throws LineTooLong        (once; then the framer is spent)
 *
 * Pure: no socket, no clock. Never decodes or trims. Bounds: an unfinished line holds at most
 * `maxLineBytes` + 1 bytes (the 1 is a CR that may yet be dropped), those of all devices together
 * what `unfinished-lines.ts` allows; what is pushed and not yet taken
 * is bounded by the socket, which its owner pauses while the framer is not `drained`.
 */

const LF = 10
const CR = 13
const EMPTY = new Uint8Array(0)
const FIRST_PARTIAL_BYTES = 256

export class LineTooLong extends Error {
  override readonly name = "LineTooLong"
  /** The bytes that were pushed and are discarded with the line. */
  readonly discardedBytes: number

  constructor(lineBytes: number, maxLineBytes: number, discardedBytes: number) {
    super(`a line of ${lineBytes} bytes or more, at most ${maxLineBytes}`)
    this.discardedBytes = discardedBytes
  }
}

export class Framer {
  readonly #maxLineBytes: number
  /** What has been pushed and not yet been taken begins at `#position` of `#chunk`. */
  #chunk: Uint8Array = EMPTY
  #position = 0
  /** The beginning of a line whose end has not come; grown by doubling, null while there is none. */
  #partial: Uint8Array | null = null
  #partialBytes = 0

  constructor(maxLineBytes: number) {
    this.#maxLineBytes = maxLineBytes
  }

  /** True when every pushed byte was taken as part of a line or kept as the beginning of one. */
  get drained(): boolean {
    return this.#position === this.#chunk.length
  }

  /** Bytes pushed that are not yet part of a line that was handed out. */
  get heldBytes(): number {
    return this.#chunk.length - this.#position + this.#partialBytes
  }

  /** Bytes of the line whose end has not come, as far as they were looked at. */
  get partialBytes(): number {
    return this.#partialBytes
  }

  push(chunk: Uint8Array): void {
    // A Buffer's slice is a view, a Uint8Array's a copy; lines must be copies.
    const bytes = new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.length)
    this.#chunk = this.drained ? bytes : join(this.#chunk.subarray(this.#position), bytes)
    this.#position = 0
  }

  /**
   * The next line without its terminator, possibly empty, or null when more bytes are needed.
   * The line is a copy: keeping one does not keep the chunk of 80 KiB that it came in.
   * @throws LineTooLong when the line, finished or not, holds more than `maxLineBytes`.
   */
  next(): Uint8Array | null {
    const heldBytes = this.heldBytes
    const chunk = this.#chunk
    const start = this.#position
    if (start === chunk.length) return null
    const end = chunk.indexOf(LF, start)
    if (end === -1) {
      this.#keep(chunk, start)
      return null
    }
    this.#position = end + 1
    const line =
      this.#partialBytes === 0
        ? chunk.slice(start, withoutCr(chunk, start, end))
        : this.#finishPartial(chunk, start, end)
    if (this.#position === chunk.length) this.#release()
    if (line.length > this.#maxLineBytes) {
      throw new LineTooLong(line.length, this.#maxLineBytes, heldBytes)
    }
    return line
  }

  #release(): void {
    this.#chunk = EMPTY
    this.#position = 0
  }

  #keep(chunk: Uint8Array, start: number): void {
    const tail = chunk.subarray(start)
    const bytes = this.#partialBytes + tail.length
    const certain = tail[tail.length - 1] === CR ? bytes - 1 : bytes
    this.#release()
    if (certain > this.#maxLineBytes) throw new LineTooLong(certain, this.#maxLineBytes, bytes)
    if (this.#partial === null || this.#partial.length < bytes) {
      const capacity = Math.max(FIRST_PARTIAL_BYTES, (this.#partial?.length ?? 0) * 2, bytes)
      const grown = new Uint8Array(Math.min(capacity, Math.max(bytes, this.#maxLineBytes + 1)))
      if (this.#partial !== null) grown.set(this.#partial.subarray(0, this.#partialBytes))
      this.#partial = grown
    }
    this.#partial.set(tail, this.#partialBytes)
    this.#partialBytes = bytes
  }

  #finishPartial(chunk: Uint8Array, start: number, end: number): Uint8Array {
    const whole = new Uint8Array(this.#partialBytes + end - start)
    if (this.#partial !== null) whole.set(this.#partial.subarray(0, this.#partialBytes))
    whole.set(chunk.subarray(start, end), this.#partialBytes)
    this.#partial = null
    this.#partialBytes = 0
    const length = withoutCr(whole, 0, whole.length)
    return length === whole.length ? whole : whole.subarray(0, length)
  }
}

function withoutCr(bytes: Uint8Array, start: number, end: number): number {
  return end > start && bytes[end - 1] === CR ? end - 1 : end
}

function join(a: Uint8Array, b: Uint8Array): Uint8Array {
  const joined = new Uint8Array(a.length + b.length)
  joined.set(a)
  joined.set(b, a.length)
  return joined
}
