/**
 * Which bodies are valid lines, at the bound and for each byte; and the lists of outcomes and close
 * reasons.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { CLOSE_REASONS } from "../../src/device/close-reason.ts"
import { bodyFault, isKept, isWritten, OUTCOMES } from "../../src/device/command.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

test("the outcomes are those of the documentation, in its order", () => {
  const contract =
    "written offline expired invalid too_large duplicate late slow_device closed answered no_reply " +
    "superseded cancelled hold_full"
  expect([...OUTCOMES]).toEqual(contract.split(" ") as (typeof OUTCOMES)[number][])
})

test("a command is written, or kept in the undelivered queue, or nobody wants it any more", () => {
  expect(OUTCOMES.filter(isWritten)).toEqual(["written", "answered", "no_reply"])
  const neither = OUTCOMES.filter((outcome) => !isWritten(outcome) && !isKept(outcome))
  expect(neither).toEqual(["duplicate", "superseded", "cancelled"])
  expect(OUTCOMES.filter((outcome) => isWritten(outcome) && isKept(outcome))).toEqual([])
})

test("the close reasons are those of the documentation, in its order", () => {
  const contract =
    "peer_closed not_proxied handshake_failed handshake_timeout not_identified refused denied expired " +
    "gated flapping taken_over idle line_too_long line_timeout slow_device overloaded overloaded_address " +
    "kicked aged drained fault"
  expect([...CLOSE_REASONS]).toEqual(contract.split(" ") as (typeof CLOSE_REASONS)[number][])
})

const line = (maxLineBytes: number) => ({ framing: "line", maxLineBytes }) as const

describe("bodyFault", () => {
  test.each(["", "a", "\0", "\xff\xfe", "\t\v\f\x85\u2028", " x "])("%j is fit", (text) => {
    expect(bodyFault(Buffer.from(text, "latin1"), line(100))).toBeNull()
  })

  test.each(["\n", "\r", "\r\n", "a\nb", "a\rb", "a\n", "\ra"])(
    "%j is invalid as a line, and fit with a length",
    (text) => {
      expect(bodyFault(Buffer.from(text), line(100))?.outcome).toBe("invalid")
      for (const framing of ["u16", "u32"] as const) {
        expect(bodyFault(Buffer.from(text), { framing, maxLineBytes: 100 })).toBeNull()
      }
    },
  )

  test("the bound itself is fit, one byte more is too large", () => {
    expect(bodyFault(new Uint8Array(100).fill(0x78), line(100))).toBeNull()
    const fault = bodyFault(new Uint8Array(101).fill(0x78), line(100))
    expect(fault?.outcome).toBe("too_large")
    expect(fault?.detail).toContain("101")
    expect(fault?.detail).toContain("100")
    for (const framing of ["u16", "u32"] as const) {
      const format = { framing, maxLineBytes: 100 }
      expect(bodyFault(new Uint8Array(101), format)?.outcome).toBe("too_large")
    }
  })

  test("an empty body fits a bound of 0", () => {
    expect(bodyFault(new Uint8Array(), line(0))).toBeNull()
  })

  test("any bytes: fit exactly when short enough and without LF and CR", () => {
    const byte = fc.oneof(fc.constantFrom(10, 13), fc.integer({ min: 0, max: 255 }))
    check(
      fc.property(fc.array(byte, { maxLength: 12, size: "max" }), (bytes) => {
        const fault = bodyFault(Uint8Array.from(bytes), line(8))
        const holdsEnd = bytes.includes(10) || bytes.includes(13)
        const expected = bytes.length > 8 ? "too_large" : holdsEnd ? "invalid" : undefined
        expect(fault?.outcome).toBe(expected)
      }),
      CHEAP_RUNS,
    )
  })
})
