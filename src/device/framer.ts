/**
 * The framer: splits chunks of bytes into lines. This is the first stage that a line passes after
 * TLS. `line-framer.ts` splits at LF, `length-framer.ts` by a length before each line, and
 * `framing.ts` chooses.
 *
 *   push(chunk) ─► next() ─► line … line ─► null       (null: needs more bytes)
 *                       └──► throws LineTooLong        (after that the framer must not be used)
 *
 * Each call of `next` returns one line, so that the caller can stop in the middle of a chunk while
 * the window is full. The rest of the chunk waits here unparsed.
 *
 * Pure: no socket, no clock. Never decodes or trims. Bounds: an unfinished line holds at most
 * `maxLineBytes` and what delimits it, its buffer grows with the bytes that have arrived, and
 * `unfinished-lines.ts` bounds the sum over all devices. The owner pauses its socket while the
 * framer is not `drained`, which bounds the bytes that are pushed and not taken.
 */

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

export abstract class Framer {
  protected readonly maxLineBytes: number
  /** The bytes that were pushed and not taken start at `position`. */
  protected chunk: Uint8Array = EMPTY
  protected position = 0
  /**
   * The buffer of the unfinished line. It grows by doubling. Null while there is no unfinished
   * line.
   */
  #partial: Uint8Array | null = null
  #partialBytes = 0

  constructor(maxLineBytes: number) {
    this.maxLineBytes = maxLineBytes
  }

  /** True when each pushed byte was returned in a line or belongs to the unfinished line. */
  get drained(): boolean {
    return this.position === this.chunk.length
  }

  /** Bytes that were pushed and not returned in a line. */
  get heldBytes(): number {
    return this.chunk.length - this.position + this.#partialBytes
  }

  /** Bytes of the unfinished line, without unparsed ones. A length before it counts too. */
  get partialBytes(): number {
    return this.#partialBytes
  }

  push(chunk: Uint8Array): void {
    // `slice` of a Buffer returns a view, `slice` of a Uint8Array a copy. Lines must be copies.
    const bytes = new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.length)
    this.chunk = this.drained ? bytes : join(this.chunk.subarray(this.position), bytes)
    this.position = 0
  }

  /**
   * The next line without what delimits it, possibly empty; null when more bytes are needed. The
   * line is a copy, so that keeping it does not keep its chunk of 80 KiB in memory.
   * @throws LineTooLong when a finished or unfinished line has more than `maxLineBytes` bytes.
   */
  abstract next(): Uint8Array | null

  /** Drops the chunk: all its bytes were taken. */
  protected release(): void {
    this.chunk = EMPTY
    this.position = 0
  }

  /** The byte at `index` of the held bytes. */
  protected heldByte(index: number): number | undefined {
    const inChunk = index - this.#partialBytes
    return inChunk < 0 ? this.#partial?.[index] : this.chunk[this.position + inChunk]
  }

  /**
   * Adds the rest of the chunk to the unfinished line.
   * @param maxBytes how many bytes the unfinished line may get in all.
   */
  protected keep(maxBytes: number): void {
    const tail = this.chunk.subarray(this.position)
    const bytes = this.#partialBytes + tail.length
    this.release()
    if (this.#partial === null || this.#partial.length < bytes) {
      const capacity = Math.max(FIRST_PARTIAL_BYTES, (this.#partial?.length ?? 0) * 2, bytes)
      const grown = new Uint8Array(Math.min(capacity, Math.max(bytes, maxBytes)))
      if (this.#partial !== null) grown.set(this.#partial.subarray(0, this.#partialBytes))
      this.#partial = grown
    }
    this.#partial.set(tail, this.#partialBytes)
    this.#partialBytes = bytes
  }

  /**
   * Ends the unfinished line: returns its bytes without the first `skipped`, and those of the chunk
   * from `start` to `end`.
   */
  protected finishPartial(skipped: number, start: number, end: number): Uint8Array {
    const kept = this.#partial?.subarray(skipped, this.#partialBytes) ?? EMPTY
    const whole = new Uint8Array(kept.length + end - start)
    whole.set(kept)
    whole.set(this.chunk.subarray(start, end), kept.length)
    this.#partial = null
    this.#partialBytes = 0
    return whole
  }
}

function join(a: Uint8Array, b: Uint8Array): Uint8Array {
  const joined = new Uint8Array(a.length + b.length)
  joined.set(a)
  joined.set(b, a.length)
  return joined
}
