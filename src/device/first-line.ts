/**
 * Collects the first line of one connection, by which a device identifies itself, in the framing of
 * the device port. Bound: the bytes of the line without its LF or length.
 */

import { type Framer, LineTooLong } from "./framer.ts"
import { type Framing, makeFramer } from "./framing.ts"

/** A complete first line. */
export interface ReadLine {
  readonly line: string
  /** The bytes after it. */
  readonly rest: Uint8Array
}

export class FirstLine {
  readonly #framer: Framer

  constructor(framing: Framing, maxLineBytes: number) {
    this.#framer = makeFramer({ framing, maxLineBytes })
  }

  /** Null while the line is unfinished; "too_long" above the bound. */
  push(chunk: Uint8Array): ReadLine | "too_long" | null {
    this.#framer.push(chunk)
    try {
      const line = this.#framer.next()
      if (line === null) return null
      const rest = chunk.subarray(chunk.length - this.#framer.heldBytes)
      // latin1 maps each byte to one character. The patterns of first lines match ASCII only.
      return { line: Buffer.from(line).toString("latin1"), rest }
    } catch (error) {
      if (error instanceof LineTooLong) return "too_long"
      throw error
    }
  }
}
