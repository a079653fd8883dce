/** The entries of one tape: what readers get, in which order, and what was dropped. */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { sizeOf, type TapeEntry, type TapeItem } from "../../../src/fleet/tape/entry.ts"
import { Tape } from "../../../src/fleet/tape/tape.ts"
import { type TapeRead, TapeReader } from "../../../src/fleet/tape/tape-reader.ts"
import { CHEAP_RUNS, checkAsync } from "../../support/property.ts"

const ALL = { maxItems: 1_000, maxBytes: 1e9 }

function line(seq: number): TapeItem {
  return { at: 1, kind: "in", connection_id: "gw1.0.x.0", seq, bytes: 3 }
}

function filled(count: number, maxBytes = 1e9): Tape {
  const tape = new Tape(maxBytes)
  for (let seq = 0; seq < count; seq += 1) tape.add(line(seq), sizeOf(line(seq)), `k${seq}`)
  return tape
}

function readerOf(tape: Tape, limits = ALL): () => Promise<TapeRead> {
  const reader = new TapeReader(async (from) => ({ part: tape.read(from, limits), isOver: false }))
  return async () => {
    const read = await reader.read()
    if (typeof read === "string") throw new Error(read)
    return read
  }
}

const seqsOf = (items: readonly TapeItem[]) =>
  items.map((item) =>
    item.kind === "dropped" ? `-${item.count}` : "seq" in item ? item.seq : item.kind,
  )

describe("a tape", () => {
  test("is read in parts of so many items, or so many bytes, and at least one", () => {
    const tape = filled(5)
    expect(seqsOf(tape.read(0, { maxItems: 2, maxBytes: 1e9 }).items)).toEqual([0, 1])
    expect(seqsOf(tape.read(2, { maxItems: 9, maxBytes: 1 }).items)).toEqual([2])
    expect(seqsOf(tape.read(3, ALL).items)).toEqual([3, 4])
    expect(tape.read(9, ALL)).toEqual({ first: 5, before: 5, items: [], end: 5 })
  })

  test("beyond its bytes drops the oldest entries", () => {
    const tape = filled(10, 4 * sizeOf(line(0)))
    expect(tape.bytes).toBeLessThanOrEqual(4 * sizeOf(line(0)))
    expect(tape.read(0, ALL)).toMatchObject({ first: 6, before: 6 })
    expect(seqsOf(tape.read(0, ALL).items)).toEqual([6, 7, 8, 9])
  })

  test("an entry that is larger than the tape is dropped at once", () => {
    const tape = filled(3, 10)
    expect(tape.read(0, ALL)).toEqual({ first: 3, before: 3, items: [], end: 3 })
    expect(tape.bytes).toBe(0)
  })

  test("an entry is completed once, in its place, and those who have read it are told", () => {
    const tape = filled(2)
    tape.complete("k0", { confirmed_at: 7 }, 50)
    tape.complete("k0", { confirmed_at: 8 }, 50)
    tape.complete("unknown", { confirmed_at: 8 }, 50)
    expect(tape.read(0, ALL).items).toEqual([
      { ...line(0), confirmed_at: 7 } as TapeEntry,
      line(1),
      { kind: "completed", entry: 0, confirmed_at: 7 },
    ])
  })

  test("an entry that was dropped is not completed", () => {
    const tape = filled(3, sizeOf(line(0)))
    tape.complete("k0", { confirmed_at: 7 }, 50)
    expect(seqsOf(tape.read(0, ALL).items)).toEqual([2])
  })
})

const action = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({
      kind: fc.constant("add" as const),
      bytes: fc.integer({ min: 1, max: 40 }),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant("drop" as const),
      count: fc.integer({ min: 1, max: 9 }),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({ kind: fc.constant("complete" as const), which: fc.nat(30) }),
  },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("read" as const) }) },
)

test("a reader gets each entry once and in order, or a count of those that are gone", async () => {
  const limits = { maxItems: 3, maxBytes: 60 }
  const property = fc.asyncProperty(fc.array(action, { maxLength: 80 }), async (actions) => {
    const tape = new Tape(100)
    const read = readerOf(tape, limits)
    let entries = 0
    let next = 0
    let counted = 0
    const readOnce = async () => {
      const { items, isCaughtUp } = await read()
      for (const { item } of items) {
        if (item.kind === "completed") continue
        if (item.kind === "dropped") counted += item.count
        else if (item.kind === "in") {
          // The seq of an entry is the number of all entries before it.
          expect(item.seq).toBe(counted)
          counted += 1
          next = item.seq
        }
      }
      return isCaughtUp
    }
    for (const each of actions) {
      if (each.kind === "add") {
        tape.add(line(entries), each.bytes, `k${entries}`)
        entries += 1
      } else if (each.kind === "drop") {
        tape.add({ kind: "dropped", count: each.count }, 5)
        entries += each.count
      } else if (each.kind === "complete") tape.complete(`k${each.which}`, { confirmed_at: 1 }, 5)
      else await readOnce()
      expect(tape.bytes).toBeLessThanOrEqual(100)
    }
    for (;;) if (await readOnce()) break
    expect(counted).toBe(entries)
    expect(next).toBeLessThanOrEqual(entries)
  })
  await checkAsync(property, CHEAP_RUNS)
})
