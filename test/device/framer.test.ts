/**
 * Every framer compared with a model that splits the whole input at once: byte by byte, at each cut
 * into two or three parts, and with random chunks. `line-framer.test.ts` and
 * `length-framer.test.ts` have what only one of them does.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { LineTooLong } from "../../src/device/framer.ts"
import { FRAMINGS, makeFramer, OVERHEAD_BYTES, writeLine } from "../../src/device/framing.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"
import {
  bytesOf,
  bytewise,
  CODECS,
  chunked,
  concat,
  split,
  textOf,
  thrownBy,
} from "./framer-harness.ts"

const MAX = 6
const INPUTS: Record<string, readonly string[]> = {
  lines: ["one", "two", "three"],
  "empty lines": ["", "", "a", "", ""],
  "a CR inside": ["a\rb", "\rc"],
  "NUL and what is no UTF-8": ["\0", "\xff\xfe", "\xc3", "\x80\r\0"],
  "the longest line": ["123456", "abc"],
  "a line too long among others": ["a", "1234567", "b"],
  nothing: [],
}

test("every framing has a codec", () => {
  expect(CODECS.map(({ framing }) => framing)).toEqual([...FRAMINGS])
})

describe.each([...CODECS])("$framing", ({ framing, wireOf, model, input }) => {
  const framerOf = (maxLineBytes: number) => makeFramer({ framing, maxLineBytes })

  function expectAsModel(chunks: readonly Uint8Array[], maxLineBytes: number): void {
    const { lines, tooLong } = model(concat(chunks), maxLineBytes)
    expect(split(framing, chunks, maxLineBytes)).toEqual({ lines, tooLong })
  }

  describe.each(Object.entries(INPUTS))("%s", (_name, lines) => {
    const wire = wireOf(lines)

    test("whole, and without each of its last bytes", () => {
      for (let end = 0; end <= wire.length; end += 1) expectAsModel([wire.slice(0, end)], MAX)
      const fit = lines.findIndex((line) => line.length > MAX)
      expect(split(framing, [wire], MAX)).toEqual({
        lines: fit === -1 ? [...lines] : lines.slice(0, fit),
        tooLong: fit !== -1,
      })
    })

    test("byte by byte", () => expectAsModel(bytewise(wire), MAX))

    test("at each two-way and three-way cut", () => {
      for (let first = 0; first <= wire.length; first += 1) {
        for (let second = first; second <= wire.length; second += 1) {
          const chunks = [wire.slice(0, first), wire.slice(first, second), wire.slice(second)]
          expectAsModel(chunks, MAX)
        }
      }
    })
  })

  test("any bytes in any chunks are split as the model splits them", () => {
    check(fc.property(chunked(input), fc.integer({ min: 1, max: 20 }), expectAsModel), CHEAP_RUNS)
  })

  test("taken at any pace, each pushed byte is in a returned line or held", () => {
    const maxLineBytes = 10_000
    check(
      fc.property(chunked(input), fc.array(fc.nat(4)), (chunks, paces) => {
        const framer = framerOf(maxLineBytes)
        const { lines, endsAt, tooLong } = model(concat(chunks), maxLineBytes)
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
        try {
          for (const [index, bytes] of chunks.entries()) {
            framer.push(bytes)
            pushedBytes += bytes.length
            expect(framer.heldBytes).toBe(pushedBytes - takenBytes())
            for (let count = 0; count < (paces[index] ?? 1) && take(); ) count += 1
          }
          while (take());
        } catch (error) {
          if (!(error instanceof LineTooLong)) throw error
          expect(error.discardedBytes).toBe(pushedBytes - takenBytes())
        }
        expect(taken).toBe(lines.length)
        if (!tooLong)
          expect([framer.drained, framer.partialBytes]).toEqual([true, framer.heldBytes])
      }),
      CHEAP_RUNS,
    )
  })

  test("pushing before all lines are taken keeps the order, also within a line", () => {
    const framer = framerOf(100)
    const wire = wireOf(["begin", "one", "two", "rest"])
    const end = wireOf(["begin", "one"]).length
    const next = () => {
      const line = framer.next()
      return line && textOf(line)
    }
    framer.push(wire.slice(0, 3))
    expect(next()).toBeNull()
    framer.push(wire.slice(3, end + 2))
    expect([next(), framer.drained]).toEqual(["begin", false])
    framer.push(wire.slice(end + 2, end + 3))
    framer.push(wire.slice(end + 3, -1))
    expect([next(), next(), framer.drained]).toEqual(["one", "two", false])
    expect([next(), framer.drained]).toEqual([null, true])
    expect(framer.heldBytes).toBe(wireOf(["rest"]).length - 1)
  })

  test("is drained when it is new, after an empty chunk and after an unfinished line", () => {
    const framer = framerOf(100)
    expect([framer.drained, framer.heldBytes, framer.next()]).toEqual([true, 0, null])
    framer.push(new Uint8Array())
    expect([framer.drained, framer.heldBytes, framer.next()]).toEqual([true, 0, null])
    framer.push(wireOf(["abc"]).slice(0, 3))
    expect(framer.drained).toBe(false)
    expect(framer.next()).toBeNull()
    expect([framer.drained, framer.heldBytes, framer.next()]).toEqual([true, 3, null])
  })

  describe("copies", () => {
    test("changing a chunk changes no line and no unfinished line", () => {
      const framer = framerOf(100)
      const wire = wireOf(["one", "two", "three", "four"])
      const cut = wireOf(["one", "two", "three"]).length - 2
      const first = wire.slice(0, cut)
      framer.push(first)
      const lines = [framer.next(), framer.next(), framer.next()]
      first.fill(0x78)
      const second = wire.slice(cut)
      framer.push(second)
      lines.push(framer.next(), framer.next())
      second.fill(0x78)
      expect(lines.map((line) => line && textOf(line))).toEqual([
        "one",
        "two",
        null,
        "three",
        "four",
      ])
    })

    test("a line shares no memory with the chunk or the next line", () => {
      const framer = framerOf(100_000)
      const wire = wireOf(["one", "two", "x".repeat(60_000), "xyz"])
      framer.push(wire.slice(0, -2))
      const lines = [framer.next(), framer.next(), framer.next(), framer.next()]
      framer.push(wire.slice(-2))
      lines.push(framer.next())
      expect(lines.map((line) => line?.length)).toEqual([3, 3, 60_000, undefined, 3])
      for (const line of lines) if (line) expect(line.buffer.byteLength).toBe(line.length)
    })

    test("accepts a Buffer, also one with an offset in its memory", () => {
      const framer = framerOf(100)
      const wire = wireOf(["one", "two", "three"])
      const pooled = Buffer.concat([Buffer.from("...."), wire.slice(0, -2)]).subarray(4)
      framer.push(pooled)
      const lines = [framer.next(), framer.next(), framer.next()]
      pooled.fill(0x78)
      framer.push(Buffer.from(wire.slice(-2)))
      lines.push(framer.next())
      expect(lines.map((line) => line && textOf(line))).toEqual(["one", "two", null, "three"])
      for (const line of lines) expect(Buffer.isBuffer(line)).toBe(false)
    })
  })

  test("a line too long comes after the lines before it, and discards all bytes that are held", () => {
    const framer = framerOf(3)
    framer.push(wireOf(["a", "b", "long", "c"]))
    expect([framer.next(), framer.next()].map((line) => line && textOf(line))).toEqual(["a", "b"])
    expect(thrownBy(framer).discardedBytes).toBe(wireOf(["long", "c"]).length)
  })

  test("what is written is what is read", () => {
    const lines = fc.array(fc.array(fc.nat(255), { maxLength: 300, size: "max" }))
    check(
      fc.property(lines, fc.nat(5), (written, at) => {
        // With LF as delimiter, neither LF nor CR may be in a line.
        const texts = written.map((line) => textOf(Uint8Array.from(line)))
        const fit = framing === "line" ? texts.map((text) => text.replace(/[\r\n]/g, "")) : texts
        const target = new Uint8Array(at + wireOf(fit).length)
        let end = at
        for (const text of fit) {
          const bytes = writeLine(framing, bytesOf(text), target, end)
          expect(bytes).toBe(text.length + OVERHEAD_BYTES[framing])
          end += bytes
        }
        expect(textOf(target)).toBe("\0".repeat(at) + textOf(wireOf(fit)))
        expect(split(framing, [target.slice(at)], 300).lines).toEqual(fit)
      }),
    )
  })
})
