/**
 * Each framing with its framer, an encoder, and a model that splits the whole input at once. The
 * models are the obvious way, and share no code with the framers.
 */

import fc from "fast-check"
import { type Framer, LineTooLong } from "../../src/device/framer.ts"
import { type Framing, makeFramer } from "../../src/device/framing.ts"

export const LF = 10
export const CR = 13

export interface Split {
  /** Bytes as latin1 text, which compares and prints well. */
  readonly lines: string[]
  readonly tooLong: boolean
  /** For each line the bytes up to its end, from the beginning of the input. */
  readonly endsAt: number[]
}

export interface Codec {
  readonly framing: Framing
  /** What a device sends for these lines. */
  readonly wireOf: (lines: readonly string[]) => Uint8Array
  readonly model: (input: Uint8Array, maxLineBytes: number) => Split
  /** Bytes that a device, or a stranger, may send. */
  readonly input: fc.Arbitrary<Uint8Array>
}

function splitAtLf(input: Uint8Array, maxLineBytes: number): Split {
  const parts = textOf(input).split("\n")
  const unfinished = parts.pop() ?? ""
  const split: Split = { lines: [], tooLong: false, endsAt: [] }
  let end = 0
  for (const part of parts) {
    const line = part.replace(/\r$/, "")
    if (line.length > maxLineBytes) return { ...split, tooLong: true }
    end += part.length + 1
    split.lines.push(line)
    split.endsAt.push(end)
  }
  return { ...split, tooLong: unfinished.replace(/\r$/, "").length > maxLineBytes }
}

function splitByLength(lengthBytes: 2 | 4, input: Uint8Array, maxLineBytes: number): Split {
  const bytes = Buffer.from(input)
  const split: Split = { lines: [], tooLong: false, endsAt: [] }
  let at = 0
  while (at + lengthBytes <= bytes.length) {
    const length = bytes.readUIntBE(at, lengthBytes)
    if (length > maxLineBytes) return { ...split, tooLong: true }
    const end = at + lengthBytes + length
    if (end > bytes.length) break
    split.lines.push(bytes.toString("latin1", at + lengthBytes, end))
    split.endsAt.push(end)
    at = end
  }
  return split
}

/** One line with its length. */
export function frame(lengthBytes: 2 | 4, line: string): Uint8Array {
  const bytes = Buffer.alloc(lengthBytes + line.length)
  bytes.writeUIntBE(line.length, 0, lengthBytes)
  bytes.write(line, lengthBytes, "latin1")
  return new Uint8Array(bytes)
}

const byte = fc.oneof(fc.constantFrom(LF, LF, CR, CR, 0, 0x61, 0xff), fc.nat(255))
const bytes = (maxLength: number) =>
  fc.array(byte, { maxLength, size: "max" }).map((values) => Uint8Array.from(values))

/** Mostly whole frames, since any bytes are a length that is too large. */
function frames(lengthBytes: 2 | 4): fc.Arbitrary<Uint8Array> {
  const part = fc.oneof(
    { weight: 8, arbitrary: bytes(20).map((line) => frame(lengthBytes, textOf(line))) },
    { weight: 1, arbitrary: fc.constant(frame(lengthBytes, "")) },
    { weight: 1, arbitrary: bytes(6) },
  )
  return fc.array(part, { maxLength: 12, size: "max" }).map(concat)
}

const lengthCodec = (framing: Framing, lengthBytes: 2 | 4): Codec => ({
  framing,
  wireOf: (lines) => concat(lines.map((line) => frame(lengthBytes, line))),
  model: (input, maxLineBytes) => splitByLength(lengthBytes, input, maxLineBytes),
  input: frames(lengthBytes),
})

export const LINE: Codec = {
  framing: "line",
  wireOf: (lines) => bytesOf(lines.map((line) => `${line}\n`).join("")),
  model: splitAtLf,
  input: bytes(200),
}

export const CODECS: readonly Codec[] = [LINE, lengthCodec("u16", 2), lengthCodec("u32", 4)]

/** The input in chunks, some of them empty. */
export function chunked(input: fc.Arbitrary<Uint8Array>): fc.Arbitrary<Uint8Array[]> {
  const cuts = fc.array(fc.nat(200), { maxLength: 12, size: "max" })
  return fc.tuple(input, cuts).map(([whole, places]) => {
    const ends = [...places, whole.length].sort((a, b) => a - b)
    return ends.map((end, index) => whole.slice(ends[index - 1] ?? 0, end))
  })
}

export function bytewise(input: Uint8Array): Uint8Array[] {
  return Array.from(input, (value) => Uint8Array.of(value))
}

export function textOf(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("latin1")
}

export function bytesOf(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text, "latin1"))
}

export function concat(chunks: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(chunks))
}

/** Pushes the chunks, each taken up completely before the next comes. */
export function split(framing: Framing, chunks: readonly Uint8Array[], maxLineBytes: number) {
  const framer = makeFramer({ framing, maxLineBytes })
  const lines: string[] = []
  try {
    for (const chunk of chunks) {
      framer.push(chunk)
      for (let line = framer.next(); line !== null; line = framer.next()) lines.push(textOf(line))
    }
  } catch (error) {
    if (!(error instanceof LineTooLong)) throw error
    return { lines, tooLong: true }
  }
  return { lines, tooLong: false }
}

/** Takes lines until one is too long. */
export function thrownBy(framer: Framer): LineTooLong {
  try {
    while (framer.next() !== null);
  } catch (error) {
    if (error instanceof LineTooLong) return error
    throw error
  }
  throw new Error("no line was too long")
}
