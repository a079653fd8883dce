/**
 * What a connection reports to the tape of its device: each line, each outcome once, and its end.
 */

import { expect, test } from "bun:test"
import type { ConnectionTape } from "../../src/device/connection-tape.ts"
import { bytesOf, Harness, textOf } from "./connection-harness.ts"

class Subject extends Harness {
  readonly events: string[] = []
  readonly device

  constructor(limits: ConstructorParameters<typeof Harness>[0] = {}) {
    super(limits)
    this.device = this.admit()
    this.device.connection.tape = this.#tape()
  }

  send(text: string, about: Parameters<Harness["backEnd"]["command"]>[1] = {}): void {
    this.device.connection.offer(this.backEnd.command(text, about))
  }

  /** The outcomes that the back-end has got. */
  outcomes(): string[] {
    return this.backEnd.told.map(({ command, outcome }) => `${outcome} ${textOf(command.body)}`)
  }

  #tape(): ConnectionTape {
    return {
      take: (_connection, seq, line) => void this.events.push(`line ${seq} ${textOf(line)}`),
      confirmed: () => undefined,
      written: (_connection, commands) => {
        for (const { body } of commands) this.events.push(`written ${textOf(body)}`)
      },
      settled: (_connection, { body }, outcome) =>
        void this.events.push(`${outcome} ${textOf(body)}`),
      disconnected: (_connection, reason) => void this.events.push(`disconnected ${reason}`),
    }
  }
}

test("lines go through the tape, which begins with the next batch", () => {
  const subject = new Subject()
  const { connection } = subject.device
  connection.received(bytesOf("a\nb\n"))
  connection.tape = null
  connection.received(bytesOf("c\n"))
  expect(subject.events).toEqual(["line 0 a", "line 1 b"])
  expect(subject.texts()).toEqual(["c"])
})

test("each command has the outcome that its source gets", () => {
  const subject = new Subject()
  subject.send("twice", { messageId: "m" })
  subject.send("twice", { messageId: "m" })
  subject.send("old", { expiresAtMs: subject.nowMs })
  subject.send("first", { supersedeKey: "k" })
  subject.send("second", { supersedeKey: "k" })
  subject.send("x".repeat(70))
  subject.flush()
  subject.send("gap", { seq: 3 })
  subject.device.connection.close("kicked")
  subject.send("after")
  expect(subject.events.toSorted()).toEqual(
    [...subject.outcomes(), "disconnected kicked"].toSorted(),
  )
  const kinds = new Set(subject.outcomes().map((outcome) => outcome.split(" ")[0]))
  expect([...kinds].toSorted()).toEqual([
    "closed",
    "duplicate",
    "expired",
    "slow_device",
    "superseded",
    "written",
  ])
})

test("a command with a reply is written first, and has its outcome then", () => {
  const subject = new Subject()
  const reply = { condition: { kind: "next" }, timeoutMs: 1_000 } as const
  subject.send("ask", { reply })
  subject.flush()
  subject.device.connection.received(bytesOf("yes\n"))
  subject.send("again", { reply })
  subject.flush()
  subject.after(1_000)
  expect(subject.events).toEqual([
    "written ask",
    "line 0 yes",
    "answered ask",
    "written again",
    "no_reply again",
  ])
})

test("a command that is held back and superseded is reported", () => {
  const subject = new Subject()
  subject.device.connection.holdBack()
  subject.send("newer", { supersedeKey: "k" })
  subject.send("held", { supersedeKey: "k", wasHeld: true })
  expect(subject.events).toEqual(["superseded held"])
  subject.device.connection.releaseHeldBack()
  subject.flush()
  expect(subject.events).toEqual(["superseded held", "written newer"])
})
