/**
 * The denylist between supervisor and workers: each worker's copy becomes the list of the file in
 * any order of changes, starts and delays, a list is in force only when it is complete, and neither
 * the parts nor the waiting messages grow without bound.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { Denylist } from "../../src/device/denylist.ts"
import type { DenylistPart } from "../../src/process/control.ts"
import { DenylistFeed, FedDenylist } from "../../src/process/denylist-feed.ts"
import { checkAsync } from "../support/property.ts"

function listOf(lines: Iterable<string>): Denylist {
  const list = new Denylist()
  for (const line of lines) list.add(line)
  return list
}

const numbered = (count: number, from = 0) =>
  Array.from({ length: count }, (_, n) => `device-${from + n}`)
const linesOf = (list: Denylist | null) => [...(list?.lines() ?? [])].sort()

/**
 * A worker that takes its messages only when the test lets it, through JSON as over the channel.
 */
class TestWorker {
  readonly received: DenylistPart[] = []
  readonly #fed = new FedDenylist()
  readonly #feed: DenylistFeed
  readonly #key: number
  list: Denylist | null = null

  constructor(feed: DenylistFeed, key: number) {
    this.#feed = feed
    this.#key = key
    feed.attach(key, (part) => this.received.push(JSON.parse(JSON.stringify(part))))
  }

  take(most = Number.POSITIVE_INFINITY): void {
    for (let taken = 0; taken < most; taken += 1) {
      const part = this.received.shift()
      if (part === undefined) return
      this.list = this.#fed.take(part) ?? this.list
      this.#feed.acknowledged(this.#key)
    }
  }
}

const LIMIT_MS = 30_000

describe("a worker", () => {
  test("that starts has no list before it is complete", async () => {
    const feed = new DenylistFeed()
    await feed.replace(listOf(numbered(20_000)))
    const worker = new TestWorker(feed, 0)
    worker.take(4)
    expect(worker.list).toBeNull()
    worker.take()
    expect(linesOf(worker.list)).toEqual(numbered(20_000).sort())
  })

  test("that waits for the first list gets it when it is read, an empty one too", async () => {
    const feed = new DenylistFeed()
    const worker = new TestWorker(feed, 0)
    expect(feed.isEmpty).toBe(true)
    await feed.replace(Denylist.none)
    worker.take()
    expect(worker.list?.size).toBe(0)
    expect(feed.isEmpty).toBe(false)
  })

  test("gets what is different when the file changes, and nothing when it is not", async () => {
    const feed = new DenylistFeed()
    await feed.replace(listOf(numbered(5_000)))
    const worker = new TestWorker(feed, 0)
    worker.take()
    await feed.replace(listOf([...numbered(4_999, 1), "added"]))
    expect(worker.received).toEqual([
      { reset: false, add: ["added"], remove: [], isComplete: false },
      { reset: false, add: [], remove: ["device-0"], isComplete: false },
      { reset: false, add: [], remove: [], isComplete: true },
    ])
    worker.take()
    expect(linesOf(worker.list)).toEqual([...numbered(4_999, 1), "added"].sort())
    await feed.replace(listOf([...numbered(4_999, 1), "added"]))
    expect(worker.received).toEqual([])
  })

  test(
    "that takes nothing is sent 32 parts, of 500 lines at most, and delays no other",
    async () => {
      const feed = new DenylistFeed()
      const [stopped, other] = [new TestWorker(feed, 0), new TestWorker(feed, 1)]
      for (let version = 0; version < 3; version += 1) {
        await feed.replace(listOf(numbered(20_000, version * 10_000)))
        other.take()
      }
      expect(stopped.received.length).toBe(32)
      for (const { add } of stopped.received) expect(add.length).toBeLessThanOrEqual(500)
      expect(linesOf(other.list)).toEqual(numbered(20_000, 20_000).sort())
      stopped.take()
      expect(linesOf(stopped.list)).toEqual(numbered(20_000, 20_000).sort())
    },
    LIMIT_MS,
  )

  test("that starts after many changes gets no more than twice the list", async () => {
    const feed = new DenylistFeed()
    for (let version = 0; version < 8; version += 1) {
      await feed.replace(listOf(numbered(6_000, version * 3_000)))
    }
    let lines = 0
    const fed = new FedDenylist()
    let list: Denylist | null = null
    feed.attach(0, ({ add, remove, ...part }) => {
      lines += add.length + remove.length
      list = fed.take({ add, remove, ...part }) ?? list
      queueMicrotask(() => feed.acknowledged(0))
    })
    await new Promise((resolve) => setImmediate(resolve))
    expect(lines).toBeLessThanOrEqual(12_000)
    expect(linesOf(list)).toEqual(numbered(6_000, 21_000).sort())
  })

  test("that has gone is sent nothing", async () => {
    const feed = new DenylistFeed()
    const worker = new TestWorker(feed, 0)
    feed.detach(0)
    await feed.replace(listOf(["a"]))
    feed.acknowledged(0)
    expect(worker.received).toEqual([])
  })
})

test("every worker has the last list in the end, whatever the order of changes, starts and delays", async () => {
  const step = fc.oneof(
    fc.record({
      what: fc.constant("replace" as const),
      lines: fc.uniqueArray(fc.nat(30), { maxLength: 30 }),
    }),
    fc.record({ what: fc.constant("start" as const) }),
    fc.record({ what: fc.constant("take" as const), worker: fc.nat(5), most: fc.nat(3) }),
  )
  await checkAsync(
    fc.asyncProperty(fc.array(step, { maxLength: 30 }), async (steps) => {
      const feed = new DenylistFeed()
      const workers: TestWorker[] = []
      let last: string[] = []
      for (const each of steps) {
        if (each.what === "replace") {
          last = each.lines.map((n) => `device-${n}`)
          await feed.replace(listOf(last))
        } else if (each.what === "start") workers.push(new TestWorker(feed, workers.length))
        else workers[each.worker]?.take(each.most)
      }
      for (const worker of workers) {
        worker.take()
        expect(linesOf(worker.list)).toEqual(last.sort())
      }
    }),
  )
})
