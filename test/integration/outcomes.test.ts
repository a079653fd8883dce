/**
 * Each outcome of each kind of command, on the real program with two workers and a real broker. The
 * table at the end has a cell for each pair of a source and an outcome: a test, or the reason for
 * which the outcome cannot occur.
 *
 * The status of an HTTP response, and whether a copy is in the undelivered queue, are compared with
 * the table of outcomes in docs/PROTOCOL.md. Each command is counted by its outcome. The last test
 * compares all copies and all counters: no command has had a second outcome.
 */

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { workerQueue } from "../../src/broker/topology.ts"
import { OUTCOMES, type Outcome } from "../../src/device/command.ts"
import { workerOfConnection } from "../../src/device/ids.ts"
import type { DeviceView } from "../../src/fleet/device-view.ts"
import { TestFleet } from "../support/fleet.ts"
import type { TestDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 60_000
const PROTOCOL = join(import.meta.dir, "../../docs/PROTOCOL.md")
const MAX_LINE_BYTES = 1_048_576
const MAX_HELD_PER_DEVICE = 8
/** Longer than a test takes. */
const LONG_MS = 50_000
const SHORT_MS = 100
/** Longer than it takes to hold a command, so that it does not expire before. */
const HELD_MS = 1_500
/** Two of them and `LONG_MS` may wait for one device, and three may not (`MAX_NEXT_MS`). */
const MAX_REPLY_MS = 420_000
/** Of a connection to the broker; its queues have shares. */
const PREFETCH = 40
/** Long enough to distinguish two commands. */
const NAME_CHARACTERS = 80
const TOO_LARGE = "x".repeat(MAX_LINE_BYTES + 1)

const SOURCES = [
  "AMQP by device_id",
  "AMQP by connection_id",
  "HTTP",
  "held by AMQP",
  "held by HTTP",
  "broadcast by AMQP",
  "broadcast by HTTP",
] as const

type Source = (typeof SOURCES)[number]
type Direct = Extract<Source, "AMQP by device_id" | "AMQP by connection_id" | "HTTP">
type Held = Extract<Source, `held by ${string}`>
type Broadcast = Extract<Source, `broadcast by ${string}`>

/** A test, or the reason for which a command of this source cannot have this outcome. */
type Cell = (() => Promise<void>) | string
type Cells = { readonly [O in Outcome]: Cell }

interface Documented {
  readonly isKept: boolean
  readonly status: number
}

/** The rows of the table of outcomes. */
function documented(): Map<string, Documented> {
  const rows = readFileSync(PROTOCOL, "utf8").matchAll(
    /^\| `(\w+)` \| (yes|no) \| ([0-9]{3}) \| .+ \|$/gm,
  )
  return new Map(
    [...rows].map(([, outcome = "", kept, status]) => [
      outcome,
      { isKept: kept === "yes", status: Number(status) },
    ]),
  )
}

function documentedAs(outcome: string): Documented {
  const row = documented().get(outcome)
  if (row === undefined) throw new Error(`${outcome} is not in the table of outcomes`)
  return row
}

let fleet: TestFleet
let bodies = 0
/** The outcomes of all commands so far. */
const counted = new Map<Outcome, number>()
/** All copies so far: the outcome and the beginning of the body. */
const copies: string[] = []

beforeAll(async () => {
  fleet = await TestFleet.start(1, {
    MAX_LINE_BYTES: String(MAX_LINE_BYTES),
    MAX_OUTGOING_BYTES: String(MAX_LINE_BYTES + 1),
    MAX_HELD_PER_DEVICE: String(MAX_HELD_PER_DEVICE),
    SEQ_GAP_TIMEOUT_MS: "300",
    MAX_REPLY_MS: String(MAX_REPLY_MS),
    PREFETCH: String(PREFETCH),
  })
}, LIMIT_MS)

afterEach(() => fleet.releaseDevices())

afterAll(() => fleet?.stop(), LIMIT_MS)

function newBody(source: Source, text: string): string {
  bodies += 1
  return `${bodies} ${source} ${text}`
}

/** The options of a command, for AMQP and HTTP. */
interface About {
  readonly seq?: number
  readonly messageId?: string
  readonly ttlMs?: number
  readonly fields?: Readonly<Record<string, string | number | boolean>>
}

interface Target {
  readonly name: string
  readonly connectionId: string
}

/** How a command has ended, as its sender sees it: "held" in a response 202. */
type Ended = Outcome | "held"

interface Answer {
  readonly outcome: Ended
  readonly reply?: { readonly line: string }
}

interface Sent {
  readonly body: string
  readonly answer: Promise<Answer>
}

async function receipt(command: number): Promise<Answer> {
  return (await fleet.receiptOf(command)) as Answer
}

async function sendByAmqp(target: object, body: string, about: About): Promise<Sent> {
  const { fields, ttlMs, ...others } = about
  const command = await fleet.backEnd.send({
    ...{ body, ...target, ...others },
    ...(fields === undefined ? {} : { headers: fields }),
    ...(ttlMs === undefined ? {} : { expiration: ttlMs }),
  })
  return { body, answer: receipt(command) }
}

async function answerOf(responding: Promise<Response>): Promise<Answer> {
  const response = await responding
  const { outcome, error, reply } = (await response.json()) as {
    outcome?: Ended
    error?: { code: Ended }
    reply?: { line: string }
  }
  const ended = outcome ?? error?.code
  if (ended === undefined) throw new Error(`${response.status} without an outcome`)
  expect([ended, response.status]).toEqual([
    ended,
    ended === "held" ? 202 : documentedAs(ended).status,
  ])
  return { outcome: ended, ...(reply === undefined ? {} : { reply }) }
}

function post(path: string, body: object): Promise<Response> {
  const headers = { "content-type": "application/json" }
  return fleet.instance(0).fetch(path, { method: "POST", headers, body: JSON.stringify(body) })
}

function sendByHttp(name: string, body: string, about: About): Sent {
  const { messageId, ttlMs, fields } = about
  const request = {
    ...{ line: body, ...fields },
    ...(messageId === undefined ? {} : { message_id: messageId }),
    ...(ttlMs === undefined ? {} : { ttl_ms: ttlMs }),
  }
  return { body, answer: answerOf(post(`/devices/${name}/send`, request)) }
}

async function send(
  source: Direct,
  { name, connectionId }: Target,
  body: string,
  about: About = {},
): Promise<Sent> {
  switch (source) {
    case "AMQP by device_id":
      return sendByAmqp({ device: name }, body, about)
    case "AMQP by connection_id":
      return sendByAmqp({ connection: connectionId }, body, about)
    case "HTTP":
      return sendByHttp(name, body, about)
  }
}

/** Counts a command by its outcome, and waits for its counter, and for its copy if there is one. */
async function ended(
  body: string,
  outcome: Outcome,
  { isKept = documentedAs(outcome).isKept } = {},
): Promise<void> {
  const count = (counted.get(outcome) ?? 0) + 1
  counted.set(outcome, count)
  await until(async () => (await fleet.counted("owsla_commands_total", outcome)) >= count, {
    what: `${count} commands to be counted as ${outcome}`,
  })
  if (isKept) await kept(body, outcome)
}

async function kept(body: string, outcome: string): Promise<void> {
  const copy = `${outcome}: ${body.slice(0, NAME_CHARACTERS)}`
  copies.push(copy)
  await until(() => copiesSoFar().includes(copy), { what: `the copy ${copy}` })
}

function copiesSoFar(): string[] {
  return fleet.backEnd.undelivered.map(
    ({ body, outcome }) => `${outcome}: ${body.slice(0, NAME_CHARACTERS)}`,
  )
}

async function endsAs(sent: Sent, outcome: Outcome): Promise<Answer> {
  const answer = await sent.answer
  expect(answer.outcome).toBe(outcome)
  await ended(sent.body, outcome)
  return answer
}

interface Admitted extends Target {
  readonly device: TestDevice
}

async function admitted(): Promise<Admitted> {
  const name = fleet.newName()
  const { device, view } = await fleet.admit(0, name)
  return { name, device, connectionId: view.connection_id }
}

async function outgoingBytes(name: string): Promise<number> {
  const response = await fleet.instance(0).fetch(`/devices/${name}`)
  return response.ok ? ((await response.json()) as DeviceView).outgoing_bytes : 0
}

interface Blocked extends Admitted {
  /** Waits until the commands behind the blocking ones have this many bytes with their LFs. */
  readonly waiting: (bytes: number) => Promise<void>
  /** The device answers, so that the commands that wait are written. */
  readonly release: () => Promise<void>
  /** The device disconnects. */
  readonly disconnect: () => Promise<void>
}

/**
 * A device at which all commands wait: behind a command with `reply_next`, which waits for the reply
 * of the one before it.
 */
async function blocked(): Promise<Blocked> {
  const target = await admitted()
  const { name, device } = target
  const fields = { reply_next: true, reply_timeout_ms: LONG_MS }
  const source = "AMQP by device_id"
  const first = await send(source, target, newBody(source, "first question"), { fields })
  expect(await device.nextLine()).toBe(first.body)
  const second = await send(source, target, newBody(source, "second question"), { fields })
  const own = second.body.length + 1
  const waiting = (bytes: number) =>
    until(async () => (await outgoingBytes(name)) === own + bytes, {
      what: `${bytes} bytes to wait`,
    }).then(() => undefined)
  await waiting(0)
  const release = async () => {
    await device.send("first answer")
    await endsAs(first, "answered")
    expect(await device.nextLine()).toBe(second.body)
    await device.send("second answer")
    await endsAs(second, "answered")
  }
  const disconnect = async () => {
    device.terminate()
    await endsAs(first, "no_reply")
    await endsAs(second, "closed")
  }
  return { ...target, waiting, release, disconnect }
}

const NOT_HELD = "only held commands are listed and cancelled"
const NO_NUMBER = "it has no to_device_seq"

function direct(source: Direct): Cells {
  const isHttp = source === "HTTP"
  const command = (text: string) => newBody(source, text)

  /** Refused by HTTP before it is a command: neither kept nor counted. */
  const refused = async (body: string, outcome: "invalid" | "too_large") => {
    const sent = await send(source, await admitted(), body)
    if (!isHttp) await endsAs(sent, outcome)
    else expect((await sent.answer).outcome).toBe(outcome)
  }

  return {
    written: async () => {
      const target = await admitted()
      const sent = await send(source, target, command("written"))
      expect(await target.device.nextLine()).toBe(sent.body)
      await endsAs(sent, "written")
    },
    offline: async () => {
      const { connectionId } = await admitted()
      const nobody = { name: fleet.newName(), connectionId: `${connectionId}zzz` }
      await endsAs(await send(source, nobody, command("offline")), "offline")
    },
    expired: async () => {
      const target = await blocked()
      await endsAs(await send(source, target, command("expires"), { ttlMs: SHORT_MS }), "expired")
      await target.release()
    },
    invalid: () => refused(command("two\nlines"), "invalid"),
    too_large: () => refused(command(TOO_LARGE), "too_large"),
    duplicate: async () => {
      const target = await admitted()
      const messageId = command("id")
      await endsAs(await send(source, target, command("once"), { messageId }), "written")
      await endsAs(await send(source, target, command("twice"), { messageId }), "duplicate")
    },
    late: isHttp
      ? NO_NUMBER
      : async () => {
          const target = await admitted()
          await endsAs(await send(source, target, command("early"), { seq: 1 }), "written")
          await endsAs(await send(source, target, command("late"), { seq: 0 }), "late")
        },
    slow_device: async () => {
      const target = await blocked()
      const large = command("x".repeat(MAX_LINE_BYTES - 10_000))
      const waits = await send(source, target, large)
      await target.waiting(large.length + 1)
      await endsAs(await send(source, target, command("x".repeat(20_000))), "slow_device")
      await target.release()
      await endsAs(waits, "written")
    },
    closed: async () => {
      const target = await blocked()
      const sent = await send(source, target, command("closed"))
      await target.waiting(sent.body.length + 1)
      await target.disconnect()
      await endsAs(sent, "closed")
    },
    answered: async () => {
      const target = await admitted()
      const fields = { reply_token: "r1", reply_timeout_ms: LONG_MS }
      const sent = await send(source, target, command("answer r1"), { fields })
      expect(await target.device.nextLine()).toBe(sent.body)
      await target.device.send("r1 yes")
      expect((await endsAs(sent, "answered")).reply?.line).toBe("r1 yes")
    },
    no_reply: async () => {
      const fields = { reply_token: "r1", reply_timeout_ms: SHORT_MS }
      const sent = await send(source, await admitted(), command("no reply"), { fields })
      await endsAs(sent, "no_reply")
    },
    superseded: async () => {
      const target = await blocked()
      const about = { fields: { supersede_key: "k" } }
      const older = await send(source, target, command("older"), about)
      await target.waiting(older.body.length + 1)
      const newer = await send(source, target, command("newer"), about)
      await endsAs(older, "superseded")
      await target.release()
      await endsAs(newer, "written")
    },
    cancelled: NOT_HELD,
    hold_full: "without hold_ms it is not held",
  }
}

async function listed(name: string): Promise<number> {
  const response = await fleet.instance(0).fetch(`/devices/${name}/held`)
  return response.ok ? ((await response.json()) as { held: unknown[] }).held.length : -1
}

/** Cancels all held commands of a device. @returns their number. */
async function cancelAll(name: string): Promise<number> {
  let cancelled = 0
  // A command that is on its way to a connection is not cancelled before it is back.
  await until(
    async () => {
      const response = await fleet.instance(0).fetch(`/devices/${name}/held`, { method: "DELETE" })
      if (response.ok) cancelled += ((await response.json()) as { cancelled: number }).cancelled
      return (await listed(name)) === 0
    },
    { what: `no held command for ${name}` },
  )
  return cancelled
}

function heldCells(source: Held): Cells {
  const isHttp = source === "held by HTTP"
  const command = (text: string) => newBody(source, text)
  const newName = () => fleet.newName()

  const hold = async (name: string, body: string, about: About = {}): Promise<Sent> => {
    const withHold = { ...about, fields: { hold_ms: LONG_MS, ...about.fields } }
    if (isHttp) return sendByHttp(name, body, withHold)
    return sendByAmqp({ device: name }, body, withHold)
  }

  /** Holds a command, and waits until so many are held. */
  const isHeld = async (name: string, body: string, about: About = {}, count = 1) => {
    const sent = await hold(name, body, about)
    await until(async () => (await listed(name)) === count, { what: `${count} held commands` })
    return sent
  }

  /** The outcome of a command after it was held is not reported to an HTTP client. */
  const endsHeldAs = async (sent: Sent, outcome: Outcome): Promise<Answer> => {
    if (!isHttp) return endsAs(sent, outcome)
    const answer = await sent.answer
    expect(answer.outcome).toBe("held")
    await ended(sent.body, outcome)
    return answer
  }

  const cancel = async (name: string, ...commands: Sent[]) => {
    expect(await cancelAll(name)).toBe(commands.length)
    for (const sent of commands) await endsHeldAs(sent, "cancelled")
  }

  const refused = async (body: string, outcome: "invalid" | "too_large", fields = {}) => {
    const sent = await hold(newName(), body, { fields })
    if (!isHttp) await endsAs(sent, outcome)
    else expect((await sent.answer).outcome).toBe(outcome)
  }

  /**
   * Newer commands wait for held ones, and are released early because they fill the prefetch of
   * their queue. Two of them wait so long for replies that the next held one may not wait too.
   */
  const slowDevice = async () => {
    const name = newName()
    const fields = { reply_next: true, reply_timeout_ms: MAX_REPLY_MS }
    const short = { reply_next: true, reply_timeout_ms: LONG_MS }
    const first = await isHeld(name, command("first"), { fields: short })
    const second = await isHeld(name, command("second"), { fields }, 2)
    const { device, view } = await fleet.admit(0, name)
    expect(await device.nextLine()).toBe(first.body)
    const queue = workerQueue(workerOfConnection(view.connection_id) ?? "")
    const newer: Sent[] = []
    for (let n = 0; n < PREFETCH; n += 1) {
      const asks = n < 2 ? { headers: fields } : {}
      const body = command("newer")
      const number = await fleet.backEnd.send({ body, device: name, queue, ...asks })
      newer.push({ body, answer: receipt(number) })
    }
    await until(async () => (await outgoingBytes(name)) > 0, { what: "an early release" })
    await device.send("answer")
    await endsHeldAs(first, "answered")
    await endsHeldAs(second, "slow_device")
    for (const [n, sent] of newer.entries()) {
      if (n < 2) {
        expect(await device.nextLine()).toBe(sent.body)
        await device.send("answer")
      }
      await endsAs(sent, n < 2 ? "answered" : "written")
    }
  }

  /**
   * The device reads nothing, and disconnects when one of its held commands is written in part.
   * Those before it are written, those after it stay held.
   */
  const closed = async () => {
    const name = newName()
    const sent: Sent[] = []
    for (let n = 1; n <= MAX_HELD_PER_DEVICE; n += 1) {
      const body = command("x".repeat(MAX_LINE_BYTES - NAME_CHARACTERS))
      sent.push(await isHeld(name, body, {}, n))
    }
    const device = await fleet.connect(0, name)
    device.pause()
    let before = 0
    await until(
      async () => {
        const last = before
        before = await outgoingBytes(name)
        // A command that waits for the next flush has all its bytes.
        return before > 0 && before <= MAX_LINE_BYTES - 2 * NAME_CHARACTERS && before === last
      },
      { what: "a command that is written in part" },
    )
    device.terminate()
    const indexOfCopy = () => {
      const copy = fleet.backEnd.undelivered.findLast(({ outcome }) => outcome === "closed")
      return sent.findIndex(({ body }) => body === copy?.body)
    }
    await until(() => indexOfCopy() >= 0, { what: "the copy" })
    const at = indexOfCopy()
    expect(await cancelAll(name)).toBe(sent.length - at - 1)
    for (const [n, each] of sent.entries()) {
      if (n === at) await endsHeldAs(each, "closed")
      else await endsHeldAs(each, n < at ? "written" : "cancelled")
    }
  }

  return {
    written: async () => {
      const name = newName()
      const sent = await isHeld(name, command("written"))
      const device = await fleet.connect(0, name)
      expect(await device.nextLine()).toBe(sent.body)
      await endsHeldAs(sent, "written")
    },
    offline: "it is held instead, as long as any worker can take it",
    expired: async () => {
      const about = { fields: { hold_ms: HELD_MS } }
      const commands = [
        await hold(newName(), command("expires"), about),
        await hold(newName(), command("expires too"), { ttlMs: HELD_MS }),
      ]
      for (const sent of commands) await endsHeldAs(sent, "expired")
    },
    invalid: () => refused(command("hold_ms"), "invalid", { hold_ms: 0 }),
    too_large: () => refused(command(TOO_LARGE), "too_large"),
    duplicate: async () => {
      const name = newName()
      const messageId = command("id")
      const first = await isHeld(name, command("once"), { messageId })
      await endsAs(await hold(name, command("twice"), { messageId }), "duplicate")
      await cancel(name, first)
    },
    late: "hold_ms and to_device_seq exclude each other",
    slow_device: slowDevice,
    closed,
    answered: async () => {
      const name = newName()
      const messageId = command("id")
      const fields = { reply_token: "r1", reply_timeout_ms: LONG_MS }
      const sent = await isHeld(name, command("answer r1"), { messageId, fields })
      const device = await fleet.connect(0, name)
      expect(await device.nextLine()).toBe(sent.body)
      await device.send("r1 yes")
      const { reply } = await endsHeldAs(sent, "answered")
      if (!isHttp) expect(reply?.line).toBe("r1 yes")
      const isReply = () =>
        fleet.backEnd.lines.some(({ headers }) => headers["in_reply_to"] === messageId)
      await until(isReply, { what: "the line with in_reply_to" })
    },
    no_reply: async () => {
      const name = newName()
      const fields = { reply_token: "r1", reply_timeout_ms: SHORT_MS }
      const sent = await isHeld(name, command("no reply"), { fields })
      await fleet.connect(0, name)
      await endsHeldAs(sent, "no_reply")
    },
    superseded: async () => {
      const name = newName()
      const about = { fields: { supersede_key: "k" } }
      const older = await isHeld(name, command("older"), about)
      const newer = await hold(name, command("newer"), about)
      await endsHeldAs(older, "superseded")
      await cancel(name, newer)
    },
    cancelled: async () => {
      const name = newName()
      await cancel(name, await isHeld(name, command("cancelled")))
    },
    hold_full: async () => {
      const name = newName()
      const sent: Sent[] = []
      for (let n = 1; n <= MAX_HELD_PER_DEVICE; n += 1) {
        sent.push(await isHeld(name, command("held"), {}, n))
      }
      await endsAs(await hold(name, command("one more")), "hold_full")
      await cancel(name, ...sent)
    },
  }
}

function broadcast(source: Broadcast): Cells {
  const isHttp = source === "broadcast by HTTP"
  const line = (text: string) => newBody(source, text)
  type Counts = Readonly<Record<string, number>> | undefined

  const write = async (name: string, body: string, key?: string): Promise<Counts> => {
    const option = key === undefined ? {} : { supersede_key: key }
    if (isHttp) {
      const response = await post("/broadcasts", { to: { ids: [name] }, line: body, ...option })
      expect(response.status).toBe(200)
      return ((await response.json()) as { outcomes: Counts }).outcomes
    }
    const headers = { to_ids: name, ...option }
    const number = await fleet.backEnd.send({ body, exchange: "owsla.broadcast", headers })
    return (await fleet.receiptOf(number)).outcomes
  }

  /** The line for the one device has this outcome, and is not kept. */
  const lineEndsAs = async (counts: Promise<Counts>, body: string, outcome: Outcome) => {
    const { written, ...others } = (await counts) ?? {}
    expect({ ...(written === 0 ? {} : { written }), ...others }).toEqual({ [outcome]: 1 })
    await ended(body, outcome, { isKept: false })
  }

  /** The whole broadcast is refused, and none of its lines is counted. */
  const refused = async (body: string, outcome: "invalid" | "too_large") => {
    if (isHttp) {
      const { outcome: code } = await answerOf(post("/broadcasts", { to: "all", line: body }))
      expect(code).toBe(outcome)
      return
    }
    const headers = { to: "all" }
    const number = await fleet.backEnd.send({ body, exchange: "owsla.broadcast", headers })
    expect((await fleet.receiptOf(number)).outcome).toBe(outcome)
    await kept(body, outcome)
  }

  return {
    written: async () => {
      const { name, device } = await admitted()
      const body = line("written")
      await lineEndsAs(write(name, body), body, "written")
      expect(await device.nextLine()).toBe(body)
    },
    offline: "a device that is not connected does not match",
    expired: "its lines do not expire",
    invalid: () => refused(line("two\nlines"), "invalid"),
    too_large: () => refused(line(TOO_LARGE), "too_large"),
    duplicate: "its lines have no message_id of their own",
    late: NO_NUMBER,
    slow_device: async () => {
      const target = await blocked()
      const filler = newBody("AMQP by device_id", "x".repeat(MAX_LINE_BYTES - 10_000))
      const waits = await send("AMQP by device_id", target, filler)
      await target.waiting(filler.length + 1)
      const body = line("x".repeat(20_000))
      await lineEndsAs(write(target.name, body), body, "slow_device")
      await target.release()
      await endsAs(waits, "written")
    },
    closed: async () => {
      const target = await blocked()
      const body = line("closed")
      const counts = write(target.name, body)
      await target.waiting(body.length + 1)
      // Counted together, because both end as `closed` at once.
      counted.set("closed", (counted.get("closed") ?? 0) + 1)
      await target.disconnect()
      expect(await counts).toMatchObject({ closed: 1 })
    },
    answered: "its lines wait for no reply",
    no_reply: "its lines wait for no reply",
    superseded: async () => {
      const target = await blocked()
      const body = line("older")
      const counts = write(target.name, body, "k")
      await target.waiting(body.length + 1)
      const about = { fields: { supersede_key: "k" } }
      const newer = await send("HTTP", target, newBody("HTTP", "newer"), about)
      await lineEndsAs(counts, body, "superseded")
      await target.release()
      await endsAs(newer, "written")
    },
    cancelled: NOT_HELD,
    hold_full: "its lines are not held",
  }
}

const TABLE: { readonly [S in Source]: Cells } = {
  "AMQP by device_id": direct("AMQP by device_id"),
  "AMQP by connection_id": direct("AMQP by connection_id"),
  HTTP: direct("HTTP"),
  "held by AMQP": heldCells("held by AMQP"),
  "held by HTTP": heldCells("held by HTTP"),
  "broadcast by AMQP": broadcast("broadcast by AMQP"),
  "broadcast by HTTP": broadcast("broadcast by HTTP"),
}

test("docs/PROTOCOL.md has a row for each outcome", () => {
  expect([...documented().keys()].toSorted()).toEqual([...OUTCOMES].toSorted())
})

describe.each(SOURCES)("a command: %s", (source) => {
  for (const outcome of OUTCOMES) {
    const cell = TABLE[source][outcome]
    if (typeof cell !== "string") test(`ends as ${outcome}`, cell, LIMIT_MS)
  }
})

test(
  "no command has a second outcome or copy",
  async () => {
    const nobody = { name: fleet.newName(), connectionId: "" }
    // Its copy is behind all others.
    await endsAs(await send("HTTP", nobody, newBody("HTTP", "the last")), "offline")
    expect(copiesSoFar().toSorted()).toEqual(copies.toSorted())
    for (const outcome of OUTCOMES) {
      const count = await fleet.counted("owsla_commands_total", outcome)
      expect([outcome, count]).toEqual([outcome, counted.get(outcome) ?? 0])
    }
  },
  LIMIT_MS,
)
