/**
 * The framer of lines: LF and CRLF, a CR that is no terminator, and the bound to the byte.
 * `framer.test.ts` has what all framers do.
 */

import { describe, expect, test } from "bun:test"
import { LineTooLong } from "../../src/device/framer.ts"
import { LineFramer } from "../../src/device/line-framer.ts"
import { bytesOf, bytewise, concat, LINE, split, thrownBy } from "./framer-harness.ts"

function expectAsModel(chunks: readonly Uint8Array[], maxLineBytes: number): void {
  const { lines, tooLong } = LINE.model(concat(chunks), maxLineBytes)
  expect(split("line", chunks, maxLineBytes)).toEqual({ lines, tooLong })
}

const MAX = 6
const INPUTS: Record<string, string> = {
  "LF and CRLF": "one\ntwo\r\nthree\n",
  "a CR inside, and one before CRLF": "a\rb\r\r\n\rc\n\r\r\n",
  "empty lines": "\n\r\n\n\n\r\n\r\r\n",
  "an unfinished line": "a\nbcd",
  "an unfinished line that ends in CR": "a\nbcd\r",
  "the longest line": "123456\n123456\r\nabc\n",
  "the longest line, unfinished, with CR": "123456\r",
  "a line too long by a CR inside": "a\n123456\r\r\nb\n",
  "an unfinished line too long": "a\n1234567",
}

describe.each(Object.entries(INPUTS))("%s", (_name, text) => {
  const input = bytesOf(text)

  test("in one chunk", () => expectAsModel([input], MAX))

  test("byte by byte", () => {
    expectAsModel(bytewise(input), MAX)
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
    if (maxLineBytes < 1_000) splits.push(bytewise(input))
    for (const pushed of splits) {
      expectAsModel(pushed, maxLineBytes)
      expect(split("line", pushed, maxLineBytes).tooLong).toBe(tooLong)
    }
  })

  test("an unfinished line is refused before more than the bound and a CR is held", () => {
    const framer = new LineFramer(maxLineBytes)
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
  const framer = new LineFramer(3)
  let pushedBytes = 0
  for (const part of parts) {
    framer.push(bytesOf(part))
    pushedBytes += part.length
    if (part !== parts.at(-1)) expect(framer.next()).toBeNull()
  }
  expect(thrownBy(framer).discardedBytes).toBe(pushedBytes)
})
