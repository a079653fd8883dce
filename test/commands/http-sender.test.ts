/**
 * Commands that come by HTTP: each request is answered exactly once, whatever becomes of the
 * command, the broker or the receipt. On the embedded broker, which answers as it is told, with a
 * scripted connection and the clock held.
 */

import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test"
import type { Delivery, OutgoingMessage, PublishResult } from "../../src/broker/broker.ts"
import { EmbeddedBroker } from "../../src/broker/embedded.ts"
import { OutboundMessages } from "../../src/broker/outbound-messages.ts"
import { workerQueue } from "../../src/broker/topology.ts"
import { COMMAND_ID_HEADER } from "../../src/commands/command-message.ts"
import { type CommandOptions, NO_OPTIONS } from "../../src/commands/command-options.ts"
import { CommandIds } from "../../src/commands/forwarding.ts"
import { HttpSender, type SendRequest, type SendResult } from "../../src/commands/http-sender.ts"
import { Outcomes, type Receipt } from "../../src/commands/outcomes.ts"
import { CommandRouter, type Place } from "../../src/commands/router.ts"
import { UnacknowledgedCommands } from "../../src/commands/unacknowledged-commands.ts"
import { Counters } from "../../src/counters.ts"
import { type Command, isKept, OUTCOMES, type Outcome } from "../../src/device/command.ts"
import type { Connection } from "../../src/device/connection.ts"
import { FLEET_KEYS, RANDOM_PART } from "../support/fleet-keys.ts"

const NOW_MS = 1_750_000_000_123
const TIMEOUT_MS = 5_000
const MAX_PENDING = 10_000
const UNDELIVERED = "to_device.undelivered"
const REPLIES = "owsla.replies.gw.0.x"
/** Minted by this worker, by another, and by one that has no queue. */
const [OWN, OTHER, GONE] = ["gw.0.mb2k3f9zq7.1", "gw.1.mb2k3f9zq7.1", "gw.9.mb2k3f9zq7.1"]
/** Minted by this worker and gone. */
const CLOSED = "gw.0.mb2k3f9zq7.2"
const OTHER_QUEUE = workerQueue("gw.1")
const RECIPIENT = { connectionId: OWN, deviceId: "thermostat:7", epoch: 1_750_000_000_000 }
const RECEIPT: Receipt = {
  outcome: "written",
  device_id: OTHER,
  connection_id: OTHER,
  epoch: 5,
  at: 6,
  detail: "",
}

beforeEach(() => {
  jest.useFakeTimers()
})

afterEach(() => {
  jest.useRealTimers()
})

/** The embedded broker with the results of the next publishes as the test wants them. */
class ScriptedBroker extends EmbeddedBroker {
  readonly results: PublishResult[] = []
  readonly published: OutgoingMessage[] = []

  override store(message: OutgoingMessage): PublishResult {
    this.published.push(message)
    return this.results.shift() ?? super.store(message)
  }
}

/** A connection that keeps what it is offered. */
class ScriptedConnection {
  readonly offered: Command[] = []

  offer(command: Command): void {
    this.offered.push(command)
  }

  /** Ends the oldest command that it was offered. */
  settle(outcome: Outcome, detail = ""): void {
    const command = this.offered.shift()
    command?.settle(outcome, detail, RECIPIENT)
  }
}

class Subject {
  readonly broker = new ScriptedBroker()
  readonly counters = new Counters()
  readonly connection = new ScriptedConnection()
  readonly outboundMessages = new OutboundMessages(this.broker, this.counters, () => NOW_MS)
  readonly sender: HttpSender
  readonly located: { id: string; trusting: boolean }[] = []
  /** Where the fleet says that a device is. */
  place: Place = { kind: "nowhere", detail: "nobody holds it" }
  /** Where held commands go. */
  keeperQueue: string | null = null
  /** Look-ups wait until the test ends them. */
  searching: (() => void)[] | null = null
  nowMs = NOW_MS
  readonly undelivered: Delivery[] = []
  #nextSend = 0

  constructor() {
    const unacknowledged = new UnacknowledgedCommands(this.broker, 1_000_000, this.counters)
    const outcomes = new Outcomes(
      this.outboundMessages,
      unacknowledged,
      this.counters,
      UNDELIVERED,
      () => NOW_MS,
      () => this.nowMs,
    )
    const router = new CommandRouter(this.outboundMessages, {
      workerId: "gw.0",
      nowMs: () => this.nowMs,
      counters: this.counters,
      find: (id) =>
        id === OWN || id === "thermostat:7"
          ? (this.connection as unknown as Connection)
          : undefined,
      locate: (id, trusting, found) => {
        this.located.push({ id, trusting })
        if (this.searching === null) found(this.place)
        else this.searching.push(() => found(this.place))
      },
      commandIds: new CommandIds({ worker: "gw.0", incarnation: "mb2k3f9zq7" }, RANDOM_PART),
      commandKey: FLEET_KEYS.commandKey,
    })
    this.sender = new HttpSender(this.broker, this.outboundMessages, router, outcomes, {
      replyQueue: REPLIES,
      timeoutMs: TIMEOUT_MS,
      maxLineBytes: 65_536,
      keeperQueueOf: () => this.keeperQueue,
      nowMs: () => this.nowMs,
      steadyMs: () => this.nowMs,
      counters: this.counters,
    })
  }

  async start(): Promise<this> {
    const names = [UNDELIVERED, OTHER_QUEUE]
    const deliver = (delivery: Delivery) => void this.undelivered.push(delivery)
    this.broker.start(
      {
        exchanges: [],
        queues: names.map((name) => ({ name, durable: true, arguments: {} })),
        subscriptions: [{ queue: UNDELIVERED, prefetch: 100, deliver }],
      },
      { stateChanged: () => undefined, warning: () => undefined },
    )
    await settled()
    return this
  }

  /** Sends one command; `answers` grows by one each time the request is answered. */
  async send(id: string, request: Partial<SendRequest> = {}, caller?: AbortSignal) {
    const answers: SendResult[] = []
    const body = Buffer.from("switch on")
    const whole = { id, body, ttlMs: null, messageId: null, options: NO_OPTIONS, ...request }
    void this.sender.send(whole, caller).then((result) => answers.push(result))
    const [message] = this.broker.published.slice(this.#nextSend)
    this.#nextSend = this.broker.published.length
    await settled()
    return { answers, message }
  }

  /** A receipt from the reply queue. */
  async reply(correlationId: string | undefined, body: unknown): Promise<void> {
    this.sender.deliverReceipt({
      queue: REPLIES,
      body: typeof body === "string" ? Buffer.from(body) : Buffer.from(JSON.stringify(body)),
      properties: correlationId === undefined ? {} : { correlationId },
      redelivered: false,
      settled: false,
      lost: false,
      acknowledge: () => undefined,
    })
    await settled()
  }

  async timeOut(): Promise<void> {
    jest.advanceTimersByTime(TIMEOUT_MS)
    await settled()
  }

  /** The outcomes of the copies in the undelivered queue. */
  kept(): unknown[] {
    return this.undelivered.map(({ properties }) => properties.headers?.["owsla-outcome"])
  }
}

/**
 * Lets everything happen that needs no time: the embedded broker answers at the end of the turn.
 */
async function settled(): Promise<void> {
  for (let n = 0; n < 20; n += 1) await Promise.resolve()
}

describe("a command for a connection of this worker", () => {
  test("is offered to it, whichever id it was sent to", async () => {
    const subject = await new Subject().start()
    await subject.send(OWN)
    await subject.send("thermostat:7", { messageId: "m", ttlMs: 100 })
    expect(subject.connection.offered).toMatchObject([
      { body: Buffer.from("switch on"), seq: null, messageId: null, redelivered: false },
      { messageId: "m", expiresAtMs: NOW_MS + 100 },
    ])
    expect(subject.broker.published).toEqual([])
    expect(subject.counters.commandsReceived).toBe(2)
  })

  test("is timed until it is settled", async () => {
    const subject = await new Subject().start()
    await subject.send(OWN)
    subject.nowMs += 40
    subject.connection.offered[0]?.settle("written", "", null)
    const { written } = subject.counters.commandTimes
    expect(written.sum).toBeCloseTo(0.04, 5)
    expect([...written.counts].reduce((sum, count) => sum + count)).toBe(1)
  })

  test("expires when the request does, unless it says otherwise", async () => {
    const subject = await new Subject().start()
    await subject.send(OWN)
    await subject.send(OWN, { ttlMs: TIMEOUT_MS * 10 })
    await subject.send(OWN, { ttlMs: 1 })
    expect(subject.connection.offered.map(({ expiresAtMs }) => expiresAtMs - NOW_MS)).toEqual([
      TIMEOUT_MS,
      TIMEOUT_MS * 10,
      1,
    ])
  })

  test.each([...OUTCOMES])("that ends as %s answers so, once", async (outcome) => {
    const subject = await new Subject().start()
    const { answers } = await subject.send(OWN)
    expect(answers).toEqual([])
    subject.connection.settle(outcome, "why")
    await settled()
    expect(answers).toEqual([
      {
        outcome,
        device_id: "thermostat:7",
        connection_id: OWN,
        epoch: 1_750_000_000_000,
        at: NOW_MS,
        detail: "why",
      },
    ])
    expect(subject.kept()).toEqual(isKept(outcome) ? [outcome] : [])
    expect(subject.counters.commandsSettled[outcome]).toBe(1)
    await subject.timeOut()
    expect(answers.length).toBe(1)
  })

  test("needs no broker", async () => {
    const subject = new Subject()
    const { answers } = await subject.send(OWN)
    subject.connection.settle("written")
    await settled()
    expect(answers).toMatchObject([{ outcome: "written" }])
  })

  test("that is settled late is kept although its request was answered", async () => {
    const subject = await new Subject().start()
    const { answers } = await subject.send(OWN)
    await subject.timeOut()
    expect(answers).toEqual([{ outcome: "timeout" }])
    subject.connection.settle("slow_device")
    await settled()
    expect(answers.length).toBe(1)
    expect(subject.kept()).toEqual(["slow_device"])
  })
})

describe("a command that may be held", () => {
  const HOLD_MS = 60_000
  const options: CommandOptions = { ...NO_OPTIONS, holdMs: HOLD_MS }

  test("goes to its keeper when no worker has its device, and is valid for as long", async () => {
    const subject = await new Subject().start()
    subject.keeperQueue = OTHER_QUEUE
    const { answers } = await subject.send("lock:1", { options })
    const [forward] = subject.broker.published
    expect(forward?.routingKey).toBe(OTHER_QUEUE)
    const headers = { hold_ms: HOLD_MS, "owsla-hold": true }
    expect(forward?.properties.headers).toMatchObject(headers)
    const held = { outcome: "held", expires_at: NOW_MS + HOLD_MS }
    await subject.reply(forward?.properties.correlationId, held)
    expect(answers).toEqual([held] as SendResult[])
    expect(subject.kept()).toEqual([])
  })

  test("goes to its keeper when its connection ends before bytes of it were offered", async () => {
    const subject = await new Subject().start()
    subject.keeperQueue = OTHER_QUEUE
    await subject.send("thermostat:7", { options })
    subject.connection.settle("closed")
    await subject.send("thermostat:7", { options })
    const [offered] = subject.connection.offered
    if (offered !== undefined) offered.isOffered = true
    subject.connection.settle("closed")
    await settled()
    const forwards = subject.broker.published.filter(({ routingKey }) => routingKey === OTHER_QUEUE)
    expect(forwards).toHaveLength(1)
    expect(subject.kept()).toEqual(["closed"])
  })

  test("waits until its keeper is known", async () => {
    const subject = await new Subject().start()
    const { answers } = await subject.send("lock:1", { options })
    subject.sender.sweep()
    await settled()
    expect(answers).toEqual([])
    expect(subject.broker.published).toEqual([])
    expect(subject.sender.pendingCount).toBe(1)
    subject.keeperQueue = OTHER_QUEUE
    subject.sender.sweep()
    subject.sender.sweep()
    const [forward, ...more] = subject.broker.published
    expect(forward?.routingKey).toBe(OTHER_QUEUE)
    expect(more).toEqual([])
    const held = { outcome: "held", expires_at: NOW_MS + HOLD_MS }
    await subject.reply(forward?.properties.correlationId, held)
    expect(answers).toEqual([held] as SendResult[])
    expect(subject.sender.pendingCount).toBe(0)
  })

  test("ends as offline when its request ends before a keeper is known", async () => {
    const subject = await new Subject().start()
    const { answers } = await subject.send("lock:1", { options })
    jest.advanceTimersByTime(TIMEOUT_MS)
    await settled()
    expect(answers).toMatchObject([{ outcome: "timeout" }])
    subject.keeperQueue = OTHER_QUEUE
    subject.sender.sweep()
    await settled()
    expect(subject.kept()).toEqual(["offline"])
    expect(subject.counters.commandsSettled.offline).toBe(1)
    expect(subject.sender.pendingCount).toBe(0)
  })
})

describe("a command with a reply", () => {
  const REPLY_MS = 2_000
  const options: CommandOptions = {
    holdMs: null,
    supersedeKey: "k",
    reply: { condition: { kind: "next" }, timeoutMs: REPLY_MS },
    trace: { traceparent: "00-4bf92f35-00f067aa-01" },
  }

  test("has as much more time, and is valid no longer than another", async () => {
    const subject = await new Subject().start()
    const { answers } = await subject.send(OWN, { options })
    const [command] = subject.connection.offered
    expect(command).toMatchObject({ ...options, expiresAtMs: NOW_MS + TIMEOUT_MS })
    jest.advanceTimersByTime(TIMEOUT_MS + REPLY_MS - 1)
    await settled()
    expect(answers).toEqual([])
    const reply = { line: Buffer.from("r1"), fromDeviceSeq: 3 }
    command?.settle("answered", "", RECIPIENT, reply)
    await settled()
    expect(answers).toMatchObject([
      { outcome: "answered", reply: { line: "r1", encoding: "utf-8", from_device_seq: 3 } },
    ])
    expect(subject.kept()).toEqual([])
  })

  test("is answered timeout after that", async () => {
    const subject = await new Subject().start()
    const { answers } = await subject.send(OWN, { options })
    jest.advanceTimersByTime(TIMEOUT_MS + REPLY_MS)
    await settled()
    expect(answers).toEqual([{ outcome: "timeout" }])
  })

  test("is forwarded with all that it asks for, and its receipt is the answer", async () => {
    const subject = await new Subject().start()
    const { answers, message } = await subject.send(OTHER, { options })
    expect(message?.properties.headers).toMatchObject({
      supersede_key: "k",
      reply_next: true,
      reply_timeout_ms: REPLY_MS,
      traceparent: "00-4bf92f35-00f067aa-01",
    })
    jest.advanceTimersByTime(TIMEOUT_MS)
    const reply = { line: "AA==", encoding: "base64", from_device_seq: 3 } as const
    const receipt: Receipt = { ...RECEIPT, outcome: "answered", reply }
    await subject.reply(message?.properties.correlationId, receipt)
    expect(answers).toEqual([receipt])
  })
})

describe("a command for nobody", () => {
  test("answers offline and is kept, with where it was to go and its id", async () => {
    const subject = await new Subject().start()
    const { answers } = await subject.send("nobody", { messageId: "m" })
    expect(answers).toMatchObject([{ outcome: "offline", connection_id: null, epoch: null }])
    const [copy, ...others] = subject.undelivered
    expect(others).toEqual([])
    expect(Buffer.from(copy?.body ?? []).toString()).toBe("switch on")
    expect(copy?.properties).toMatchObject({
      messageId: "m",
      headers: { device_id: "nobody", "owsla-outcome": "offline" },
    })
  })

  test("to a connection of ours that has closed: offline at once though the broker is away, kept later", async () => {
    const subject = new Subject()
    const { answers } = await subject.send(CLOSED)
    expect(answers).toMatchObject([{ outcome: "offline" }])
    await subject.start()
    expect(subject.kept()).toEqual(["offline"])
  })

  test("to a name that is not here is unreachable while the broker, which leads elsewhere, is away", async () => {
    const subject = new Subject()
    const { answers } = await subject.send("nobody")
    expect(answers).toEqual([{ outcome: "unreachable" }])
    await subject.start()
    expect(subject.undelivered).toEqual([])
  })

  test("does not fill the memory while the broker is away", async () => {
    const subject = new Subject()
    const outcomes = new Set<string>()
    for (let n = 0; n < MAX_PENDING + 1_000; n += 1) {
      const body = Buffer.from("x")
      const request = { id: CLOSED, body, ttlMs: null, messageId: null, options: NO_OPTIONS }
      outcomes.add((await subject.sender.send(request)).outcome)
    }
    // Outbound messages are said to be bounded by the requests that wait, and none of these waits
    // any more.
    expect(subject.outboundMessages.count).toBeLessThanOrEqual(MAX_PENDING)
  })
})

describe("a command for a device by its name", () => {
  test("goes where the fleet finds it, by what was announced", async () => {
    const subject = await new Subject().start()
    subject.place = { kind: "worker", worker: "gw.1" }
    const { answers, message } = await subject.send("lock:1")
    expect(subject.located).toEqual([{ id: "lock:1", trusting: true }])
    expect(message).toMatchObject({ exchange: "", routingKey: OTHER_QUEUE })
    await subject.reply(message?.properties.correlationId, RECEIPT)
    expect(answers).toEqual([RECEIPT])
  })
})

describe("a command for another worker's connection", () => {
  test("goes to that worker's queue, and the receipt is the answer", async () => {
    const subject = await new Subject().start()
    const { answers, message } = await subject.send(OTHER, { messageId: "m", ttlMs: 200 })
    const correlationId = message?.properties.correlationId
    expect(message).toMatchObject({ exchange: "", routingKey: OTHER_QUEUE })
    expect(Buffer.from(message?.body ?? []).toString()).toBe("switch on")
    expect(message?.properties).toMatchObject({
      messageId: "m",
      replyTo: REPLIES,
      expiration: "200",
      deliveryMode: 2,
      headers: {
        device_id: OTHER,
        "owsla-hops": 1,
        "owsla-expires-at": NOW_MS + 200,
      },
    })
    expect(answers).toEqual([])
    await subject.reply(correlationId, RECEIPT)
    expect(answers).toEqual([RECEIPT])
    expect(subject.counters.commandsForwarded).toBe(1)
    // Its outcome is counted where it ended.
    expect(Object.values(subject.counters.commandsSettled)).not.toContain(1)
  })

  test.each([...OUTCOMES])("answers %s when its receipt does", async (outcome) => {
    const subject = await new Subject().start()
    const { answers, message } = await subject.send(OTHER)
    await subject.reply(message?.properties.correlationId, { ...RECEIPT, outcome })
    expect(answers).toEqual([{ ...RECEIPT, outcome }])
    // It was kept where it ended.
    expect(subject.kept()).toEqual([])
  })

  test("does not mix up two requests, whichever receipt comes first", async () => {
    const subject = await new Subject().start()
    const first = await subject.send(OTHER)
    const second = await subject.send(OTHER)
    await subject.reply(second.message?.properties.correlationId, { ...RECEIPT, detail: "2" })
    await subject.reply(first.message?.properties.correlationId, { ...RECEIPT, detail: "1" })
    expect(first.answers).toMatchObject([{ detail: "1" }])
    expect(second.answers).toMatchObject([{ detail: "2" }])
  })

  test("answers timeout when no receipt came, and a late one is ignored", async () => {
    const subject = await new Subject().start()
    const { answers, message } = await subject.send(OTHER)
    jest.advanceTimersByTime(TIMEOUT_MS - 1)
    await settled()
    expect(answers).toEqual([])
    jest.advanceTimersByTime(1)
    await settled()
    expect(answers).toEqual([{ outcome: "timeout" }])
    await subject.reply(message?.properties.correlationId, RECEIPT)
    expect(answers.length).toBe(1)
    // The next one has another number, so the late receipt cannot answer it either.
    const next = await subject.send(OTHER)
    await subject.reply(message?.properties.correlationId, RECEIPT)
    expect(next.answers).toEqual([])
  })

  test("ignores a second receipt", async () => {
    const subject = await new Subject().start()
    const { answers, message } = await subject.send(OTHER)
    const correlationId = message?.properties.correlationId
    await subject.reply(correlationId, RECEIPT)
    await subject.reply(correlationId, { ...RECEIPT, outcome: "offline" })
    await subject.timeOut()
    expect(answers).toEqual([RECEIPT])
  })

  const GARBAGE: [string, string][] = [
    ["nothing", ""],
    ["no JSON", "not JSON"],
    ["half of it", '{"outcome":"wri'],
    ["null", "null"],
    ["a number", "42"],
    ["a string", '"written"'],
    ["a list", "[]"],
    ["an empty object", "{}"],
    ["no outcome of ours", '{"outcome":"splendid"}'],
    ["an outcome that is no string", '{"outcome":{"written":true}}'],
    ["an outcome of the sender itself", '{"outcome":"busy"}'],
  ]

  test.each(GARBAGE)("is not answered by a receipt that is %s", async (_, body) => {
    const subject = await new Subject().start()
    const { answers, message } = await subject.send(OTHER)
    await subject.reply(message?.properties.correlationId, body)
    expect(answers).toEqual([])
    await subject.timeOut()
    expect(answers).toEqual([{ outcome: "timeout" }])
  })

  test("is not answered by a receipt for nobody", async () => {
    const subject = await new Subject().start()
    const { answers } = await subject.send(OTHER)
    for (const id of [undefined, "", "none", "__proto__"]) {
      await subject.reply(id, RECEIPT)
    }
    expect(answers).toEqual([])
  })

  test("answers offline and is kept when that worker has no queue", async () => {
    const subject = await new Subject().start()
    const { answers } = await subject.send(GONE)
    expect(answers).toMatchObject([{ outcome: "offline" }])
    expect(subject.kept()).toEqual(["offline"])
    expect(subject.undelivered[0]?.properties.headers?.["device_id"]).toBe(GONE)
    expect(subject.counters.commandsSettled.offline).toBe(1)
    await subject.timeOut()
    expect(answers.length).toBe(1)
  })

  test("answers invalid and is kept when it cannot be encoded", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("unencodable")
    const { answers } = await subject.send(OTHER)
    expect(answers).toMatchObject([{ outcome: "invalid" }])
    expect(subject.kept()).toEqual(["invalid"])
  })

  test("is unreachable while the broker is away, and goes nowhere later", async () => {
    const subject = new Subject()
    const { answers } = await subject.send(OTHER)
    expect(answers).toEqual([{ outcome: "unreachable" }])
    await subject.start()
    expect(subject.broker.published).toEqual([])
    expect(subject.counters.commandsReceived).toBe(0)
  })

  test("whose forward is lost on the way is sent again, and ends where it arrives though it has expired", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("cut")
    await subject.send(OTHER, { ttlMs: 60 })
    subject.nowMs += 61
    jest.advanceTimersByTime(1_000)
    await settled()
    const ids = subject.broker.published.map(
      ({ properties }) => properties.headers?.[COMMAND_ID_HEADER],
    )
    expect(ids.length).toBe(2)
    expect(ids[0]).toBe(ids[1])
    expect(subject.kept()).toEqual([])
    expect(subject.counters.commandsSettled.expired).toBe(0)
  })

  test("whose forward is lost on the way is sent again", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("cut")
    const { answers } = await subject.send(OTHER)
    jest.advanceTimersByTime(1_000)
    await settled()
    const forwards = subject.broker.published.map(({ properties }) => properties.correlationId)
    expect(forwards.length).toBe(2)
    expect(forwards[0]).toBe(forwards[1])
    await subject.reply(forwards[0], RECEIPT)
    expect(answers).toEqual([RECEIPT])
  })
})

describe("too many requests that wait", () => {
  test("are busy, and make room when they are answered", async () => {
    const subject = await new Subject().start()
    const request = {
      id: OWN,
      body: Buffer.from("x"),
      ttlMs: null,
      messageId: null,
      options: NO_OPTIONS,
    }
    const waiting = Array.from({ length: MAX_PENDING }, () => subject.sender.send(request))
    const { answers } = await subject.send(OWN)
    expect(answers).toEqual([{ outcome: "busy" }])
    expect(subject.connection.offered.length).toBe(MAX_PENDING)
    subject.connection.settle("written")
    expect(await waiting[0]).toMatchObject({ outcome: "written" })
    const next = await subject.send(OWN)
    expect(next.answers).toEqual([])
    await subject.timeOut()
    expect(next.answers).toEqual([{ outcome: "timeout" }])
    expect((await Promise.all(waiting)).filter(({ outcome }) => outcome === "timeout").length).toBe(
      MAX_PENDING - 1,
    )
  })
})

describe("a command whose caller has gone", () => {
  const elsewhere = async () => {
    const subject = await new Subject().start()
    subject.place = { kind: "worker", worker: "gw.1" }
    subject.searching = []
    return { subject, caller: new AbortController() }
  }
  const forwards = (subject: Subject) =>
    subject.broker.published.filter(({ routingKey }) => routingKey === OTHER_QUEUE)
  const kept = (subject: Subject) =>
    subject.undelivered.map(({ properties }) => properties.headers?.["owsla-outcome"])

  test("by a time-out is not sent where its device is found later, and is kept", async () => {
    const { subject } = await elsewhere()
    const { answers } = await subject.send("lock:1")
    jest.advanceTimersByTime(TIMEOUT_MS)
    await settled()
    expect(answers).toEqual([{ outcome: "timeout" }])
    for (const found of subject.searching ?? []) found()
    await settled()
    expect(forwards(subject)).toEqual([])
    expect(kept(subject)).toEqual(["expired"])
    expect(subject.sender.pendingCount).toBe(0)
  })

  test("by hanging up is answered at once and not sent, even to a device that has come here", async () => {
    const { subject, caller } = await elsewhere()
    const { answers } = await subject.send("lock:1", {}, caller.signal)
    caller.abort()
    await settled()
    expect(answers).toEqual([{ outcome: "timeout" }])
    for (const found of subject.searching ?? []) found()
    await settled()
    expect(forwards(subject)).toEqual([])
    expect(kept(subject)).toEqual(["expired"])
  })

  test("has expired while it waits for the device's socket here", async () => {
    const { subject, caller } = await elsewhere()
    await subject.send(OWN, {}, caller.signal)
    const [command] = subject.connection.offered
    expect(command?.expiresAtMs).toBe(NOW_MS + TIMEOUT_MS)
    caller.abort()
    expect(command?.expiresAtMs).toBe(0)
  })

  test("is not even begun when the caller had hung up before", async () => {
    const { subject } = await elsewhere()
    const { answers } = await subject.send(OWN, {}, AbortSignal.abort())
    expect(answers).toEqual([{ outcome: "timeout" }])
    expect(subject.connection.offered).toEqual([])
  })

  test("stays valid for as long as the caller said", async () => {
    const { subject, caller } = await elsewhere()
    await subject.send("lock:1", { ttlMs: 60_000 }, caller.signal)
    caller.abort()
    subject.nowMs += 59_999
    for (const found of subject.searching ?? []) found()
    await settled()
    expect(forwards(subject).length).toBe(1)
  })

  test("is not sent after that either", async () => {
    const { subject } = await elsewhere()
    await subject.send("lock:1", { ttlMs: 60_000 })
    subject.nowMs += 60_000
    for (const found of subject.searching ?? []) found()
    await settled()
    expect(forwards(subject)).toEqual([])
    expect(kept(subject)).toEqual(["expired"])
  })

  test("that was answered is no caller that has gone", async () => {
    const { subject, caller } = await elsewhere()
    const { answers } = await subject.send(OWN, {}, caller.signal)
    const [command] = subject.connection.offered
    subject.connection.settle("written")
    await settled()
    caller.abort()
    expect(answers).toMatchObject([{ outcome: "written" }])
    expect(command?.expiresAtMs).toBe(NOW_MS + TIMEOUT_MS)
  })
})
