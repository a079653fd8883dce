/** What a worker remembers of broadcasts, and for how long. How it writes: `broadcasts.test.ts`. */

import { describe, expect, test } from "bun:test"
import { BroadcastWriter } from "../../src/fleet/broadcast-writer.ts"
import { Subject as Fleet, SELF } from "./fleet-query-harness.ts"

const MAX_BROADCASTS = 16
const MAX_REMEMBERED = 64
const REQUEST = {
  audience: { kind: "all" },
  line: Buffer.from("reboot"),
  supersedeKey: null,
} as const
const OTHER = { worker: "gw.1", incarnation: SELF.incarnation }

class Subject extends Fleet {
  readonly reports: string[] = []
  readonly writer = new BroadcastWriter(this.connections, {
    steadyMs: () => this.steadyMs,
    counters: this.counters,
    report: (_, { id, ended }) => this.reports.push(`${id} ${ended ? "ended" : "writes"}`),
  })

  /** The devices that match. */
  prepare(id: string, key: string | null = null, again = false): number | null {
    return this.writer.prepare(id, SELF, REQUEST, key, again)?.matched ?? null
  }

  /** Without a device it ends at once. */
  write(id: string, key: string): void {
    this.prepare(id, key)
    this.writer.go(id, SELF, 1_000)
  }

  wait(ms: number): void {
    this.steadyMs += ms
    this.writer.sweep()
  }
}

describe("a broadcast", () => {
  test("that is not begun makes room after 15 seconds", () => {
    const subject = new Subject()
    for (let n = 0; n < MAX_BROADCASTS; n += 1) expect(subject.prepare(`b${n}`)).toBe(0)
    expect(subject.prepare("one more")).toBeNull()
    subject.wait(14_999)
    expect(subject.prepare("one more")).toBeNull()
    subject.wait(1)
    expect(subject.prepare("one more")).toBe(0)
  })

  test("that is cancelled makes room at once", () => {
    const subject = new Subject()
    for (let n = 0; n < MAX_BROADCASTS; n += 1) subject.prepare(`b${n}`)
    subject.writer.coordinated("b0", OTHER)
    expect(subject.prepare("one more")).toBeNull()
    subject.writer.coordinated("b0", SELF)
    expect(subject.prepare("one more")).toBe(0)
  })

  test("begins only for its coordinator", () => {
    const subject = new Subject()
    subject.prepare("b")
    subject.writer.go("b", OTHER, 1_000)
    expect(subject.reports).toEqual([])
    subject.writer.go("b", SELF, 1_000)
    expect(subject.reports).toEqual(["b ended"])
  })

  test("reports its end until the coordinator has it", () => {
    const subject = new Subject()
    subject.write("b", "key")
    subject.wait(1_000)
    subject.writer.coordinated("b", SELF)
    subject.wait(1_000)
    expect(subject.reports).toEqual(["b ended", "b ended"])
  })
})

describe("a broadcast that has ended", () => {
  test("is known by its key for two minutes, when its message is delivered again", () => {
    const subject = new Subject()
    subject.write("b", "key")
    subject.writer.coordinated("b", SELF)
    subject.hold("lock:1")
    subject.wait(119_999)
    expect(subject.prepare("again", "key", true)).toBe(0)
    expect(subject.prepare("another", "another key", true)).toBe(1)
    expect(subject.prepare("the same text", "key", false)).toBe(1)
    subject.wait(1)
    expect(subject.prepare("again, later", "key", true)).toBe(1)
  })

  test("is forgotten earlier when 64 others have ended since", () => {
    const subject = new Subject()
    for (let n = 0; n <= MAX_REMEMBERED; n += 1) subject.write(`b${n}`, `key ${n}`)
    subject.wait(1)
    subject.hold("lock:1")
    expect(subject.prepare("first", "key 0", true)).toBe(1)
    expect(subject.prepare("second", "key 1", true)).toBe(0)
  })
})
