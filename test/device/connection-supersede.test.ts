/** Commands with a supersede key, at a connection: which of them is written. */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { CHEAP_RUNS, check } from "../support/property.ts"
import { Harness, LIMITS, START_MS, textOf } from "./connection-harness.ts"

interface About {
  readonly seq?: number | null
  readonly redelivered?: boolean
  readonly expiresAtMs?: number
  readonly messageId?: string
}

class Subject extends Harness {
  readonly device = this.admit()

  offer(text: string, supersedeKey: string | null = "k", about: About = {}) {
    const command = this.backEnd.command(text, { supersedeKey, ...about })
    this.device.connection.offer(command)
    return command
  }

  /** The socket accepts so many more bytes, all by default. */
  read(room = 1_000): void {
    this.flush()
    this.device.socket.room = room
    this.device.connection.flush()
  }

  get wire(): string[] {
    return this.device.socket.wire.split("\n").slice(0, -1)
  }

  ends() {
    return this.backEnd.told.map(({ command, outcome }) => [textOf(command.body), outcome])
  }
}

describe("in the outgoing queue", () => {
  test("the newest of a key is written, and the others end as superseded when it comes", () => {
    const subject = new Subject()
    for (const text of ["1", "2", "3"]) subject.offer(text)
    expect(subject.ends()).toEqual([
      ["1", "superseded"],
      ["2", "superseded"],
    ])
    expect(subject.backEnd.told[0]?.detail).toBe("a newer command with its supersede_key")
    subject.read()
    expect(subject.wire).toEqual(["3"])
  })

  test("other keys and commands without one are written, in order", () => {
    const subject = new Subject()
    subject.offer("old")
    subject.offer("other", "other key")
    subject.offer("none", null)
    subject.offer("new")
    subject.read()
    expect(subject.wire).toEqual(["other", "none", "new"])
  })

  test("one of which bytes were offered to the socket is written, whatever comes", () => {
    const subject = new Subject()
    subject.device.socket.room = 2
    subject.offer("offered")
    subject.flush()
    subject.offer("waiting")
    subject.offer("newest")
    subject.read()
    expect(subject.wire).toEqual(["offered", "newest"])
    expect(subject.backEnd.bodies("superseded")).toEqual(["waiting"])
  })

  test("makes room for the newer one", () => {
    const subject = new Subject()
    subject.offer("x".repeat(LIMITS.maxOutgoingBytes / 2), null)
    subject.offer("y".repeat(LIMITS.maxOutgoingBytes / 2 - 2))
    const newest = subject.offer("z".repeat(LIMITS.maxOutgoingBytes / 2 - 2))
    expect(subject.ends()).toHaveLength(1)
    subject.read()
    expect(subject.backEnd.outcomesOf(newest)).toEqual(["written"])
  })

  test("the older one stays superseded when the newer one expires", () => {
    const subject = new Subject()
    subject.offer("old")
    subject.offer("new", "k", { expiresAtMs: START_MS + 10 })
    subject.nowMs += 10
    subject.read()
    expect(subject.ends()).toEqual([
      ["old", "superseded"],
      ["new", "expired"],
    ])
    subject.offer("next")
    subject.read()
    expect(subject.wire).toEqual(["next"])
  })

  test("a command that is refused supersedes none", () => {
    const subject = new Subject()
    subject.offer("first", null, { messageId: "m" })
    subject.offer("old")
    subject.offer("duplicate", "k", { messageId: "m" })
    subject.read()
    expect(subject.wire).toEqual(["first", "old"])
  })
})

describe("a redelivered command", () => {
  test("does not supersede one that the broker delivered once", () => {
    const subject = new Subject()
    subject.offer("new")
    subject.offer("old", "k", { redelivered: true })
    expect(subject.ends()).toEqual([["old", "superseded"]])
    subject.read()
    expect(subject.wire).toEqual(["new"])
  })

  test("supersedes another redelivered one, as they come in the order of their queue", () => {
    const subject = new Subject()
    subject.offer("old", "k", { redelivered: true })
    subject.offer("new", "k", { redelivered: true })
    subject.read()
    expect([subject.ends()[0], subject.wire]).toEqual([["old", "superseded"], ["new"]])
  })

  test("of a lost one that was given back is superseded by the next one again", () => {
    const subject = new Subject()
    const old = subject.offer("old")
    old.lost = true
    subject.device.connection.withdrawLost()
    expect(subject.ends()).toEqual([["old", "withdrawn"]])
    subject.offer("new")
    subject.offer("old", "k", { redelivered: true })
    subject.read()
    expect(subject.wire).toEqual(["new"])
  })
})

describe("numbered commands", () => {
  test("in the reorder buffer: the newest is written, and the numbers of the others are used", () => {
    const subject = new Subject()
    for (const seq of [1, 2, 3]) subject.offer(`n${seq}`, "k", { seq })
    subject.offer("n4", null, { seq: 4 })
    expect(subject.backEnd.bodies("superseded")).toEqual(["n1", "n2"])
    expect(subject.device.connection.endpoint?.heldCommands).toBe(2)
    subject.offer("n0", null, { seq: 0 })
    subject.read()
    expect(subject.wire).toEqual(["n0", "n3", "n4"])
    expect(subject.counters.gapsSkipped).toBe(0)
    subject.offer("again", null, { seq: 1 })
    expect(subject.backEnd.bodies("late")).toEqual(["again"])
  })

  test("the larger number is the newer one, in whatever order they arrive", () => {
    const subject = new Subject()
    subject.offer("n2", "k", { seq: 2 })
    subject.offer("n1", "k", { seq: 1 })
    expect(subject.ends()).toEqual([["n1", "superseded"]])
    subject.offer("n0", "k", { seq: 0 })
    subject.read()
    expect(subject.wire).toEqual(["n2"])
    expect(subject.backEnd.bodies("superseded")).toEqual(["n1", "n0"])
  })

  test("in the outgoing queue", () => {
    const subject = new Subject()
    subject.offer("n0", "k", { seq: 0 })
    subject.offer("n1", "k", { seq: 1 })
    subject.read()
    expect([subject.wire, subject.ends()[0]]).toEqual([["n1"], ["n0", "superseded"]])
    subject.offer("n2", null, { seq: 2 })
    subject.read()
    expect(subject.wire).toEqual(["n1", "n2"])
  })

  test("one that fills the buffer supersedes one that it releases", () => {
    const subject = new Subject()
    for (let seq = 1; seq <= LIMITS.windowCommands; seq += 1) {
      subject.offer(`n${seq}`, seq === 1 ? "k" : null, { seq })
    }
    const seq = LIMITS.windowCommands + 1
    subject.offer("newest", "k", { seq })
    subject.read()
    expect(subject.wire).toEqual(["n2", "n3", "n4", "newest"])
    expect(subject.backEnd.bodies("superseded")).toEqual(["n1"])
  })

  test("that supersede each other do not keep a gap open", () => {
    const subject = new Subject()
    subject.offer("n1", "k", { seq: 1 })
    subject.after(LIMITS.gapTimeoutMs - 1)
    subject.offer("n2", "k", { seq: 2 })
    subject.after(1)
    subject.read()
    expect([subject.wire, subject.counters.gapsSkipped]).toEqual([["n2"], 1])
  })

  test("a used number stays used when the newer command is given back and comes again", () => {
    const subject = new Subject()
    subject.offer("n0", null, { seq: 0 })
    subject.offer("n1", "k", { seq: 1 })
    const newest = subject.offer("n2", "k", { seq: 2 })
    newest.lost = true
    subject.device.connection.withdrawLost()
    subject.offer("n2", "k", { seq: 2, redelivered: true })
    subject.offer("n3", null, { seq: 3 })
    subject.read()
    expect(subject.wire).toEqual(["n0", "n2", "n3"])
  })
})

test("in any order: of the waiting commands of a key one is left, and each has one outcome", () => {
  const offered = fc.record({
    key: fc.constantFrom("k", "l", null),
    seq: fc.option(fc.nat(8), { freq: 2 }),
    redelivered: fc.boolean(),
    room: fc.nat(6),
  })
  check(
    fc.property(fc.array(offered, { maxLength: 30, size: "max" }), (all) => {
      const subject = new Subject({ maxOutgoingBytes: 1_000, slowDeviceTimeoutMs: 1e9 })
      subject.device.socket.room = 0
      const { backEnd, device } = subject
      for (const [n, { key, seq, redelivered, room }] of all.entries()) {
        const command = subject.offer(`${n}`, key, { seq, redelivered })
        const waiting = backEnd.sent.filter(
          (each) =>
            each.supersedeKey !== null && !each.isOffered && backEnd.outcomesOf(each).length === 0,
        )
        const keys = waiting.map(({ supersedeKey }) => supersedeKey)
        expect(keys).toEqual([...new Set(keys)])
        // None is superseded without a command of its key that is left, or was offered.
        const [ended] = backEnd.outcomesOf(command)
        if (ended === "superseded") expect(keys).toContain(key)
        if (room === 0) {
          subject.after(LIMITS.gapTimeoutMs)
          continue
        }
        subject.read(room)
        device.socket.room = 0
      }
      subject.after(LIMITS.gapTimeoutMs)
      subject.read()
      device.connection.close("kicked")
      for (const command of backEnd.sent) expect(backEnd.outcomesOf(command)).toHaveLength(1)
      expect(subject.wire).toEqual(backEnd.bodies("written"))
      const numbers = backEnd.told.flatMap(({ command: { seq }, outcome }) =>
        outcome === "written" && seq !== null ? [seq] : [],
      )
      expect(numbers).toEqual([...new Set(numbers)].toSorted((a, b) => a - b))
    }),
    CHEAP_RUNS,
  )
})
