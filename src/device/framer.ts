/**
 * The framer: splits chunks of bytes into lines. This is the first stage that a line passes after
 * TLS.
 *
 * A line ends with LF. One CR before the LF is removed; all other bytes are opaque. Each call
 * returns one line, so that the caller can stop in the middle of a chunk while the window is full.
 * The rest of the chunk waits here unparsed.
 *
 *   push(chunk) ─► next() ─► line … line ─► null       (null: needs more bytes)
 *                       └──► throws LineTooLong        (after that the framer must not be used)
 *
 * Pure: no socket, no clock. Never decodes or trims. Bounds: an unfinished line holds at most
 * `maxLineBytes` + 1 bytes (the last one is a CR that may be removed), and `unfinished-lines.ts`
 * bounds the sum over all devices. The owner pauses its socket while the framer is not `drained`,
 * which bounds the bytes that are pushed and not taken.
 */

const LF = 10
const CR = 13
const EMPTY = new Uint8Array(0)
const FIRST_PARTIAL_BYTES = 256

export class LineTooLong extends Error {
  override readonly name = "LineTooLong"
  /** Bytes that were pushed and are discarded with the line. */
  readonly discardedBytes: number

  constructor(lineBytes: number, maxLineBytes: number, discardedBytes: number) {
    super(`a line has ${lineBytes} bytes or more, at most ${maxLineBytes} are allowed`)
    this.discardedBytes = discardedBytes
  }
}

export class Framer {
  readonly #maxLineBytes: number
  /** The bytes that were pushed and not taken start at `#position`. */
  #chunk: Uint8Array = EMPTY
  #position = 0
  /**
   * The buffer of the unfinished line. It grows by doubling. Null while there is no unfinished
   * line.
   */
  #partial: Uint8Array | null = null
  #partialBytes = 0

  constructor(maxLineBytes: number) {
    this.#maxLineBytes = maxLineBytes
  }

  /** True when each pushed byte was returned in a line or belongs to the unfinished line. */
  get drained(): boolean {
    return this.#position === this.#chunk.length
  }

  /** Bytes that were pushed and not returned in a line. */
  get heldBytes(): number {
    return this.#chunk.length - this.#position + this.#partialBytes
  }

  /** Bytes of the unfinished line, without unparsed ones. */
  get partialBytes(): number {
    return this.#partialBytes
  }

  push(chunk: Uint8Array): void {
    // `slice` of a Buffer returns a view, `slice` of a Uint8Array a copy. Lines must be copies.
    const bytes = new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.length)
    this.#chunk = this.drained ? bytes : join(this.#chunk.subarray(this.#position), bytes)
    this.#position = 0
  }

  /**
   * The next line without its terminator, possibly empty; null when more bytes are needed. The line
   * is a copy, so that keeping it does not keep its chunk of 80 KiB in memory.
   * @throws LineTooLong when a finished or unfinished line has more than `maxLineBytes` bytes.
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
