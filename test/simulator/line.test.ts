/**
 * What lines and commands say survives the way there and back, at every size.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { HOSTILE_KINDS } from "../../src/simulator/hostile-kinds.ts"
import {
  command,
  deviceName,
  heldCommand,
  hostileLine,
  LineWriter,
  MAX,
  MIN_LINE_BYTES,
  NAME,
  newRun,
  readCommandNumber,
  readHeldCommand,
  readHostile,
  readLine,
} from "../../src/simulator/line.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

describe("a line", () => {
  test("is as long as asked, ends in LF and says what it was given", () => {
    const line = fc.record({
      run: fc
        .tuple(fc.integer({ min: 1e12, max: 2e12 }), fc.double({ min: 0, max: 0.999, noNaN: true }))
        .map(([startedAtMs, random]) => newRun(startedAtMs, random)),
      device: fc
        .tuple(fc.stringMatching(NAME), fc.nat(MAX.devices - 1))
        .map(([name, index]) => deviceName(name, index)),
      attempt: fc.integer({ min: 1, max: MAX.attempts }),
      n: fc.nat(MAX.lines),
      answers: fc.option(fc.nat(MAX.lines)),
    })
    const bytes = fc.integer({ min: MIN_LINE_BYTES, max: 200 })
    check(
      fc.property(line, bytes, (says, length) => {
        const writer = new LineWriter(says.run, length)
        const text = writer.compose(says.device, says.attempt, says.n, says.answers)
        expect(Buffer.byteLength(text)).toBe(length + 1)
        expect(writer.lineBytes).toBe(length + 1)
        expect(text.indexOf("\n")).toBe(length)
        expect(readLine(text.slice(0, -1))).toEqual(says)
      }),
      CHEAP_RUNS,
    )
  })

  test.each([
    "",
    "temperature 21.5",
    "hostile silent 0",
    "abcdefghij sim-1 1 0 -",
    "abcdefghij sim-1 1 0 - yyyy",
    "abcdefghij sim-1 1 x - xxxx",
  ])("%p is none of ours", (text) => {
    expect(readLine(text)).toBeNull()
  })
})

test("a command says its number, and nothing else is one", () => {
  expect(readCommandNumber(command(17))).toBe(17)
  for (const text of ["CMD", "CMD x", "CMD 1 2", "ACK 1"])
    expect(readCommandNumber(text)).toBeNull()
})

test("a hostile line says its kind", () => {
  for (const kind of HOSTILE_KINDS) expect(readHostile(hostileLine(kind, 3))).toBe(kind)
  expect(readHostile("abcdefghij sim-1 1 0 - xxxx")).toBeNull()
})

test("a held command is read back, and is no command without hold_ms", () => {
  const held = { run: "mbz0k3x7a1", device: "sim-19999", n: MAX.held - 1 }
  expect(readHeldCommand(heldCommand(held))).toEqual(held)
  expect(readCommandNumber(heldCommand(held))).toBeNull()
  for (const text of ["HELD", "HELD mbz0k3x7a1 sim-0", `${heldCommand(held)} x`, command(1)]) {
    expect(readHeldCommand(text)).toBeNull()
  }
})
