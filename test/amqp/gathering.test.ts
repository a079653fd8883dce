/** How long messages wait for later ones: at any rate, after any silence, within the cap. */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { Gathering } from "../../src/amqp/gathering.ts"
import { check } from "../support/property.ts"

interface Gathered {
  readonly waitsMs: number[]
  readonly writes: number
}

/** Messages at these times, each batch written at the end of the tick in which its wait is over. */
function gather(maxMs: number, timesMs: readonly number[]): Gathered {
  const gathering = new Gathering(maxMs)
  const waitsMs: number[] = []
  let writes = 0
  let dueMs: number | null = null
  const write = (atMs: number) => {
    gathering.written(atMs)
    writes += 1
    dueMs = null
  }
  for (const atMs of timesMs) {
    if (dueMs !== null && dueMs < atMs) write(dueMs)
    const isEnough = gathering.added(atMs)
    if (dueMs === null) {
      const waitMs = gathering.waitMs(atMs)
      waitsMs.push(waitMs)
      dueMs = atMs + waitMs
    }
    if (isEnough) write(atMs)
  }
  if (dueMs !== null) write(dueMs)
  return { waitsMs, writes }
}

function steady(perS: number, seconds: number): number[] {
  return Array.from({ length: perS * seconds }, (_, n) => (n * 1000) / perS)
}

describe("a message", () => {
  test("does not wait when none came before it", () => {
    expect(gather(2, [0]).waitsMs).toEqual([0])
  })

  test("does not wait with a cap of 0, at any rate", () => {
    expect(new Set(gather(0, steady(20_000, 1)).waitsMs)).toEqual(new Set([0]))
  })

  test.each([1, 50, 500])("does not wait at %d a second", (perS) => {
    expect(gather(2, steady(perS, 2)).writes).toBe(perS * 2)
  })

  test.each([1_000, 3_000, 10_000])(
    "at %d a second shares its write with about one other or more",
    (perS) => {
      expect(gather(2, steady(perS, 2)).writes).toBeLessThan((perS * 2) / 1.8)
    },
  )

  test("waits no longer than four of them take to come", () => {
    expect(gather(100, steady(3_000, 2)).waitsMs.at(-1)).toBe(1)
  })

  test("does not wait after a silence of a second", () => {
    const busyMs = steady(3_000, 1)
    const { waitsMs } = gather(2, [...busyMs, 2_000])
    expect(waitsMs.slice(-2)).toEqual([1, 0])
  })

  test("is written at the end of the tick when it is the 32nd", () => {
    const gathering = new Gathering(100)
    const enough = Array.from({ length: 32 }, () => gathering.added(5_000))
    expect(enough).toEqual([...new Array(31).fill(false), true])
    gathering.written(5_000)
    expect(gathering.added(5_000)).toBe(false)
  })

  test("does not wait at 100 a second when bursts come beside it", () => {
    const bursts = steady(50, 2).flatMap((atMs) => Array.from({ length: 30 }, () => atMs + 3))
    const { writes } = gather(
      2,
      [...steady(100, 2), ...bursts].sort((a, b) => a - b),
    )
    expect(writes).toBe(200 + 100)
  })

  test("waits a whole number of milliseconds, at most the cap, whenever it comes", () => {
    check(
      fc.property(
        fc.integer({ min: 0, max: 100 }),
        fc.array(fc.double({ min: 0, max: 300, noNaN: true }), { maxLength: 300 }),
        (maxMs, gapsMs) => {
          let atMs = 0
          const timesMs = gapsMs.map((gapMs) => {
            atMs += gapMs
            return atMs
          })
          for (const waitMs of gather(maxMs, timesMs).waitsMs) {
            expect(Number.isInteger(waitMs)).toBe(true)
            expect(waitMs).toBeWithin(0, maxMs + 1)
          }
        },
      ),
    )
  })
})
