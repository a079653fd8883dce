/**
 * The reorder buffer with permutations, repeats, losses and times, compared with a model that
 * remembers all numbers. Then each of its bounds.
 */

import { heapSize } from "bun:jsc"
import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import {
  MAX_SEQ_AHEAD,
  type NumberedCommand,
  ReorderBuffer,
} from "../../src/device/reorder-buffer.ts"
import { testCommand } from "../support/commands.ts"
import { CHEAP_RUNS, check, RUNS } from "../support/property.ts"

const GAP_TIMEOUT_MS = 10

function numbered(seq: number): NumberedCommand {
  return { ...testCommand(), seq }
}

function seqsOf(commands: readonly NumberedCommand[]): number[] {
  return commands.map(({ seq }) => seq)
}

/** A buffer, and what it may do according to all that was offered to it and all it released. */
class Watched {
  readonly buffer: ReorderBuffer
  readonly window: number
  readonly released: number[] = []
  /** Arrival by number. */
  readonly held = new Map<number, number>()
  gaps = 0

  constructor(windowCommands: number) {
    this.window = windowCommands
    this.buffer = new ReorderBuffer({ windowCommands, gapTimeoutMs: GAP_TIMEOUT_MS })
  }

  get next(): number {
    return (this.released.at(-1) ?? -1) + 1
  }

  offer(seq: number, nowMs: number): void {
    const before = this.next
    const wasReleased = this.released.includes(seq)
    const wasHeld = this.held.has(seq)
    const command = numbered(seq)
    const out: NumberedCommand[] = []
    const verdict = this.buffer.offer(command, nowMs, out)
    if (wasReleased || wasHeld) {
      expect(verdict).toBe("duplicate")
      expect(out).toEqual([])
    } else if (seq < before) {
      expect(verdict).toBe("late")
      expect(out).toEqual([])
    } else if (seq > before + MAX_SEQ_AHEAD) {
      expect(verdict).toBe("too_far")
      expect(out).toEqual([])
    } else {
      this.held.set(seq, nowMs)
      if (seq > before && this.held.size <= this.window) expect(out).toEqual([])
      // Full, or the next: what is lowest goes out, and all that follow it without a gap.
      else expect(seqsOf(out)).toEqual(this.#run())
      this.#took(out)
      expect(verdict).toBe(this.held.has(seq) ? "held" : "released")
      expect(out.includes(command)).toBe(verdict === "released")
    }
    this.#expectBounds()
  }

  expire(nowMs: number): void {
    const due = [...this.held].filter(([, atMs]) => atMs + GAP_TIMEOUT_MS <= nowMs)
    const highest = Math.max(-1, ...due.map(([seq]) => seq))
    const out: NumberedCommand[] = []
    this.buffer.expire(nowMs, out)
    const expected = [...this.held.keys()].filter((seq) => seq <= highest)
    for (let seq = highest + 1; due.length > 0 && this.held.has(seq); seq += 1) expected.push(seq)
    expect(seqsOf(out)).toEqual(expected.sort((a, b) => a - b))
    this.#took(out)
    for (const atMs of this.held.values()) expect(atMs + GAP_TIMEOUT_MS).toBeGreaterThan(nowMs)
    this.#expectBounds()
  }

  #run(): number[] {
    const lowest = Math.min(...this.held.keys())
    const run = []
    for (let seq = lowest; this.held.has(seq); seq += 1) run.push(seq)
    return run
  }

  #took(commands: readonly NumberedCommand[]): void {
    for (const { seq } of commands) {
      expect(seq).toBeGreaterThanOrEqual(this.next)
      expect(this.held.delete(seq)).toBe(true)
      if (seq > this.next) this.gaps += 1
      this.released.push(seq)
    }
  }

  #expectBounds(): void {
    const { buffer, held } = this
    expect(buffer.heldCount).toBe(held.size)
    expect(held.size).toBeLessThanOrEqual(this.window)
    expect(buffer.gaps).toBe(this.gaps)
    for (const seq of held.keys()) expect(buffer.heldAt(seq)?.seq).toBe(seq)
    if (!held.has(this.next)) expect(buffer.heldAt(this.next)).toBeUndefined()
  }
}

type Step = { readonly offer: number } | { readonly waitMs: number; readonly sweep: boolean }

function steps(maxSeq: number): fc.Arbitrary<Step[]> {
  return fc.array(
    fc.oneof(
      { weight: 4, arbitrary: fc.record({ offer: fc.nat(maxSeq) }) },
      { weight: 1, arbitrary: fc.record({ waitMs: fc.nat(15), sweep: fc.boolean() }) },
    ),
    { maxLength: 60, size: "max" },
  )
}

test("any numbers at any times: each exactly one verdict, out in ascending order, none overdue", () => {
  check(
    fc.property(steps(20), fc.integer({ min: 1, max: 6 }), (sequence, window) => {
      const watched = new Watched(window)
      let nowMs = 1_000
      for (const step of sequence) {
        if ("offer" in step) watched.offer(step.offer, nowMs)
        else {
          nowMs += step.waitMs
          if (step.sweep) watched.expire(nowMs)
        }
      }
      watched.expire(nowMs + GAP_TIMEOUT_MS)
      expect(watched.held.size).toBe(0)
      expect(watched.released).toEqual([...new Set(watched.released)].sort((a, b) => a - b))
    }),
    CHEAP_RUNS,
  )
})

const shuffled = (length: number) => {
  const all = Array.from({ length }, (_, seq) => seq)
  return fc.shuffledSubarray(all, { minLength: length })
}

test("a window as large as the disorder gives the order back, without a gap", () => {
  check(
    fc.property(fc.nat(40).chain(shuffled), (order) => {
      const buffer = new ReorderBuffer({ windowCommands: 41, gapTimeoutMs: GAP_TIMEOUT_MS })
      const out: NumberedCommand[] = []
      for (const seq of order) buffer.offer(numbered(seq), 0, out)
      expect(seqsOf(out)).toEqual(order.toSorted((a, b) => a - b))
      expect([buffer.gaps, buffer.heldCount]).toEqual([0, 0])
    }),
    CHEAP_RUNS,
  )
})

test("lost commands cost at most one gap time-out, and all others are released in order", () => {
  const all = Array.from({ length: 30 }, (_, seq) => seq)
  check(
    fc.property(fc.shuffledSubarray(all), (order) => {
      const buffer = new ReorderBuffer({ windowCommands: 30, gapTimeoutMs: GAP_TIMEOUT_MS })
      const out: NumberedCommand[] = []
      for (const [i, seq] of order.entries()) buffer.offer(numbered(seq), i / 10, out)
      buffer.expire(order.length / 10 + GAP_TIMEOUT_MS, out)
      expect(seqsOf(out)).toEqual(order.toSorted((a, b) => a - b))
      expect(buffer.heldCount).toBe(0)
    }),
    CHEAP_RUNS,
  )
})

describe("time", () => {
  const limits = { windowCommands: 10, gapTimeoutMs: GAP_TIMEOUT_MS }

  test("a gap is given up when its time is over, and not a millisecond before", () => {
    const buffer = new ReorderBuffer(limits)
    const out: NumberedCommand[] = []
    buffer.offer(numbered(3), 100, out)
    buffer.expire(109, out)
    expect([seqsOf(out), buffer.gaps]).toEqual([[], 0])
    buffer.expire(110, out)
    expect([seqsOf(out), buffer.gaps, buffer.heldCount]).toEqual([[3], 1, 0])
  })

  test("a younger command above a later gap continues to wait", () => {
    const buffer = new ReorderBuffer(limits)
    const out: NumberedCommand[] = []
    buffer.offer(numbered(3), 100, out)
    buffer.offer(numbered(6), 105, out)
    buffer.expire(114, out)
    expect([seqsOf(out), buffer.heldCount]).toEqual([[3], 1])
    buffer.offer(numbered(4), 111, out)
    buffer.offer(numbered(5), 111, out)
    expect([seqsOf(out), buffer.gaps]).toEqual([[3, 4, 5, 6], 1])
  })

  test("a younger command below one that is due goes out before it", () => {
    const buffer = new ReorderBuffer(limits)
    const out: NumberedCommand[] = []
    buffer.offer(numbered(6), 100, out)
    buffer.offer(numbered(3), 109, out)
    buffer.expire(110, out)
    expect([seqsOf(out), buffer.gaps]).toEqual([[3, 6], 2])
  })

  test("after the clock was set back, a command that has waited its time by it goes out", () => {
    const buffer = new ReorderBuffer(limits)
    const out: NumberedCommand[] = []
    buffer.offer(numbered(5), 1_000, out)
    buffer.offer(numbered(3), 100, out)
    buffer.expire(100 + GAP_TIMEOUT_MS, out)
    expect(seqsOf(out)).toContain(3)
  })
})

describe("late and duplicate", () => {
  function afterGap(): { buffer: ReorderBuffer; out: NumberedCommand[] } {
    const buffer = new ReorderBuffer({ windowCommands: 10, gapTimeoutMs: GAP_TIMEOUT_MS })
    const out: NumberedCommand[] = []
    for (const seq of [0, 1, 4, 7]) buffer.offer(numbered(seq), 0, out)
    buffer.expire(GAP_TIMEOUT_MS, out)
    expect(seqsOf(out)).toEqual([0, 1, 4, 7])
    return { buffer, out: [] }
  }

  test.each([2, 3, 5, 6])("%d of a skipped gap is late, as often as it comes", (seq) => {
    const { buffer, out } = afterGap()
    expect(buffer.offer(numbered(seq), 20, out)).toBe("late")
    expect(buffer.offer(numbered(seq), 20, out)).toBe("late")
    expect(out).toEqual([])
  })

  test.each([0, 1, 4, 7])("%d, released, is a duplicate", (seq) => {
    const { buffer, out } = afterGap()
    expect(buffer.offer(numbered(seq), 20, out)).toBe("duplicate")
    expect(out).toEqual([])
  })

  test("a number that is held is a duplicate, and the one held keeps its turn", () => {
    const { buffer, out } = afterGap()
    const first = numbered(10)
    buffer.offer(first, 20, out)
    expect(buffer.offer(numbered(10), 25, out)).toBe("duplicate")
    buffer.expire(29, out)
    expect(out).toEqual([])
    buffer.expire(30, out)
    expect(out).toEqual([first])
  })

  test("a number that was never released stays late however many gaps came after its own", () => {
    // It would end as a duplicate otherwise: neither written nor kept.
    const buffer = new ReorderBuffer({ windowCommands: 1, gapTimeoutMs: GAP_TIMEOUT_MS })
    const out: NumberedCommand[] = []
    for (let seq = 1; seq <= 601; seq += 2) {
      buffer.offer(numbered(seq), seq, out)
      buffer.expire(seq + GAP_TIMEOUT_MS, out)
    }
    expect(buffer.gaps).toBe(301)
    for (const seq of [0, 2, 300, 598, 600]) {
      expect([seq, buffer.offer(numbered(seq), 9_999, [])]).toEqual([seq, "late"])
    }
  })
})

describe("a number that was released and not written", () => {
  test("is late from then on; those around it, written, are duplicates", () => {
    const buffer = new ReorderBuffer({ windowCommands: 10, gapTimeoutMs: GAP_TIMEOUT_MS })
    for (const seq of [0, 1, 2, 3, 4]) buffer.offer(numbered(seq), 0, [])
    for (const seq of [3, 1, 2]) buffer.unwritten(seq)
    const verdicts = [0, 1, 2, 3, 4].map((seq) => buffer.offer(numbered(seq), 0, []))
    expect(verdicts).toEqual(["duplicate", "late", "late", "late", "duplicate"])
    expect([buffer.gaps, buffer.heldCount]).toEqual([0, 0])
  })

  test("however many there are, none is ever called a duplicate", () => {
    const buffer = new ReorderBuffer({ windowCommands: 10, gapTimeoutMs: GAP_TIMEOUT_MS })
    for (let seq = 0; seq < 1_000; seq += 1) buffer.offer(numbered(seq), 0, [])
    for (let seq = 0; seq < 1_000; seq += 2) buffer.unwritten(seq)
    for (let seq = 0; seq < 1_000; seq += 2) {
      expect([seq, buffer.offer(numbered(seq), 0, [])]).toEqual([seq, "late"])
    }
    expect(buffer.offer(numbered(999), 0, [])).toBe("duplicate")
  })
})

describe("the window", () => {
  test("full: the lowest gap is given up at once, one gap only", () => {
    const buffer = new ReorderBuffer({ windowCommands: 3, gapTimeoutMs: GAP_TIMEOUT_MS })
    const out: NumberedCommand[] = []
    for (const seq of [9, 5, 7]) expect(buffer.offer(numbered(seq), 0, out)).toBe("held")
    expect(out).toEqual([])
    expect(buffer.offer(numbered(11), 0, out)).toBe("held")
    expect([seqsOf(out), buffer.gaps, buffer.heldCount]).toEqual([[5], 1, 3])
    expect(buffer.offer(numbered(6), 0, out)).toBe("released")
    expect([seqsOf(out), buffer.gaps]).toEqual([[5, 6, 7], 1])
  })

  test("full: the command that fills it may be the lowest itself", () => {
    const buffer = new ReorderBuffer({ windowCommands: 2, gapTimeoutMs: GAP_TIMEOUT_MS })
    const out: NumberedCommand[] = []
    buffer.offer(numbered(8), 0, out)
    buffer.offer(numbered(4), 0, out)
    expect(buffer.offer(numbered(3), 0, out)).toBe("released")
    expect([seqsOf(out), buffer.gaps, buffer.heldCount]).toEqual([[3, 4], 1, 1])
  })

  test("the largest configurable window works", () => {
    const buffer = new ReorderBuffer({ windowCommands: 16_384, gapTimeoutMs: GAP_TIMEOUT_MS })
    const out: NumberedCommand[] = []
    for (let i = 0; i <= 16_384; i += 1) buffer.offer(numbered(40_000 - 2 * i), 0, out)
    expect([seqsOf(out), buffer.heldCount]).toEqual([[40_000 - 2 * 16_384], 16_384])
  })
})

describe("far numbers", () => {
  const LAST = Number.MAX_SAFE_INTEGER
  const limits = { windowCommands: 4, gapTimeoutMs: GAP_TIMEOUT_MS }

  test("more than 1,000,000 above the next are too far, and the state does not change", () => {
    const buffer = new ReorderBuffer(limits)
    const out: NumberedCommand[] = []
    buffer.offer(numbered(0), 0, out)
    for (const seq of [1_000_002, 2_000_000, LAST]) {
      for (let n = 0; n < 10; n += 1) expect(buffer.offer(numbered(seq), 0, out)).toBe("too_far")
      expect(buffer.heldAt(seq)).toBeUndefined()
    }
    buffer.expire(1_000, out)
    buffer.giveUpGap(out)
    expect([seqsOf(out), buffer.heldCount, buffer.gaps]).toEqual([[0], 0, 0])
    expect(buffer.offer(numbered(1), 0, out)).toBe("released")
  })

  test("1,000,000 beyond the next waits, and after its gap the limit has moved with it", () => {
    const watched = new Watched(4)
    watched.offer(0, 0)
    watched.offer(1_000_001, 0)
    watched.offer(1_000_002, 0)
    expect([...watched.held.keys()]).toEqual([1_000_001])
    watched.expire(GAP_TIMEOUT_MS)
    expect([watched.released, watched.gaps]).toEqual([[0, 1_000_001], 1])
    watched.offer(2_000_002, 20)
    expect([...watched.held.keys()]).toEqual([2_000_002])
  })

  test("a number that was not too far is not after a rewind either, whatever comes first", () => {
    const buffer = new ReorderBuffer(limits)
    buffer.offer({ ...numbered(0), lost: true }, 0, [])
    expect(buffer.offer({ ...numbered(1_000_001), lost: true }, 0, [])).toBe("held")
    expect(seqsOf(buffer.withdrawLost())).toEqual([1_000_001])
    buffer.rewind(0)
    const out: NumberedCommand[] = []
    expect(buffer.offer(numbered(1_000_002), 0, out)).toBe("too_far")
    expect(buffer.offer(numbered(1_000_001), 0, out)).toBe("held")
    expect(buffer.offer(numbered(0), 0, out)).toBe("released")
    expect(seqsOf(out)).toEqual([0])
  })

  test("any safe integers behave like the model", () => {
    const near = fc.integer({ min: MAX_SEQ_AHEAD - 3, max: MAX_SEQ_AHEAD + 5 })
    const twice = fc.integer({ min: 2 * MAX_SEQ_AHEAD - 3, max: 2 * MAX_SEQ_AHEAD + 5 })
    const last = fc.integer({ min: LAST - 3, max: LAST })
    const seq = fc.oneof(fc.nat(5), near, twice, last, fc.maxSafeNat())
    check(
      fc.property(fc.array(seq, { maxLength: 20, size: "max" }), (seqs) => {
        const watched = new Watched(3)
        for (const [i, seq] of seqs.entries()) watched.offer(seq, i)
        watched.expire(100)
      }),
      RUNS,
    )
  })
})

describe("clear, withdraw and rewind", () => {
  test("clear removes all held commands, in ascending order", () => {
    const buffer = new ReorderBuffer({ windowCommands: 10, gapTimeoutMs: GAP_TIMEOUT_MS })
    for (const seq of [5, 2, 9]) buffer.offer(numbered(seq), 0, [])
    expect(seqsOf(buffer.clear())).toEqual([2, 5, 9])
    expect([buffer.heldCount, buffer.clear()]).toEqual([0, []])
  })

  test("withdraws held commands that are lost, in ascending order, and keeps the rest", () => {
    const buffer = new ReorderBuffer({ windowCommands: 10, gapTimeoutMs: GAP_TIMEOUT_MS })
    for (const seq of [9, 2, 5]) buffer.offer({ ...numbered(seq), lost: seq !== 5 }, 0, [])
    expect(seqsOf(buffer.withdrawLost())).toEqual([2, 9])
    expect([buffer.heldCount, buffer.heldAt(5)?.seq]).toEqual([1, 5])
  })

  test("after a rewind expects the same numbers again, without skipped ones", () => {
    const buffer = new ReorderBuffer({ windowCommands: 10, gapTimeoutMs: GAP_TIMEOUT_MS })
    // 2 and 3 are given up, 5 is released and not written after all.
    for (const seq of [0, 1, 4, 5, 6]) buffer.offer(numbered(seq), 0, [])
    buffer.expire(GAP_TIMEOUT_MS, [])
    buffer.unwritten(5)
    buffer.rewind(1)
    const out: NumberedCommand[] = []
    const verdicts = [0, 2, 3, 5, 6, 4].map((seq) => buffer.offer(numbered(seq), 20, out))
    expect(verdicts).toEqual(["duplicate", "late", "late", "late", "held", "held"])
    expect(buffer.offer(numbered(1), 20, out)).toBe("released")
    expect(buffer.offer(numbered(7), 20, out)).toBe("released")
    expect([seqsOf(out), buffer.heldCount]).toEqual([[1, 4, 6, 7], 0])
  })

  test("a rewind goes back only", () => {
    const buffer = new ReorderBuffer({ windowCommands: 10, gapTimeoutMs: GAP_TIMEOUT_MS })
    expect(() => buffer.rewind(1)).toThrow("beyond the next number 0")
  })
})

describe("a held command that has ended", () => {
  const GONE = 2

  /** Numbers 1 to 3 are held, and the second of them has ended. */
  function vacated() {
    const buffer = new ReorderBuffer({ windowCommands: 10, gapTimeoutMs: GAP_TIMEOUT_MS })
    for (const seq of [1, GONE, 3]) buffer.offer(numbered(seq), 0, [])
    buffer.vacate(numbered(GONE))
    return buffer
  }

  test("is not released, and its number is used", () => {
    const buffer = vacated()
    expect([buffer.heldCount, buffer.heldAt(GONE)]).toEqual([2, undefined])
    expect(buffer.offer(numbered(GONE), 0, [])).toBe("late")
    const out: NumberedCommand[] = []
    expect(buffer.offer(numbered(0), 0, out)).toBe("released")
    expect([seqsOf(out), buffer.gaps, buffer.heldCount]).toEqual([[0, 1, 3], 0, 0])
    expect(buffer.offer(numbered(GONE), 0, [])).toBe("late")
    expect(buffer.offer(numbered(4), 0, [])).toBe("released")
  })

  test("as the highest one: the next number is the one after it", () => {
    const buffer = new ReorderBuffer({ windowCommands: 10, gapTimeoutMs: GAP_TIMEOUT_MS })
    buffer.offer(numbered(1), 0, [])
    buffer.vacate(numbered(1))
    const out: NumberedCommand[] = []
    buffer.offer(numbered(0), 0, out)
    expect(buffer.offer(numbered(2), 0, out)).toBe("released")
    expect(seqsOf(out)).toEqual([0, 2])
  })

  test("is neither cleared nor withdrawn", () => {
    expect(seqsOf(vacated().clear())).toEqual([1, 3])
    const buffer = new ReorderBuffer({ windowCommands: 10, gapTimeoutMs: GAP_TIMEOUT_MS })
    for (const seq of [1, GONE]) buffer.offer({ ...numbered(seq), lost: true }, 0, [])
    buffer.vacate(numbered(GONE))
    expect(seqsOf(buffer.withdrawLost())).toEqual([1])
    expect(buffer.clear()).toEqual([])
  })

  test("gives up the gap below it when its time is over", () => {
    const buffer = new ReorderBuffer({ windowCommands: 10, gapTimeoutMs: GAP_TIMEOUT_MS })
    buffer.offer(numbered(1), 0, [])
    buffer.vacate(numbered(1))
    buffer.offer(numbered(2), GAP_TIMEOUT_MS - 1, [])
    const out: NumberedCommand[] = []
    buffer.expire(GAP_TIMEOUT_MS, out)
    expect([seqsOf(out), buffer.gaps]).toEqual([[2], 1])
  })

  test("keeps its place in a full buffer", () => {
    const buffer = new ReorderBuffer({ windowCommands: 2, gapTimeoutMs: GAP_TIMEOUT_MS })
    for (const seq of [2, 4]) buffer.offer(numbered(seq), 0, [])
    buffer.vacate(numbered(2))
    const out: NumberedCommand[] = []
    expect(buffer.offer(numbered(6), 0, out)).toBe("held")
    expect([seqsOf(out), buffer.gaps, buffer.heldCount]).toEqual([[], 1, 2])
  })
})

test("the memory of one buffer stays bounded over 200,000 gaps", () => {
  const buffer = new ReorderBuffer({ windowCommands: 1, gapTimeoutMs: 0 })
  const command = numbered(0)
  Bun.gc(true)
  const beforeBytes = heapSize()
  const out: NumberedCommand[] = []
  for (let i = 1; i <= 200_000; i += 1) {
    buffer.offer({ ...command, seq: 2 * i + 1 }, i, out)
    buffer.expire(i, out)
    out.length = 0
  }
  expect(buffer.gaps).toBe(200_000)
  Bun.gc(true)
  expect(heapSize() - beforeBytes).toBeLessThan(2_000_000)
})
