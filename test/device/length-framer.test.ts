/**
 * The framer of length-prefixed lines: the length in pieces, lengths above the bound, and memory
 * for lines that were only announced. `framer.test.ts` has what all framers do.
 */

import { describe, expect, test } from "bun:test"
import { LineTooLong } from "../../src/device/framer.ts"
import { LengthFramer } from "../../src/device/length-framer.ts"
import { bytesOf, bytewise, frame, textOf } from "./framer-harness.ts"

const MEBIBYTE = 1_048_576

/** Only the length. */
function lengthOf(lengthBytes: 2 | 4, length: number): Uint8Array {
  const bytes = Buffer.alloc(lengthBytes)
  bytes.writeUIntBE(length, 0, lengthBytes)
  return new Uint8Array(bytes)
}

/** The largest typed array that is made in `act`. */
function largestAllocation(act: () => void): number {
  const original = globalThis.Uint8Array
  let largest = 0
  globalThis.Uint8Array = new Proxy(original, {
    construct: (target, values, newTarget) => {
      if (typeof values[0] === "number") largest = Math.max(largest, values[0])
      return Reflect.construct(target, values, newTarget)
    },
  })
  try {
    act()
  } finally {
    globalThis.Uint8Array = original
  }
  return largest
}

describe.each([2, 4] as const)("a length of %d bytes", (lengthBytes) => {
  test("is big-endian, and counts the bytes after it", () => {
    const framer = new LengthFramer(lengthBytes, MEBIBYTE)
    const line = "x".repeat(0x0203)
    const zeroes = new Array(lengthBytes - 2).fill(0)
    framer.push(Uint8Array.of(...zeroes, 0x02, 0x03))
    expect(framer.next()).toBeNull()
    framer.push(bytesOf(`${line}rest`))
    expect(textOf(framer.next() ?? new Uint8Array())).toBe(line)
    expect(framer.heldBytes).toBe(4)
  })

  test("in pieces is an unfinished line of as many bytes", () => {
    const framer = new LengthFramer(lengthBytes, 10)
    for (const [index, byte] of bytewise(lengthOf(lengthBytes, 3)).entries()) {
      framer.push(byte)
      expect(framer.next()).toBeNull()
      expect([framer.partialBytes, framer.drained]).toEqual([index + 1, true])
    }
    framer.push(bytesOf("ab"))
    expect([framer.next(), framer.partialBytes]).toEqual([null, lengthBytes + 2])
    framer.push(bytesOf("c"))
    expect(framer.next()).toEqual(bytesOf("abc"))
    expect([framer.partialBytes, framer.heldBytes]).toEqual([0, 0])
  })

  test("of zero is an empty line, also in pieces", () => {
    const framer = new LengthFramer(lengthBytes, 10)
    framer.push(lengthOf(lengthBytes, 0))
    expect(framer.next()).toEqual(new Uint8Array())
    const [first, ...others] = bytewise(lengthOf(lengthBytes, 0))
    framer.push(first ?? expect.unreachable())
    expect(framer.next()).toBeNull()
    for (const byte of others) framer.push(byte)
    expect(framer.next()).toEqual(new Uint8Array())
    expect(framer.heldBytes).toBe(0)
  })

  const largest = 256 ** lengthBytes - 1
  test.each([1, 255, 256, 65_535, MEBIBYTE].filter((bound) => bound <= largest))(
    "at the bound of %d is taken, and above it refused before the line comes",
    (bound) => {
      const framer = new LengthFramer(lengthBytes, bound)
      const whole = frame(lengthBytes, "x".repeat(bound))
      framer.push(whole.slice(0, -1))
      expect(framer.next()).toBeNull()
      expect(framer.partialBytes).toBe(lengthBytes + bound - 1)
      framer.push(whole.slice(-1))
      expect(framer.next()?.length).toBe(bound)

      for (const length of [bound + 1, largest].filter((length) => length <= largest)) {
        if (length <= bound) continue
        const bytes = lengthOf(lengthBytes, length)
        const refusing = new LengthFramer(lengthBytes, bound)
        refusing.push(bytes.slice(0, -1))
        expect(refusing.next()).toBeNull()
        refusing.push(bytes.slice(-1))
        expect(() => refusing.next()).toThrow(new LineTooLong(length, bound, lengthBytes))
      }
    },
  )

  test("reserves no memory for a line that was only announced", () => {
    const announced = Math.min(largest, MEBIBYTE)
    const framer = new LengthFramer(lengthBytes, announced)
    let pushed = 0
    const push = (bytes: Uint8Array) => {
      pushed += bytes.length
      framer.push(bytes)
      return largestAllocation(() => expect(framer.next()).toBeNull())
    }
    for (const bytes of bytewise(lengthOf(lengthBytes, announced))) {
      expect(push(bytes)).toBeLessThanOrEqual(256)
    }
    const part = new Uint8Array(1_000)
    const allocated: number[] = []
    while (pushed + part.length < announced) {
      const bytes = push(part)
      expect(bytes).toBeLessThanOrEqual(Math.min(2 * pushed, lengthBytes + announced))
      allocated.push(bytes)
    }
    expect(Math.max(...allocated)).toBeGreaterThan(announced / 2)
  })
})
