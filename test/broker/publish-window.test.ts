/**
 * The unconfirmed window against a model that moves one state per message, over any order of
 * adding, sending, confirming, failing and going back; then what a back-end sees of it, and its
 * bounds.
 */

import { heapSize } from "bun:jsc"
import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import {
  type Entry,
  type FinalResult,
  PublishWindow,
  type WindowLimits,
} from "../../src/broker/publish-window.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

interface Item {
  readonly group: number
  readonly n: number
}

interface Modelled {
  readonly item: Item
  readonly bytes: number
  state: "waiting" | "in_flight" | "done" | "failed"
  entry: Entry<Item> | null
  sentAtMs: number
}

const WIDE: WindowLimits = { maxCount: 1_000, maxBytes: 1_000_000, maxInFlight: 1_000 }

function windowOf(limits: Partial<WindowLimits> = {}): PublishWindow<Item> {
  return new PublishWindow<Item>({ ...WIDE, ...limits }, (item) => item.group)
}

/** A window, what must be in it, and everything that has come out. */
class Watched {
  readonly window: PublishWindow<Item>
  readonly limits: WindowLimits
  /** From the oldest that is not released. */
  readonly model: Modelled[] = []
  readonly released: Item[] = []
  /** Every send that ended done, in the order of sending. */
  readonly sends: { readonly item: Item; isDone: boolean }[] = []
  readonly #sendOf = new Map<Entry<Item>, { readonly item: Item; isDone: boolean }>()
  added = 0
  failed = false
  nowMs = 0

  constructor(limits: WindowLimits) {
    this.limits = limits
    this.window = windowOf(limits)
  }

  get inFlight(): Modelled[] {
    return this.model.filter(({ state }) => state === "in_flight")
  }

  add(group: number, bytes: number): void {
    const item = { group, n: this.added }
    this.added += 1
    const entry = this.window.add(item, bytes)
    expect(entry).toMatchObject({ item, bytes, state: "waiting" })
    this.model.push({ item, bytes, state: "waiting", entry, sentAtMs: 0 })
    this.#expectSame()
  }

  /** True when something was sent. */
  send(): boolean {
    this.nowMs += 1
    const expected = this.model.find(({ state }) => state === "waiting")
    const entry = this.window.send(this.nowMs)
    if (expected === undefined || this.inFlight.length >= this.limits.maxInFlight) {
      expect(entry).toBeNull()
      return false
    }
    expect(entry).toBe(expected.entry)
    if (entry === null) return false
    expected.state = "in_flight"
    expected.sentAtMs = this.nowMs
    expect(entry).toMatchObject({ state: "in_flight", sentAtMs: this.nowMs })
    const send = { item: expected.item, isDone: false }
    this.sends.push(send)
    this.#sendOf.set(entry, send)
    this.#expectSame()
    return true
  }

  done(which: number, result: FinalResult): void {
    const modelled = this.inFlight[which]
    if (!modelled?.entry) return
    modelled.state = "done"
    const send = this.#sendOf.get(modelled.entry)
    if (send) send.isDone = true
    const out: Entry<Item>[] = []
    this.window.done(modelled.entry, result, out)
    const front = this.model.findIndex(({ state }) => state !== "done")
    const expected = this.model.splice(0, front === -1 ? this.model.length : front)
    expect(out.map(({ item }) => item)).toEqual(expected.map(({ item }) => item))
    for (const entry of out) expect(entry.state).toBe("released")
    this.released.push(...out.map(({ item }) => item))
    this.#expectSame()
  }

  fail(which: number): void {
    const modelled = this.inFlight[which]
    if (!modelled?.entry) return
    modelled.state = "failed"
    this.failed = true
    this.window.notConfirmed(modelled.entry)
    this.#expectSame()
  }

  goBack(): void {
    if (this.inFlight.length > 0) {
      expect(() => this.window.goBack()).toThrow()
      return
    }
    const groups = new Set<number>()
    let again = 0
    for (const modelled of this.model) {
      if (modelled.state === "failed") groups.add(modelled.item.group)
      const isAfterFailure = modelled.state === "done" && groups.has(modelled.item.group)
      if (modelled.state !== "failed" && !isAfterFailure) continue
      modelled.state = "waiting"
      again += 1
    }
    expect(this.window.goBack()).toBe(again)
    this.failed = false
    this.#expectSame()
  }

  /** As the publisher does it in the end: all sent, all confirmed. */
  finish(): void {
    while (this.inFlight.length > 0) this.done(0, "confirmed")
    this.goBack()
    while (this.model.length > 0) {
      while (this.send());
      expect(this.inFlight.length).toBeGreaterThan(0)
      this.done(this.inFlight.length - 1, "confirmed")
    }
    const all = Array.from({ length: this.added }, (_, n) => n)
    expect(this.released.map(({ n }) => n)).toEqual(all)
    this.#expectFollowable()
  }

  #expectSame(): void {
    const { window, model, limits } = this
    const count = model.length
    const bytes = model.reduce((sum, each) => sum + each.bytes, 0)
    const sentAtMs = this.inFlight.map((each) => each.sentAtMs)
    expect({
      count: window.count,
      bytes: window.bytes,
      inFlight: window.inFlight,
      failed: window.failed,
      full: !window.hasRoom,
      relieved: window.relieved,
      oldestSentAtMs: window.oldestSentAtMs(),
    }).toEqual({
      count,
      bytes,
      inFlight: this.inFlight.length,
      failed: this.failed,
      full: count >= limits.maxCount || bytes >= limits.maxBytes,
      relieved: count <= limits.maxCount / 2 && bytes <= limits.maxBytes / 2,
      oldestSentAtMs: sentAtMs.length === 0 ? null : Math.min(...sentAtMs),
    })
    for (const each of model) expect(each.entry?.state).toBe(each.state)
  }

  /** In each group the last that the broker took of each message stand in the order of adding. */
  #expectFollowable(): void {
    const lastAt = new Map<number, number>()
    for (const [at, { item, isDone }] of this.sends.entries()) if (isDone) lastAt.set(item.n, at)
    const groups = new Map<number, number[]>()
    for (const { n, group } of this.released) {
      groups.set(group, [...(groups.get(group) ?? []), lastAt.get(n) ?? -1])
    }
    for (const order of groups.values()) {
      expect(order).toEqual(order.toSorted((a, b) => a - b))
      expect(order).not.toContain(-1)
    }
  }
}

type Step =
  | { readonly kind: "add"; readonly group: number; readonly bytes: number }
  | { readonly kind: "send" }
  | { readonly kind: "done"; readonly which: number; readonly result: FinalResult }
  | { readonly kind: "fail"; readonly which: number }
  | { readonly kind: "fail all" }
  | { readonly kind: "go back" }
  | { readonly kind: "block" | "unblock" }

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      kind: fc.constant("add" as const),
      group: fc.nat(2),
      bytes: fc.nat(30),
    }),
  },
  { weight: 5, arbitrary: fc.constant({ kind: "send" } as const) },
  {
    weight: 8,
    arbitrary: fc.record({
      kind: fc.constant("done" as const),
      which: fc.nat(4),
      result: fc.constantFrom<FinalResult>("confirmed", "confirmed", "returned", "unencodable"),
    }),
  },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("fail" as const), which: fc.nat(4) }) },
  { weight: 1, arbitrary: fc.constant({ kind: "fail all" } as const) },
  { weight: 3, arbitrary: fc.constant({ kind: "go back" } as const) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constantFrom("block", "unblock") }) },
)
const steps = fc.array(step, { maxLength: 60, size: "max" })

/**
 * @param asPublisher sends all it may after each step, and nothing while the publish channel is
 * blocked or after
 *   a failure until it has gone back; else one message a send step, at any time.
 */
function run(sequence: readonly Step[], limits: WindowLimits, asPublisher: boolean): void {
  const watched = new Watched(limits)
  let isBlocked = false
  for (const each of sequence) {
    switch (each.kind) {
      case "add":
        // Whoever adds looks at `full` first.
        if (watched.window.hasRoom) watched.add(each.group, each.bytes)
        break
      case "send":
        if (!asPublisher) watched.send()
        break
      case "done":
        watched.done(each.which, each.result)
        break
      case "fail":
        watched.fail(each.which)
        break
      case "fail all":
        while (watched.inFlight.length > 0) watched.fail(0)
        break
      case "go back":
        watched.goBack()
        break
      case "block":
      case "unblock":
        isBlocked = each.kind === "block"
    }
    while (asPublisher && !isBlocked && !watched.failed && watched.send());
  }
  watched.finish()
}

const lineLimits = fc
  .record({ maxCount: fc.integer({ min: 1, max: 12 }), maxBytes: fc.integer({ min: 1, max: 150 }) })
  .map((bounds): WindowLimits => ({ ...bounds, maxInFlight: bounds.maxCount }))

const postLimits = fc.integer({ min: 1, max: 4 }).map(
  (maxInFlight): WindowLimits => ({
    maxCount: Number.POSITIVE_INFINITY,
    maxBytes: Number.POSITIVE_INFINITY,
    maxInFlight,
  }),
)

test("any order as the publisher drives the window of lines: nothing lost, all in order", () => {
  check(
    fc.property(steps, lineLimits, (sequence, limits) => run(sequence, limits, true)),
    CHEAP_RUNS,
  )
})

test("any order as the publisher drives the window of outbound messages: nothing lost, all in order", () => {
  check(
    fc.property(steps, postLimits, (sequence, limits) => run(sequence, limits, true)),
    CHEAP_RUNS,
  )
})

test("any order at all: nothing lost, all in order", () => {
  check(
    fc.property(steps, fc.oneof(lineLimits, postLimits), (sequence, limits) => {
      run(sequence, limits, false)
    }),
    CHEAP_RUNS,
  )
})

/** Adds as many messages of the groups and sends them. */
function sent(window: PublishWindow<Item>, groups: readonly number[]): Entry<Item>[] {
  for (const [n, group] of groups.entries()) window.add({ group, n }, 1)
  return sendAll(window)
}

function sendAll(window: PublishWindow<Item>): Entry<Item>[] {
  const entries = []
  for (let entry = window.send(0); entry !== null; entry = window.send(0)) entries.push(entry)
  return entries
}

function numbers(entries: readonly Entry<Item>[]): number[] {
  return entries.map(({ item }) => item.n)
}

describe("going back", () => {
  test("repeats what failed and what of its group came after, and nothing else", () => {
    const window = windowOf()
    const entries = sent(window, [1, 2, 1, 2, 1, 3])
    const released: Entry<Item>[] = []
    for (const [n, entry] of entries.entries()) {
      if (n === 2) window.notConfirmed(entry)
      else window.done(entry, "confirmed", released)
    }
    expect(numbers(released)).toEqual([0, 1])
    expect([window.failed, window.goBack(), window.failed]).toEqual([true, 2, false])
    const again = sendAll(window)
    expect(numbers(again)).toEqual([2, 4])
    for (const entry of again) window.done(entry, "confirmed", released)
    expect(numbers(released)).toEqual([0, 1, 2, 3, 4, 5])
  })

  test("puts what failed before what was added meanwhile", () => {
    const window = windowOf()
    const [first] = sent(window, [1])
    if (first === undefined) throw new Error("nothing sent")
    window.notConfirmed(first)
    window.add({ group: 1, n: 1 }, 1)
    window.goBack()
    expect(numbers(sendAll(window))).toEqual([0, 1])
  })

  test("with nothing failed repeats nothing", () => {
    const window = windowOf()
    const [first, second] = sent(window, [1, 1])
    if (!first || !second) throw new Error("nothing sent")
    window.done(second, "confirmed", [])
    window.done(first, "confirmed", [])
    expect([window.goBack(), sendAll(window)]).toEqual([0, []])
  })

  test("is refused while something is in flight", () => {
    const window = windowOf()
    sent(window, [1])
    expect(() => window.goBack()).toThrow("in flight")
  })

  test("where the bound stopped sending before what is done, it goes on after that", () => {
    // Two in flight, the publish channel blocked while they are confirmed, then unblocked.
    const window = windowOf({ maxInFlight: 2 })
    const released: Entry<Item>[] = []
    const [first, second] = sent(window, [1, 1, 2])
    if (!first || !second) throw new Error("nothing sent")
    window.done(second, "confirmed", released)
    const third = window.send(0)
    window.notConfirmed(first)
    if (third) window.done(third, "confirmed", released)
    expect(window.goBack()).toBe(2)
    for (const entry of sendAll(window)) window.done(entry, "confirmed", released)
    expect(numbers(released)).toEqual([0, 1, 2])
    window.add({ group: 1, n: 3 }, 1)
    expect(numbers(sendAll(window))).toEqual([3])
  })
})

test("what a settled entry is told later changes nothing", () => {
  const window = windowOf()
  const [first, second] = sent(window, [1, 1])
  if (!first || !second) throw new Error("nothing sent")
  window.notConfirmed(second)
  window.notConfirmed(second)
  const released: Entry<Item>[] = []
  window.done(second, "confirmed", released)
  window.done(first, "confirmed", released)
  window.done(first, "confirmed", released)
  window.notConfirmed(first)
  expect([numbers(released), window.count, window.inFlight]).toEqual([[0], 1, 0])
})

test("the result is that of the last send", () => {
  const window = windowOf()
  const [first, second] = sent(window, [1, 1])
  if (!first || !second) throw new Error("nothing sent")
  window.done(second, "returned", [])
  window.notConfirmed(first)
  window.goBack()
  const released: Entry<Item>[] = []
  for (const entry of sendAll(window)) window.done(entry, "confirmed", released)
  expect(released.map(({ result }) => result)).toEqual(["confirmed", "confirmed"])
})

describe("bounds", () => {
  test("full at either, relieved at half of both", () => {
    const window = windowOf({ maxCount: 4, maxBytes: 100 })
    expect([window.hasRoom, window.relieved]).toEqual([true, true])
    for (let n = 0; n < 3; n += 1) window.add({ group: 1, n }, 10)
    expect([window.hasRoom, window.relieved]).toEqual([true, false])
    window.add({ group: 1, n: 3 }, 10)
    expect(window.hasRoom).toBe(false)
    const entries = sendAll(window)
    for (const entry of entries.slice(0, 2)) window.done(entry, "confirmed", [])
    expect([window.hasRoom, window.relieved]).toEqual([true, true])
    window.add({ group: 1, n: 4 }, 80)
    expect([window.count, window.hasRoom, window.relieved]).toEqual([3, false, false])
  })

  test("an empty window takes one message of any size", () => {
    const window = windowOf({ maxCount: 1, maxBytes: 10 })
    expect(window.hasRoom).toBe(true)
    window.add({ group: 1, n: 0 }, 1_000)
    expect(window.hasRoom).toBe(false)
    const [entry] = sendAll(window)
    if (entry) window.done(entry, "confirmed", [])
    expect([window.hasRoom, window.relieved, window.bytes]).toEqual([true, true, 0])
  })

  // Outbound messages have no bound of their own, and one that waits long must not keep what is
  // long done.
  test.each([100, Number.POSITIVE_INFINITY])(
    "memory is that of what is held, with at most %d held, also when it is never empty",
    (maxCount) => {
      const window = windowOf({ maxCount, maxBytes: Number.POSITIVE_INFINITY })
      const item = { group: 1, n: 0 }
      let last = window.add(item, 1)
      window.send(0)
      const released: Entry<Item>[] = []
      Bun.gc(true)
      const beforeBytes = heapSize()
      for (let i = 0; i < 1_000_000; i += 1) {
        const next = window.add(item, 1)
        window.send(0)
        window.done(last, "confirmed", released)
        released.length = 0
        last = next
      }
      expect(window.count).toBe(1)
      Bun.gc(true)
      expect(heapSize() - beforeBytes).toBeLessThan(2_000_000)
    },
  )
})
