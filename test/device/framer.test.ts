/**
 * The framer compared with a model that splits the whole input at once: byte by byte, at each cut
 * into two parts, and with random chunks. Then the bound of a line, to the byte.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { Framer, LineTooLong } from "../../src/device/framer.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

const LF = 10
const CR = 13

interface Split {
  /** Bytes as latin1 text, which compares and prints well. */
  readonly lines: string[]
  readonly tooLong: boolean
  /** For each line the bytes up to and with its LF, from the beginning of the input. */
  readonly endsAt: number[]
}

/** The obvious way: needs the whole input. */
function model(input: Uint8Array, maxLineBytes: number): Split {
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

function textOf(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("latin1")
}

function bytesOf(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text, "latin1"))
}

function concat(chunks: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(chunks))
}

/** Pushes the chunks, each taken up completely before the next comes. */
function split(chunks: readonly Uint8Array[], maxLineBytes: number) {
  const framer = new Framer(maxLineBytes)
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

function expectAsModel(chunks: readonly Uint8Array[], maxLineBytes: number): void {
  const { lines, tooLong } = model(concat(chunks), maxLineBytes)
  expect(split(chunks, maxLineBytes)).toEqual({ lines, tooLong })
}

const MAX = 6
const INPUTS: Record<string, string> = {
  "LF and CRLF": "one\ntwo\r\nthree\n",
  "a CR inside, and one before CRLF": "a\rb\r\r\n\rc\n\r\r\n",
  "empty lines": "\n\r\n\n\n\r\n\r\r\n",
  "NUL and what is no UTF-8": "\0\n\xff\xfe\n\xc3\n\x80\r\0\n",
  "nothing after the last LF": "a\n",
  "an unfinished line": "a\nbcd",
  "an unfinished line that ends in CR": "a\nbcd\r",
  "the longest line": "123456\n123456\r\nabc\n",
  "the longest line, unfinished, with CR": "123456\r",
  "a line too long among others": "a\n1234567\nb\n",
  "a line too long by a CR inside": "a\n123456\r\r\nb\n",
  "an unfinished line too long": "a\n1234567",
  nothing: "",
}

describe.each(Object.entries(INPUTS))("%s", (_name, text) => {
  const input = bytesOf(text)

  test("in one chunk", () => expectAsModel([input], MAX))

  test("byte by byte", () => {
    expectAsModel(
      Array.from(input, (byte) => Uint8Array.of(byte)),
      MAX,
    )
  })

  test("at each two-way and three-way cut", () => {
    for (let first = 0; first <= input.length; first += 1) {
      for (let second = first; second <= input.length; second += 1) {
        const chunks = [input.slice(0, first), input.slice(first, second), input.slice(second)]
        expectAsModel(chunks, MAX)
      }
    }
  })
})

const byte = fc.oneof(fc.constantFrom(LF, LF, CR, CR, 0, 0x61, 0xff), fc.nat(255))
const chunk = fc.array(byte, { maxLength: 24, size: "max" }).map((bytes) => Uint8Array.from(bytes))
const chunks = fc.array(chunk, { maxLength: 12, size: "max" })

test("any bytes in any chunks are split as the model splits them", () => {
  check(
    fc.property(chunks, fc.integer({ min: 1, max: 20 }), (pushed, maxLineBytes) => {
      expectAsModel(pushed, maxLineBytes)
    }),
    CHEAP_RUNS,
  )
})

/** A push, and how many lines are taken after it. */
const paced = fc.array(fc.tuple(chunk, fc.nat(4)), { maxLength: 12, size: "max" })

test("taken at any pace, each pushed byte is in a returned line or held", () => {
  const maxLineBytes = 10_000
  check(
    fc.property(paced, (steps) => {
      const framer = new Framer(maxLineBytes)
      const { lines, endsAt } = model(concat(steps.map(([bytes]) => bytes)), maxLineBytes)
      let pushedBytes = 0
      let taken = 0
      const takenBytes = () => endsAt[taken - 1] ?? 0
      const take = (): boolean => {
        const line = framer.next()
        const expected = (endsAt[taken] ?? Infinity) <= pushedBytes ? lines[taken] : null
        expect(line === null ? null : textOf(line)).toBe(expected ?? null)
        if (line !== null) taken += 1
        expect(framer.heldBytes).toBe(pushedBytes - takenBytes())
        return line !== null
      }
      for (const [bytes, most] of steps) {
        framer.push(bytes)
        pushedBytes += bytes.length
        expect(framer.heldBytes).toBe(pushedBytes - takenBytes())
        for (let count = 0; count < most && take(); ) count += 1
      }
      while (take());
      expect(taken).toBe(lines.length)
      expect(framer.drained).toBe(true)
    }),
    CHEAP_RUNS,
  )
})

test("pushing before all lines are taken keeps the order, also within a line", () => {
  const framer = new Framer(100)
  framer.push(bytesOf("beg"))
  expect(framer.next()).toBeNull()
  framer.push(bytesOf("in\none\ntw"))
  expect(textOf(framer.next() ?? new Uint8Array())).toBe("begin")
  expect(framer.drained).toBe(false)
  framer.push(bytesOf("o\r"))
  framer.push(bytesOf("\nrest"))
  expect(textOf(framer.next() ?? new Uint8Array())).toBe("one")
  expect(textOf(framer.next() ?? new Uint8Array())).toBe("two")
  expect(framer.drained).toBe(false)
  expect(framer.next()).toBeNull()
  expect(framer.drained).toBe(true)
  expect(framer.heldBytes).toBe(4)
})

describe("drained", () => {
  test("is true of a new framer, of an empty chunk and of an unfinished line", () => {
    const framer = new Framer(100)
    expect([framer.drained, framer.heldBytes, framer.next()]).toEqual([true, 0, null])
    framer.push(new Uint8Array())
    expect([framer.drained, framer.heldBytes, framer.next()]).toEqual([true, 0, null])
    framer.push(bytesOf("abc"))
    expect(framer.drained).toBe(false)
    expect(framer.next()).toBeNull()
    expect([framer.drained, framer.heldBytes, framer.next()]).toEqual([true, 3, null])
  })
})

describe("copies", () => {
  test("changing a chunk changes no line and no unfinished line", () => {
    const framer = new Framer(100)
    const first = bytesOf("one\ntwo\nthr")
    framer.push(first)
    const lines = [framer.next(), framer.next(), framer.next()]
    first.fill(0x78)
    const second = bytesOf("ee\nfour\n")
    framer.push(second)
    lines.push(framer.next(), framer.next())
    second.fill(0x78)
    expect(lines.map((line) => line && textOf(line))).toEqual(["one", "two", null, "three", "four"])
  })

  test("a line shares no memory with the chunk or the next line", () => {
    const framer = new Framer(100_000)
    const whole = new Uint8Array(81_920).fill(LF)
    whole.set(bytesOf("one\r\ntwo\n"))
    framer.push(whole)
    for (const expected of ["one", "two"]) {
      const line = framer.next() ?? new Uint8Array()
      expect(textOf(line)).toBe(expected)
      expect(line.buffer.byteLength).toBeLessThanOrEqual(line.length + 1)
    }
    framer.push(bytesOf("x"))
    while (framer.next() !== null);
    framer.push(bytesOf("yz\r\n"))
    const joined = framer.next() ?? new Uint8Array()
    expect(textOf(joined)).toBe("xyz")
    expect(joined.buffer.byteLength).toBeLessThanOrEqual(joined.length + 1)
  })

  test("accepts a Buffer, also one with an offset in its memory", () => {
    const framer = new Framer(100)
    const pooled = Buffer.from("....one\ntwo\nth").subarray(4)
    framer.push(pooled)
    const lines = [framer.next(), framer.next(), framer.next()]
    pooled.fill(0x78)
    framer.push(Buffer.from("ree\n"))
    lines.push(framer.next())
    expect(lines.map((line) => line && textOf(line))).toEqual(["one", "two", null, "three"])
    for (const line of lines) expect(Buffer.isBuffer(line)).toBe(false)
  })
})

describe.each([1, 255, 256, 257, 65_536])("a bound of %d bytes", (maxLineBytes) => {
  const long = "x".repeat(maxLineBytes)
  const cases: [string, string, boolean][] = [
    ["the bound and LF", `${long}\n`, false],
    ["the bound and CRLF", `${long}\r\n`, false],
    ["one more and LF", `${long}x\n`, true],
    ["one more and CRLF", `${long}x\r\n`, true],
    ["one more, which is a CR inside", `${long}\r\r\n`, true],
    ["unfinished: the bound", long, false],
    ["unfinished: the bound and a CR that may be dropped yet", `${long}\r`, false],
    ["unfinished: one more", `${long}x`, true],
    ["unfinished: a CR and one more", `${long}\rx`, true],
    ["unfinished: two CRs more, of which one stays", `${long}\r\r`, true],
  ]

  test.each(cases)("%s", (_name, text, tooLong) => {
    const input = bytesOf(text)
    const middle = Math.floor(input.length / 2)
    const splits = [
      [input],
      [input.slice(0, -1), input.slice(-1)],
      [input.slice(0, -2), input.slice(-2)],
      [input.slice(0, middle), input.slice(middle)],
      [input.slice(0, 1), input.slice(1)],
    ]
    if (maxLineBytes < 1_000) splits.push(Array.from(input, (byte) => Uint8Array.of(byte)))
    for (const pushed of splits) {
      expectAsModel(pushed, maxLineBytes)
      expect(split(pushed, maxLineBytes).tooLong).toBe(tooLong)
    }
  })

  test("an unfinished line is refused before more than the bound and a CR is held", () => {
    const framer = new Framer(maxLineBytes)
    let error: unknown = null
    for (let pushed = 0; error === null; pushed += 100) {
      expect(pushed).toBeLessThanOrEqual(maxLineBytes + 100)
      framer.push(new Uint8Array(100).fill(0x78))
      try {
        expect(framer.next()).toBeNull()
        expect(framer.heldBytes).toBeLessThanOrEqual(maxLineBytes + 1)
      } catch (thrown) {
        error = thrown
      }
    }
    expect(error).toBeInstanceOf(LineTooLong)
  })
})

describe("LineTooLong", () => {
  function thrownBy(framer: Framer): LineTooLong {
    try {
      while (framer.next() !== null);
    } catch (error) {
      if (error instanceof LineTooLong) return error
      throw error
    }
    throw new Error("no line was too long")
  }

  test("comes after the lines before it, once", () => {
    const framer = new Framer(3)
    framer.push(bytesOf("a\nb\nlong\nc\n"))
    expect(textOf(framer.next() ?? new Uint8Array())).toBe("a")
    expect(textOf(framer.next() ?? new Uint8Array())).toBe("b")
    expect(() => framer.next()).toThrow(LineTooLong)
  })

  // Each input is one that breaks the bound of 3; all of it is discarded.
  test.each([
    ["unfinished", ["abcd"]],
    ["unfinished, in parts", ["ab", "cd"]],
    ["unfinished, with a CR", ["abcd\r"]],
    ["finished", ["abcd\n"]],
    ["finished by CRLF", ["abcd\r\n"]],
    ["finished, in parts", ["ab", "cd\n"]],
    ["finished, with a line after it", ["abcd\nrest\n"]],
  ])("discardedBytes counts all bytes that were pushed and not returned: %s", (_name, parts) => {
    const framer = new Framer(3)
    let pushedBytes = 0
    for (const part of parts) {
      framer.push(bytesOf(part))
      pushedBytes += part.length
      if (part !== parts.at(-1)) expect(framer.next()).toBeNull()
    }
    expect(thrownBy(framer).discardedBytes).toBe(pushedBytes)
  })
})
