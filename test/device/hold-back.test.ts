/** Newer commands that wait at a new connection until held ones have been written. */

import { describe, expect, test } from "bun:test"
import type { Command } from "../../src/device/command.ts"
import { Harness, START_MS, textOf } from "./connection-harness.ts"

const ANSWER_MS = 15_500
const HELD_IDLE_MS = 15_000

class Subject extends Harness {
  readonly device: ReturnType<Harness["admit"]>

  constructor() {
    super({ slowDeviceTimeoutMs: 1e9 })
    this.device = this.admit()
    this.device.connection.holdBack()
  }

  offer(text: string, about: Partial<Command> = {}): Command {
    const command = this.backEnd.command(text, about)
    this.device.connection.offer(command)
    return command
  }

  /** A command that the keeper forwards. */
  held(text: string, about: Partial<Command> = {}): Command {
    return this.offer(text, { wasHeld: true, ...about })
  }

  get wire(): string[] {
    this.flush()
    return this.device.socket.wire.split("\n").slice(0, -1)
  }

  ends() {
    return this.backEnd.told.map(({ command, outcome }) => [textOf(command.body), outcome])
  }

  sweepAt(ms: number): void {
    this.nowMs = START_MS + ms
    this.steadyMs = ms
    this.device.connection.sweep(ms, {
      ...{ handshakeTimeoutMs: 1e9, identifyTimeoutMs: 1e9, idleTimeoutMs: 1e9 },
    })
  }
}

describe("newer commands", () => {
  test("are written in their order when the device has no held ones", () => {
    const subject = new Subject()
    subject.offer("a")
    subject.offer("b")
    expect(subject.wire).toEqual([])
    subject.device.connection.heldAnswered(false)
    subject.offer("c")
    expect(subject.wire).toEqual(["a", "b", "c"])
  })

  test("are written after the held ones", () => {
    const subject = new Subject()
    subject.offer("newer")
    subject.device.connection.heldAnswered(true)
    subject.held("held 1")
    subject.held("held 2")
    expect(subject.wire).toEqual(["held 1", "held 2"])
    subject.device.connection.releaseHeldBack()
    expect(subject.wire).toEqual(["held 1", "held 2", "newer"])
  })

  test("wait for an answer only so long", () => {
    const subject = new Subject()
    subject.offer("newer")
    subject.sweepAt(ANSWER_MS - 1)
    expect(subject.wire).toEqual([])
    subject.sweepAt(ANSWER_MS)
    expect(subject.wire).toEqual(["newer"])
  })

  test("wait for the next held one only so long", () => {
    const subject = new Subject()
    subject.offer("newer")
    subject.device.connection.heldAnswered(true)
    subject.sweepAt(HELD_IDLE_MS - 1)
    subject.held("held")
    expect(subject.wire).toEqual(["held"])
    subject.sweepAt(2 * HELD_IDLE_MS - 2)
    expect(subject.wire).toEqual(["held"])
    subject.sweepAt(2 * HELD_IDLE_MS - 1)
    expect(subject.wire).toEqual(["held", "newer"])
  })

  test("wait while a held one waits for the socket", () => {
    const subject = new Subject()
    subject.device.connection.heldAnswered(true)
    subject.device.socket.room = 0
    subject.held("held")
    subject.offer("newer")
    expect(subject.wire).toEqual([])
    subject.sweepAt(HELD_IDLE_MS - 1)
    subject.sweepAt(HELD_IDLE_MS)
    subject.device.socket.room = 100
    subject.device.connection.flush()
    expect(subject.wire).toEqual(["held"])
  })
})

describe("a command that waits", () => {
  test("ends as closed with its connection, and is not written", () => {
    const subject = new Subject()
    subject.offer("newer")
    subject.device.connection.close("kicked")
    expect(subject.ends()).toEqual([["newer", "closed"]])
    expect(subject.wire).toEqual([])
  })

  test("expires", () => {
    const subject = new Subject()
    subject.device.connection.heldAnswered(true)
    subject.offer("newer", { expiresAtMs: START_MS + 100 })
    subject.sweepAt(100)
    expect(subject.ends()).toEqual([["newer", "expired"]])
  })

  test("is given back when it is lost", () => {
    const subject = new Subject()
    subject.offer("newer", { lost: true })
    subject.device.connection.withdrawLost()
    expect(subject.ends()).toEqual([["newer", "withdrawn"]])
  })

  test("supersedes a held one with its key", () => {
    const subject = new Subject()
    subject.offer("newer", { supersedeKey: "set" })
    subject.held("held", { supersedeKey: "set" })
    subject.device.connection.releaseHeldBack()
    expect(subject.ends()).toEqual([["held", "superseded"]])
    expect(subject.wire).toEqual(["newer"])
  })
})

test("acknowledgements of the gateway do not wait", () => {
  const subject = new Subject()
  subject.offer("ACK 1", { cameBy: "gateway" })
  expect(subject.wire).toEqual(["ACK 1"])
})
