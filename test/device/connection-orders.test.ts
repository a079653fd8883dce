/** A connection under any order of operations. */

import { expect, test } from "bun:test"
import fc from "fast-check"
import { CLOSE_REASONS, type CloseReason } from "../../src/device/close-reason.ts"
import { isWritten, OUTCOMES } from "../../src/device/command.ts"
import type { Connection } from "../../src/device/connection.ts"
import type { ReplyCondition, ReplyRequest } from "../../src/device/reply-request.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"
import {
  bytesOf,
  CLOSING_MS,
  Harness,
  LIMITS,
  type ScriptedSocket,
  textOf,
} from "./connection-harness.ts"

type Step =
  | { readonly kind: "receive"; readonly text: string }
  | { readonly kind: "offer"; readonly n: number; readonly ttlMs: number; readonly asks: boolean }
  | { readonly kind: "misuse"; readonly text: string; readonly about: Authenticator }
  | { readonly kind: "redeliver"; readonly which: number }
  | { readonly kind: "socket"; readonly room: number }
  | { readonly kind: "flush" }
  | { readonly kind: "after"; readonly ms: number }
  | { readonly kind: "room"; readonly room: number }
  | { readonly kind: "pause" | "resume"; readonly source: "memory" | "drain" }
  | { readonly kind: "close"; readonly reason: CloseReason }
  | { readonly kind: "socketClosed" }

/** @param asks whether commands wait for replies. */
const stepWith = (asks: fc.Arbitrary<boolean>): fc.Arbitrary<Step> =>
  fc.oneof(
    {
      weight: 6,
      arbitrary: fc.record({
        kind: fc.constant("receive" as const),
        text: fc
          .array(fc.constantFrom("a", "bc", "\r", "\n", "\n", "\r\n", "\0", "\xff"), {
            maxLength: 20,
            size: "max",
          })
          .map((parts) => parts.join("")),
      }),
    },
    {
      weight: 8,
      arbitrary: fc.record({
        kind: fc.constant("offer" as const),
        n: fc.nat(11),
        ttlMs: fc.oneof(fc.constant(Number.POSITIVE_INFINITY), fc.nat(60)),
        asks,
      }),
    },
    {
      weight: 3,
      arbitrary: fc.record({ kind: fc.constant("redeliver" as const), which: fc.nat(15) }),
    },
    { weight: 5, arbitrary: fc.record({ kind: fc.constant("socket" as const), room: fc.nat(30) }) },
    { weight: 5, arbitrary: fc.constant({ kind: "flush" } as const) },
    { weight: 3, arbitrary: fc.record({ kind: fc.constant("after" as const), ms: fc.nat(600) }) },
    { weight: 4, arbitrary: fc.record({ kind: fc.constant("room" as const), room: fc.nat(4) }) },
    {
      weight: 2,
      arbitrary: fc.record({
        kind: fc.constantFrom("pause" as const, "resume" as const),
        source: fc.constantFrom("memory" as const, "drain" as const),
      }),
    },
  )
const ending: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ kind: fc.constant("close" as const), reason: fc.constantFrom(...CLOSE_REASONS) }),
  fc.constant({ kind: "socketClosed" } as const),
)

function sequenceOf(step: fc.Arbitrary<Step>): fc.Arbitrary<Step[]> {
  const before = fc.array(step, { maxLength: 60, size: "max" })
  const after = fc.array(fc.oneof(step, ending), { maxLength: 8, size: "max" })
  return fc.tuple(before, ending, after).map(([first, end, last]) => [...first, end, ...last])
}

const step = stepWith(fc.constant(false))
const sequence = sequenceOf(step)

interface Authenticator {
  readonly seq: number | null
  readonly messageId: string | null
}

/** What belongs to n is always the same: a number and an id, one of them, or neither. */
function identityOf(n: number) {
  const kind = n % 4
  return {
    seq: kind < 2 ? n : null,
    messageId: kind % 2 === 0 ? `id-${n}` : null,
    supersedeKey: n % 5 === 0 ? "k" : null,
  }
}

const NEXT: ReplyCondition = { kind: "next" }
const PREFIX: ReplyCondition = { kind: "prefix", prefix: bytesOf("a") }

/** The reply that command n waits for, if any. */
function replyOf(n: number): ReplyRequest | null {
  if (n % 3 === 2) return null
  return { condition: n % 3 === 0 ? NEXT : PREFIX, timeoutMs: 300 }
}

/** And its body, of 0 to 12 bytes. */
function bodyOf(n: number): string {
  return String(n % 10).repeat((n * 5) % 13)
}

/** A back-end that gives one number or id to different commands, some of them redelivered. */
const misuse: fc.Arbitrary<Step> = fc.record({
  kind: fc.constant("misuse" as const),
  text: fc.constantFrom("", "x", "longer", "longest of all"),
  about: fc.record({
    seq: fc.option(fc.nat(4)),
    messageId: fc.option(fc.constantFrom("a", "b")),
    redelivered: fc.boolean(),
  }),
})

/** Runs the steps against one connection and returns it all for judging. */
function run(steps: readonly Step[], react: (harness: Harness, connection: Connection) => void) {
  const harness = new Harness({}, 40)
  const { connection, socket } = harness.admit()
  const { backEnd } = harness
  let received = ""
  react(harness, connection)
  harness.window.room = 3
  socket.room = 10
  for (const step of steps) {
    switch (step.kind) {
      case "receive":
        if (connection.state === "open") received += step.text
        connection.received(bytesOf(step.text))
        break
      case "offer": {
        const expiresAtMs = harness.nowMs + step.ttlMs
        const reply = step.asks ? replyOf(step.n) : null
        const about = { ...identityOf(step.n), expiresAtMs, reply }
        connection.offer(backEnd.command(bodyOf(step.n), about))
        break
      }
      case "misuse":
        connection.offer(backEnd.command(step.text, step.about))
        break
      case "redeliver": {
        const before = backEnd.sent[step.which]
        if (before === undefined) break
        const { body, ...about } = before
        connection.offer(backEnd.command(textOf(body), { ...about, redelivered: true }))
        break
      }
      case "socket":
        socket.room = step.room
        connection.flush()
        break
      case "flush":
        harness.flush()
        break
      case "after":
        harness.after(step.ms)
        break
      case "room":
        harness.roomAgain(step.room)
        break
      case "pause":
        connection.pause(step.source)
        break
      case "resume":
        connection.resume(step.source)
        break
      case "close":
        connection.close(step.reason)
        break
      case "socketClosed":
        socket.state = "gone"
        connection.socketClosed()
    }
    expect(connection.outgoingBytes).toBeGreaterThanOrEqual(0)
    expect(connection.outgoingBytes).toBeLessThanOrEqual(LIMITS.maxOutgoingBytes)
  }
  // Drain and close the connection, as at the end of each connection.
  harness.flush()
  harness.roomAgain(1_000_000)
  harness.after(CLOSING_MS)
  socket.state = "gone"
  connection.socketClosed()
  return { harness, connection, socket, received }
}

const WRITTEN: ReadonlySet<string> = new Set(OUTCOMES.filter(isWritten))

/**
 * Checks the conditions that hold after any order of operations.
 * @param inOrder whether commands were settled in the order of writes. They are not when sources
 * act on it, or when commands wait for replies.
 */
function expectWhole(done: ReturnType<typeof run>, inOrder = true): void {
  const { harness, connection, socket, received } = done
  const { backEnd, counters, lines, closed, backpressure } = harness
  expect([connection.state, closed.length, connection.drained]).toEqual(["closed", 1, true])

  for (const command of backEnd.sent) expect(backEnd.outcomesOf(command)).toHaveLength(1)
  expect(backEnd.told).toHaveLength(backEnd.sent.length)
  const written = backEnd.told.flatMap(({ command, outcome }) =>
    WRITTEN.has(outcome) ? [textOf(command.body)] : [],
  )
  const wire = socket.wire.split("\n").slice(0, -1)
  if (inOrder) expect(wire).toEqual(written)
  else expect(wire.toSorted()).toEqual(written.toSorted())
  expect(counters.commandBytesOut).toBe(socket.wire.length)
  expect(connection.endpoint?.linesOut).toBe(written.length)
  expect(connection.outgoingBytes).toBe(0)

  const parts = received.split("\n")
  const unterminated = parts.pop() ?? ""
  const sent = parts.map((part) => part.replace(/\r$/, ""))
  const tooLong = [...sent, unterminated.replace(/\r$/, "")].findIndex(
    (line) => line.length > LIMITS.maxLineBytes,
  )
  const complete = tooLong === -1 ? sent : sent.slice(0, tooLong)
  const expected = complete.filter((line) => line !== "")
  expect(lines.map(({ text }) => text)).toEqual(expected)
  expect(lines.map(({ seq }) => seq)).toEqual(expected.map((_, i) => i))
  expect(counters.emptyLines).toBe(complete.length - expected.length)
  if (tooLong === -1) expect(counters.unterminatedBytes).toBe(unterminated.length)
  expect(backpressure).toMatchObject({ heldBytes: 0, waitingCount: 0, suspended: false })
  expect(harness.unfinishedLines).toMatchObject({ bytes: 0, timedCount: 0 })

  const flow = socket.calls.filter((call) => call === "pause" || call === "resume")
  expect(flow).toEqual(flow.map((_, i) => (i % 2 === 0 ? "pause" : "resume")))
  const afterShutdown = socket.calls.slice(socket.calls.indexOf("shutdown") + 1)
  if (socket.calls.includes("shutdown"))
    expect(afterShutdown.filter((c) => c !== "terminate")).toEqual([])
}

test("any order of operations: each command is settled once, all bytes and lines are complete, nothing is held", () => {
  check(
    fc.property(sequence, (steps) => expectWhole(run(steps, () => undefined))),
    CHEAP_RUNS,
  )
})

test("any order, with commands that wait for replies: each has one outcome, each line answers one", () => {
  const steps = sequenceOf(stepWith(fc.boolean()))
  check(
    fc.property(steps, (steps) => {
      const done = run(steps, () => undefined)
      expectWhole(done, false)
      const { backEnd, lines } = done.harness
      const answered = backEnd.told.filter(({ outcome }) => outcome === "answered")
      const marked = lines.filter((line) => line.answered !== null)
      expect(marked.map(({ seq }) => seq)).toEqual(
        answered.flatMap(({ reply }) => reply?.fromDeviceSeq ?? []),
      )
      expect(marked.map((line) => line.answered)).toEqual(answered.map(({ command }) => command))
    }),
    CHEAP_RUNS,
  )
})

test("in any order no message id is written twice", () => {
  check(
    fc.property(sequence, (steps) => {
      const { harness } = run(steps, () => undefined)
      const written = harness.backEnd.told.filter(({ outcome }) => outcome === "written")
      const ids = written.flatMap(({ command }) => command.messageId ?? [])
      expect(ids).toEqual([...new Set(ids)])
    }),
    CHEAP_RUNS,
  )
})

test("in any order numbered commands are written in order, each number once", () => {
  check(
    fc.property(sequence, (steps) => {
      const { harness } = run(steps, () => undefined)
      const written = harness.backEnd.told.filter(({ outcome }) => outcome === "written")
      const seqs = written.flatMap(({ command }) => command.seq ?? [])
      expect(seqs).toEqual([...new Set(seqs)].sort((a, b) => a - b))
    }),
    CHEAP_RUNS,
  )
})

test("in any order no number is a duplicate if its only command was not written", () => {
  // Otherwise the command would be lost: a duplicate is neither written nor kept.
  const unwritten = new Set(["expired", "slow_device", "closed"])
  check(
    fc.property(sequence, (steps) => {
      const { told } = run(steps, () => undefined).harness.backEnd
      const ended = new Set<number>()
      for (const { outcome, command } of told) {
        if (command.seq === null) continue
        if (unwritten.has(outcome)) ended.add(command.seq)
        if (outcome === "duplicate") expect([...ended]).not.toContain(command.seq)
      }
    }),
    CHEAP_RUNS,
  )
})

test("any order, with back-ends that use numbers and ids twice: each command is settled once", () => {
  const steps = sequenceOf(
    fc.oneof({ weight: 4, arbitrary: step }, { weight: 1, arbitrary: misuse }),
  )
  check(
    fc.property(steps, (steps) => expectWhole(run(steps, () => undefined))),
    CHEAP_RUNS,
  )
})

test("any order, with sources that close and offer when a command is settled", () => {
  const reaction = fc.constantFrom("close" as const, "offer" as const, null)
  const reactions = fc.array(reaction, { maxLength: 10, size: "max" })
  check(
    fc.property(sequence, reactions, (steps, planned) => {
      const reacting = (harness: Harness, connection: Connection) => {
        const left = [...planned]
        harness.backEnd.onSettled = () => {
          const next = left.shift()
          if (next === "close") connection.close("kicked")
          if (next === "offer") connection.offer(harness.backEnd.command("!"))
        }
      }
      expectWhole(run(steps, reacting), false)
    }),
    CHEAP_RUNS,
  )
})

test("any order, with a socket that closes during a write", () => {
  check(
    fc.property(sequence, fc.nat(6), (steps, atWrite) => {
      const failing = (_: Harness, connection: Connection) => {
        const socket = connection.socket as ScriptedSocket
        let writes = 0
        socket.beforeWrite = () => {
          writes += 1
          if (writes <= atWrite || connection.state === "closed") return
          socket.state = "gone"
          connection.socketClosed()
        }
      }
      expectWhole(run(steps, failing))
    }),
    CHEAP_RUNS,
  )
})
