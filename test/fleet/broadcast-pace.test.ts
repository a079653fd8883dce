/** The rate of a broadcast is divided over the workers completely, and never exceeded. */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { BroadcastPace, sharesOf } from "../../src/fleet/broadcast-pace.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

const NOW_MS = 5_000
const perS = fc.integer({ min: 1, max: 100_000 })

describe("shares", () => {
  test("add up to the rate, and are in proportion to the lines", () => {
    check(
      fc.property(
        perS,
        fc.array(fc.nat({ max: 100_000 }), { minLength: 1, maxLength: 50 }),
        (rate, lines) => {
          const total = lines.reduce((sum, count) => sum + count, 0)
          fc.pre(total > 0)
          const shares = sharesOf(rate, lines)
          expect(shares.reduce((sum, share) => sum + share, 0)).toBeCloseTo(rate, 5)
          // All end at the same time.
          for (const [at, share] of shares.entries()) {
            if (share > 0) expect((lines[at] ?? 0) / share).toBeCloseTo(total / rate, 5)
            else expect(lines[at]).toBe(0)
          }
        },
      ),
      CHEAP_RUNS,
    )
  })

  test("of one worker that holds all devices are the whole rate", () => {
    expect(sharesOf(1_000, [0, 500, 0])).toEqual([0, 1_000, 0])
  })

  test("of workers without lines are nothing", () => {
    expect(sharesOf(1_000, [0, 0])).toEqual([0, 0])
    expect(sharesOf(1_000, [])).toEqual([])
  })
})

describe("a pace", () => {
  /** What is due at each tick, of ticks with these distances. */
  function run(rate: number, ticksMs: readonly number[], max = 1_000_000) {
    const pace = new BroadcastPace(rate, NOW_MS)
    let atMs = 0
    return ticksMs.map((ms) => {
      atMs += ms
      return { atMs, due: pace.due(max, NOW_MS + atMs) }
    })
  }

  test("never exceeds its rate, counted from the start, whenever it is asked", () => {
    const ticks = fc.array(fc.nat({ max: 500 }), { minLength: 1, maxLength: 50 })
    check(
      fc.property(fc.integer({ min: 1, max: 5_000 }), ticks, (rate, ticksMs) => {
        let written = 0
        for (const { atMs, due } of run(rate, ticksMs)) {
          written += due
          expect(written).toBeLessThanOrEqual((atMs / 1_000) * rate + 1e-6)
        }
      }),
    )
  })

  test("reaches its rate when it is asked often enough", () => {
    const ticks = fc.array(fc.integer({ min: 1, max: 99 }), { minLength: 1, maxLength: 50 })
    check(
      fc.property(fc.integer({ min: 1, max: 5_000 }), ticks, (rate, ticksMs) => {
        const ran = run(rate, ticksMs)
        const written = ran.reduce((sum, { due }) => sum + due, 0)
        const seconds = (ran.at(-1)?.atMs ?? 0) / 1_000
        // Sums of fractions of a millisecond are not exact.
        expect(written).toBeGreaterThanOrEqual(Math.floor(seconds * rate - 1e-3))
      }),
    )
  })

  test("catches up on a tenth of a second only", () => {
    expect(run(1_000, [10_000, 0, 10]).map(({ due }) => due)).toEqual([101, 0, 10])
  })

  test("gives at most as much as is asked for, and the rest later", () => {
    expect(run(1_000, [50, 0, 0], 20).map(({ due }) => due)).toEqual([20, 20, 10])
  })

  test("says when the next line is due", () => {
    const pace = new BroadcastPace(2, NOW_MS)
    expect(pace.waitMs(NOW_MS)).toBe(500)
    expect(pace.waitMs(NOW_MS + 500)).toBe(0)
  })
})
