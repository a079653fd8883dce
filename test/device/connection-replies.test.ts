/** Commands that wait for a reply, at a connection: who gets which line, when, and in which order. */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { Goodbye } from "../../src/device/goodbye.ts"
import type { ReplyCondition, ReplyRequest } from "../../src/device/reply-request.ts"
import { MAX_NEXT_MS, MAX_WAITING_REPLIES } from "../../src/device/waiting-replies.ts"
import { Acknowledgement } from "../../src/lines/acknowledgement.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"
import { bytesOf, Harness, START_MS, textOf } from "./connection-harness.ts"

const TIMEOUT_MS = 1_000
const NEXT: ReplyRequest = { condition: { kind: "next" }, timeoutMs: TIMEOUT_MS }

function asking(condition: ReplyCondition): ReplyRequest {
  return { condition, timeoutMs: TIMEOUT_MS }
}

function token(text: string): ReplyRequest {
  return asking({ kind: "token", token: bytesOf(text) })
}

function prefix(text: string): ReplyRequest {
  return asking({ kind: "prefix", prefix: bytesOf(text) })
}

class Subject extends Harness {
  readonly device

  constructor(limits: ConstructorParameters<typeof Harness>[0] = {}) {
    super(limits)
    this.device = this.admit()
  }

  /** Offers a command and lets the connection write it. */
  send(text: string, reply: ReplyRequest | null = null, about = {}) {
    const command = this.backEnd.command(text, { reply, ...about })
    this.device.connection.offer(command)
    this.flush()
    return command
  }

  says(...lines: string[]): void {
    for (const line of lines) this.device.connection.received(bytesOf(`${line}\n`))
    this.flush()
  }

  /** Body, outcome, and the line that answered it, in the order of the outcomes. */
  ends() {
    return this.backEnd.told.map(({ command, outcome, reply }) => [
      textOf(command.body),
      outcome,
      ...(reply === undefined ? [] : [textOf(reply.line), reply.fromDeviceSeq]),
    ])
  }
}

test("the line that matches answers the command, and is passed on like any other", () => {
  const subject = new Subject()
  const command = subject.send("status", token("r1"))
  subject.says("other", "r1 on", "r1 again")
  expect(subject.ends()).toEqual([["status", "answered", "r1 on", 1]])
  expect(subject.texts()).toEqual(["other", "r1 on", "r1 again"])
  expect(subject.lines.map(({ answered }) => answered)).toEqual([null, command, null])
  expect(subject.backEnd.told[0]?.recipient).toMatchObject({ deviceId: "device-1" })
})

test("a line that came before the command was written does not answer it", () => {
  const subject = new Subject()
  subject.device.socket.room = 3
  subject.send("status", prefix(""))
  subject.says("too early")
  expect(subject.ends()).toEqual([])
  subject.device.socket.room = 100
  subject.device.connection.flush()
  subject.says("now")
  expect(subject.ends()).toEqual([["status", "answered", "now", 1]])
})

test("each line answers the oldest command that it matches, and only that one", () => {
  const subject = new Subject()
  subject.send("a", token("x"))
  subject.send("b", prefix("o"))
  subject.send("c", prefix("ok"))
  subject.says("ok 1", "x", "ok 2", "ok 3")
  expect(subject.ends()).toEqual([
    ["b", "answered", "ok 1", 0],
    ["a", "answered", "x", 1],
    ["c", "answered", "ok 2", 2],
  ])
})

test("without the line in time it ends as no_reply, within a sweep", () => {
  const subject = new Subject()
  subject.send("status", token("r1"))
  subject.after(TIMEOUT_MS - 1)
  expect([subject.ends(), subject.replying.size]).toEqual([[], 1])
  subject.after(1)
  expect(subject.ends()).toEqual([["status", "no_reply"]])
  expect(subject.backEnd.told[0]?.detail).toBe("no matching line within 1000 ms")
  expect(subject.replying.size).toBe(0)
  subject.says("r1 late")
  expect([subject.ends().length, subject.lines[0]?.answered]).toEqual([1, null])
})

test("the time begins when the command was written", () => {
  const subject = new Subject({ slowDeviceTimeoutMs: 60_000 })
  subject.device.socket.room = 0
  subject.send("status", token("r1"))
  subject.after(3 * TIMEOUT_MS)
  expect(subject.ends()).toEqual([])
  subject.device.socket.room = 100
  subject.device.connection.flush()
  subject.after(TIMEOUT_MS - 1)
  expect(subject.ends()).toEqual([])
  subject.says("r1")
  expect(subject.ends()).toEqual([["status", "answered", "r1", 0]])
})

describe("when the connection ends", () => {
  test("a written command ends as no_reply, others as closed", () => {
    const subject = new Subject()
    subject.device.socket.room = 10
    subject.send("written", token("r1"))
    subject.send("waiting", token("r2"))
    subject.device.connection.close("kicked")
    expect(subject.ends()).toEqual([
      ["waiting", "closed"],
      ["written", "no_reply"],
    ])
    expect(subject.backEnd.told[1]?.detail).toBe("the connection ended: kicked")
  })

  test("by the outcome of a command of the same write, those written with it end as no_reply", () => {
    const subject = new Subject()
    subject.backEnd.onSettled = ({ outcome }) => {
      if (outcome === "written") subject.device.connection.close("kicked")
    }
    const { connection } = subject.device
    connection.offer(subject.backEnd.command("a"))
    connection.offer(subject.backEnd.command("b", { reply: NEXT }))
    subject.flush()
    expect(subject.ends()).toEqual([
      ["a", "written"],
      ["b", "no_reply"],
    ])
  })
})

describe("reply_next", () => {
  test("is one at a time: the next one is written when the one before has its reply", () => {
    const subject = new Subject()
    for (const text of ["a", "b", "c"]) subject.send(text, NEXT)
    expect(subject.device.socket.wire).toBe("a\n")
    subject.says("1")
    expect(subject.device.socket.wire).toBe("a\nb\n")
    subject.after(TIMEOUT_MS)
    subject.flush()
    expect(subject.device.socket.wire).toBe("a\nb\nc\n")
    subject.says("3")
    expect(subject.ends()).toEqual([
      ["a", "answered", "1", 0],
      ["b", "no_reply"],
      ["c", "answered", "3", 1],
    ])
  })

  test("in one write: the second one is not written with the first", () => {
    const subject = new Subject()
    const { connection, socket } = subject.device
    for (const text of ["a", "b"]) connection.offer(subject.backEnd.command(text, { reply: NEXT }))
    subject.flush()
    expect(socket.wire).toBe("a\n")
  })

  test("holds back all later commands while it waits for its turn, and none before", () => {
    const subject = new Subject()
    subject.send("a", NEXT)
    subject.send("b")
    expect(subject.device.socket.wire).toBe("a\nb\n")
    subject.send("c", NEXT)
    subject.send("d")
    expect(subject.device.socket.wire).toBe("a\nb\n")
    subject.says("1")
    expect(subject.device.socket.wire).toBe("a\nb\nc\nd\n")
  })

  test("lets commands behind it expire in time", () => {
    const subject = new Subject()
    subject.send("a", NEXT)
    subject.send("b", NEXT)
    subject.send("c", null, { expiresAtMs: START_MS + 10 })
    subject.after(10)
    expect(subject.ends()).toEqual([["c", "expired"]])
    expect(subject.device.connection.state).toBe("open")
  })

  test("that expires in the queue lets the others pass", () => {
    const subject = new Subject()
    subject.send("a", NEXT)
    subject.send("b", NEXT, { expiresAtMs: START_MS + 10 })
    subject.send("c", NEXT)
    subject.after(10)
    subject.says("1")
    expect(subject.device.socket.wire).toBe("a\nc\n")
  })

  test("does not hold back the acknowledgement that the device waits for before it replies", () => {
    const subject = new Subject()
    const { connection, socket } = subject.device
    subject.says("before")
    subject.send("a", NEXT)
    subject.send("b", NEXT)
    connection.offer(new Acknowledgement(connection, 0))
    subject.flush()
    expect(socket.wire).toBe("a\nACK 0\n")
    subject.says("1")
    expect(socket.wire).toBe("a\nACK 0\nb\n")
  })

  test("leaves room for acknowledgements, however many commands wait behind it", () => {
    const subject = new Subject({ maxOutgoingBytes: 12 })
    const { connection, socket } = subject.device
    subject.says("before")
    for (const text of ["a", "b"]) subject.send(text, NEXT)
    for (const text of ["cccc", "dddd", "full"]) subject.send(text)
    expect(subject.ends()).toEqual([["full", "slow_device"]])
    connection.offer(new Acknowledgement(connection, 0))
    subject.flush()
    expect([socket.wire, connection.state]).toEqual(["a\nACK 0\n", "open"])
    // Of these, two have room when the socket takes no more.
    socket.room = 0
    for (let n = 1; n <= 3; n += 1) connection.offer(new Acknowledgement(connection, n))
    expect(connection.state).toBe("closing")
  })

  test("does not keep the goodbye line from the device", () => {
    const subject = new Subject()
    subject.goodbye = new Goodbye({
      template: "BYE",
      returnsPerS: () => 1,
      steadyMs: () => subject.steadyMs,
      random: () => 0,
    })
    const { connection, socket } = subject.admit()
    for (const text of ["a", "b"]) {
      connection.offer(subject.backEnd.command(text, { reply: NEXT }))
      subject.flush()
    }
    connection.close("drained")
    expect(socket.wire).toBe("a\nBYE\n")
    expect(subject.ends()).toEqual([
      ["b", "closed"],
      ["a", "no_reply"],
    ])
  })

  test("that was withdrawn with its lost delivery waits no longer", () => {
    const subject = new Subject()
    subject.device.socket.room = 0
    const first = subject.send("first")
    const lost = subject.send("a", NEXT)
    expect(first.isOffered).toBe(true)
    lost.lost = true
    subject.device.connection.withdrawLost()
    expect([subject.ends(), subject.device.connection.awaitsReplies]).toEqual([
      [["a", "withdrawn"]],
      false,
    ])
  })
})

test(`more than ${MAX_WAITING_REPLIES} at a time end as slow_device`, () => {
  const subject = new Subject({ maxOutgoingBytes: 10_000 })
  for (let n = 0; n < MAX_WAITING_REPLIES; n += 1) subject.send(`c${n}`, token(`r${n}`))
  subject.send("more", token("more"))
  subject.send("without a reply")
  expect(subject.ends()).toEqual([
    ["more", "slow_device"],
    ["without a reply", "written"],
  ])
  expect(subject.backEnd.told[0]?.detail).toStartWith(`${MAX_WAITING_REPLIES} commands`)
  subject.says("r7")
  subject.send("again", token("more"))
  subject.says("more")
  expect(subject.ends().slice(2)).toEqual([
    ["c7", "answered", "r7", 0],
    ["again", "answered", "more", 1],
  ])
})

test(`with reply_next they wait at most ${MAX_NEXT_MS} ms one after another, as a broker allows`, () => {
  const subject = new Subject()
  const third = { condition: NEXT.condition, timeoutMs: MAX_NEXT_MS / 3 }
  for (const text of ["a", "b", "c"]) subject.send(text, third)
  subject.send("more", NEXT)
  subject.send("other", token("other"))
  expect(subject.ends()).toEqual([["more", "slow_device"]])
  expect(subject.backEnd.told[0]?.detail).toContain("reply_next")
  subject.says("1")
  subject.send("again", third)
  for (const line of ["2", "3", "4"]) subject.says(line)
  expect(subject.ends().slice(1)).toEqual([
    ["a", "answered", "1", 0],
    ["b", "answered", "2", 1],
    ["c", "answered", "3", 2],
    ["again", "answered", "4", 3],
  ])
})

test("a redelivery of a command that waits for its reply is not written again", () => {
  const subject = new Subject()
  subject.send("a", NEXT, { messageId: "m" })
  subject.send("a", NEXT, { messageId: "m", redelivered: true })
  expect([subject.device.socket.wire, subject.ends()]).toEqual(["a\n", [["a", "acknowledged"]]])
})

type Step =
  | { readonly kind: "send"; readonly reply: ReplyRequest | null; readonly ttlMs: number }
  | { readonly kind: "line"; readonly text: string }
  | { readonly kind: "after"; readonly ms: number }
  | { readonly kind: "room"; readonly room: number }

const word = fc.constantFrom("a", "b", "ab")
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant("send" as const),
      reply: fc.oneof(word.map(token), word.map(prefix), fc.constant(NEXT), fc.constant(null)),
      ttlMs: fc.oneof(fc.constant(Number.POSITIVE_INFINITY), fc.nat(1_500)),
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant("line" as const),
      text: fc.constantFrom("a", "b", "ab", "a b", "c"),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("after" as const), ms: fc.nat(700) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("room" as const), room: fc.nat(9) }) },
)

test("in any order each command has one outcome, each line answers at most one, and order holds", () => {
  check(
    fc.property(fc.array(step, { maxLength: 40, size: "max" }), (steps) => {
      const subject = new Subject({ slowDeviceTimeoutMs: 1e9, maxOutgoingBytes: 200 })
      const { connection, socket } = subject.device
      let sent = 0
      for (const each of steps) {
        switch (each.kind) {
          case "send":
            subject.send(`${sent}`, each.reply, { expiresAtMs: subject.nowMs + each.ttlMs })
            sent += 1
            break
          case "line":
            subject.says(each.text)
            break
          case "after":
            subject.after(each.ms)
            subject.flush()
            break
          case "room":
            socket.room = each.room
            connection.flush()
        }
        const { told } = subject.backEnd
        const isOpen = (text: string) => !told.some((each) => textOf(each.command.body) === text)
        const asked = subject.backEnd.sent.filter(
          ({ body, reply }) => reply?.condition.kind === "next" && isOpen(textOf(body)),
        )
        const wire = socket.wire.split("\n").slice(0, -1)
        expect(asked.filter(({ body }) => wire.includes(textOf(body))).length).toBeLessThan(2)
      }
      connection.close("kicked")
      for (const command of subject.backEnd.sent) {
        expect(subject.backEnd.outcomesOf(command)).toHaveLength(1)
      }
      const wire = socket.wire.split("\n").slice(0, -1).map(Number)
      expect(wire).toEqual(wire.toSorted((a, b) => a - b))
      const outcomes = ["written", "answered", "no_reply"] as const
      const written = outcomes.flatMap((outcome) => subject.backEnd.bodies(outcome)).map(Number)
      expect(written.toSorted((a, b) => a - b)).toEqual(wire)
      const answers = subject.backEnd.told.flatMap(({ command, reply }) =>
        reply === undefined ? [] : [{ command, seq: reply.fromDeviceSeq }],
      )
      const marked = subject.lines.flatMap(({ seq, answered }) =>
        answered === null ? [] : [{ command: answered, seq }],
      )
      expect(answers).toEqual(marked)
      expect(connection.awaitsReplies).toBe(false)
    }),
    CHEAP_RUNS,
  )
})
