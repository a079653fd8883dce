/**
 * Backpressure: waiting readers are resumed in order of arrival and only while there is room. Held
 * bytes above the bound suspend all reading, and half of the bound resumes it, with one callback
 * each.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { Backpressure, type WaitingReader } from "../../src/device/backpressure.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

/** A window with room for `room` more lines. */
function withRoom(room: number, maxHeldBytes = 100) {
  const window = { room }
  const told: boolean[] = []
  const backpressure = new Backpressure(
    maxHeldBytes,
    {
      get hasRoom() {
        return window.room > 0
      },
    },
    (suspended) => told.push(suspended),
  )
  return { window, told, backpressure }
}

describe("waiting for room", () => {
  class Reader implements WaitingReader {
    readonly name: string
    lines: number
    readonly #window: { room: number }
    readonly #log: string[]

    constructor(name: string, lines: number, window: { room: number }, log: string[]) {
      this.name = name
      this.lines = lines
      this.#window = window
      this.#log = log
    }

    pump(): boolean {
      while (this.lines > 0) {
        if (this.#window.room === 0) return false
        this.#window.room -= 1
        this.lines -= 1
        this.#log.push(this.name)
      }
      return true
    }
  }

  test("in order of arrival; a reader that must wait again goes to the end", () => {
    const { window, backpressure } = withRoom(0)
    const log: string[] = []
    const readers = ["a", "b", "c"].map((name) => new Reader(name, 2, window, log))
    for (const reader of readers) backpressure.wait(reader)
    backpressure.roomAgain()
    expect([log.join(""), backpressure.waitingCount]).toEqual(["", 3])
    window.room = 3
    backpressure.roomAgain()
    expect([log.join(""), backpressure.waitingCount]).toEqual(["aab", 2])
    window.room = 10
    backpressure.roomAgain()
    expect([log.join(""), backpressure.waitingCount]).toEqual(["aabccb", 0])
  })

  test("a reader that waits twice has one entry, at its first position", () => {
    const { window, backpressure } = withRoom(0)
    const log: string[] = []
    const [a, b] = ["a", "b"].map((name) => new Reader(name, 1, window, log))
    for (const reader of [a, b, a]) if (reader) backpressure.wait(reader)
    expect(backpressure.waitingCount).toBe(2)
    window.room = 2
    backpressure.roomAgain()
    expect([log.join(""), window.room]).toEqual(["ab", 0])
  })

  test("a reader that begins to wait during a round is served in it if there is room", () => {
    const { window, backpressure } = withRoom(2)
    const log: string[] = []
    const late = new Reader("late", 1, window, log)
    backpressure.wait({
      pump: () => {
        window.room -= 1
        backpressure.wait(late)
        return true
      },
    })
    backpressure.roomAgain()
    expect([log, backpressure.waitingCount]).toEqual([["late"], 0])
  })

  test("any lines and any room: no line is lost, and the lines of each reader keep their order", () => {
    const lineCounts = fc.array(fc.nat(5), { maxLength: 8, size: "max" })
    const rooms = fc.array(fc.nat(6), { maxLength: 12, size: "max" })
    check(
      fc.property(lineCounts, rooms, (counts, grants) => {
        const { window, backpressure } = withRoom(0)
        const log: string[] = []
        const readers = counts.map((lines, i) => new Reader(String(i), lines, window, log))
        for (const reader of readers) backpressure.wait(reader)
        let total = counts.reduce((sum, lines) => sum + lines, 0)
        for (const grant of grants) {
          window.room = grant
          backpressure.roomAgain()
          total -= grant - window.room
          // Room is left only when no reader waits for it.
          if (window.room > 0) expect(backpressure.waitingCount).toBe(0)
          expect(log.length).toBe(counts.reduce((sum, lines) => sum + lines, 0) - total)
        }
        window.room = 1_000
        backpressure.roomAgain()
        expect(backpressure.waitingCount).toBe(0)
        expect(readers.map(({ lines }) => lines)).toEqual(counts.map(() => 0))
      }),
      CHEAP_RUNS,
    )
  })
})

describe("held bytes", () => {
  test("suspended above the bound, not at it; resumed at half of it, not above", () => {
    const { told, backpressure } = withRoom(0)
    backpressure.hold(100)
    expect([backpressure.suspended, told]).toEqual([false, []])
    backpressure.hold(1)
    expect([backpressure.suspended, told]).toEqual([true, [true]])
    backpressure.hold(-50)
    expect([backpressure.heldBytes, backpressure.suspended]).toEqual([51, true])
    backpressure.hold(-1)
    expect([backpressure.suspended, told]).toEqual([false, [true, false]])
    backpressure.hold(50)
    expect(told).toEqual([true, false])
  })

  test("the callback sees the new state", () => {
    const seen: boolean[] = []
    const backpressure: Backpressure = new Backpressure(10, { hasRoom: true }, () =>
      seen.push(backpressure.suspended),
    )
    backpressure.hold(11)
    backpressure.hold(-11)
    expect(seen).toEqual([true, false])
  })

  test("any changes: the callback alternates, and the sum is right", () => {
    check(
      fc.property(fc.array(fc.integer({ min: -60, max: 80 }), { maxLength: 40 }), (changes) => {
        const { told, backpressure } = withRoom(0)
        let heldBytes = 0
        for (const change of changes) {
          const bounded = Math.max(-heldBytes, change)
          heldBytes += bounded
          backpressure.hold(bounded)
          expect(backpressure.heldBytes).toBe(heldBytes)
          if (heldBytes > 100) expect(backpressure.suspended).toBe(true)
          if (heldBytes <= 50) expect(backpressure.suspended).toBe(false)
        }
        expect(told).toEqual(told.map((_, i) => i % 2 === 0))
        expect(told.at(-1) ?? false).toBe(backpressure.suspended)
      }),
      CHEAP_RUNS,
    )
  })
})
