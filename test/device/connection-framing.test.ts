/**
 * A connection with length-prefixed lines: what its device may send, and what is written to it.
 * `connection.test.ts` and the others have what does not depend on the framing.
 */

import { describe, expect, test } from "bun:test"
import { Goodbye } from "../../src/device/goodbye.ts"
import { bytesOf, Harness, LIMITS, UNFINISHED } from "./connection-harness.ts"
import { concat, frame, textOf } from "./framer-harness.ts"

describe.each([
  ["u16", 2],
  ["u32", 4],
] as const)("%s", (framing, lengthBytes) => {
  const length = (bytes: number) => frame(lengthBytes, "x".repeat(bytes)).slice(0, lengthBytes)
  const frames = (...lines: string[]) => concat(lines.map((line) => frame(lengthBytes, line)))

  test("lines may contain LF and CR; empty ones are counted and not published", () => {
    const harness = new Harness({ framing })
    const { connection } = harness.admit()
    connection.received(frames("a\nb", "", "c\r", "\n"))
    expect(harness.texts()).toEqual(["a\nb", "c\r", "\n"])
    expect([harness.counters.linesIn, harness.counters.emptyLines]).toEqual([3, 1])
    expect(harness.unfinishedLines.bytes).toBe(0)
  })

  test("a length above MAX_LINE_BYTES closes the connection before the line comes", () => {
    const harness = new Harness({ framing })
    const { connection } = harness.admit()
    connection.received(concat([frames("first"), length(LIMITS.maxLineBytes)]))
    expect(harness.reasons()).toEqual([])
    connection.received(concat([bytesOf("x".repeat(LIMITS.maxLineBytes)), length(21)]))
    expect(harness.texts()).toEqual(["first", "x".repeat(LIMITS.maxLineBytes)])
    expect(harness.reasons()).toEqual(["line_too_long"])
    expect(harness.counters.unterminatedBytes).toBe(lengthBytes)
    expect(harness.unfinishedLines.bytes).toBe(0)
  })

  test("a length in pieces is an unfinished line, whose time passes", () => {
    const harness = new Harness({ framing })
    const { connection } = harness.admit()
    for (let sent = 1; sent < lengthBytes; sent += 1) {
      connection.received(length(3).slice(sent - 1, sent))
      expect([harness.unfinishedLines.bytes, harness.unfinishedLines.timedCount]).toEqual([sent, 1])
    }
    harness.after(UNFINISHED.lineTimeoutMs - 1)
    expect(harness.reasons()).toEqual([])
    harness.after(1)
    expect(harness.reasons()).toEqual(["line_timeout"])
    expect(harness.unfinishedLines.bytes).toBe(0)
  })

  test("unfinished lines count for MAX_PARTIAL_BYTES with their lengths", () => {
    const harness = new Harness({ framing })
    const unfinished = concat([length(20), bytesOf("x".repeat(19))])
    const devices = Math.floor(UNFINISHED.maxPartialBytes / unfinished.length) + 1
    for (let n = 0; n < devices; n += 1) {
      expect(harness.reasons()).toEqual([])
      harness.admit().connection.received(unfinished)
    }
    expect(harness.reasons()).toEqual(["line_timeout"])
    expect(harness.closed[0]?.connection).toBe(harness.connections[0])
  })

  test("commands are written with their lengths, in any parts", () => {
    const harness = new Harness({ framing })
    const { connection, socket } = harness.admit()
    const bodies = ["a\nb", "", "\r\n"]
    socket.room = 0
    for (const body of bodies) connection.offer(harness.backEnd.command(body))
    harness.flush()
    while (connection.outgoingBytes > 0) {
      socket.room = 1
      connection.flush()
    }
    expect(socket.wire).toBe(textOf(frames(...bodies)))
    expect(harness.backEnd.bodies("written")).toEqual(bodies)
  })

  test("the goodbye line is written with its length", () => {
    const harness = new Harness({ framing })
    harness.goodbye = new Goodbye({
      template: "BYE {reason}",
      returnsPerS: () => 1,
      steadyMs: () => harness.steadyMs,
      random: () => 0,
    })
    const { connection, socket } = harness.admit()
    connection.close("kicked")
    expect(socket.wire).toBe(textOf(frames("BYE kicked")))
  })
})
