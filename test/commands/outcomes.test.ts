/**
 * What is stored of a command when it is known how it ended: its copy in the undelivered queue, its
 * receipt, and its acknowledgement only after both. On the embedded broker, which answers as it is
 * told, with the clock held.
 */

import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test"
import type {
  Delivery,
  MessageProperties,
  OutgoingMessage,
  PublishResult,
} from "../../src/broker/broker.ts"
import { EmbeddedBroker } from "../../src/broker/embedded.ts"
import { OutboundMessages } from "../../src/broker/outbound-messages.ts"
import { INTERNAL_HEADERS } from "../../src/commands/command-message.ts"
import { MAX_LATE, MAX_LATE_OF_QUEUE, RETRY_FOR_MS } from "../../src/commands/late-receipts.ts"
import { Outcomes, type Receipt, readReceipt, receipt } from "../../src/commands/outcomes.ts"
import { QueuedCommand } from "../../src/commands/queued-command.ts"
import { UnacknowledgedCommands } from "../../src/commands/unacknowledged-commands.ts"
import { Counters } from "../../src/counters.ts"
import { isKept, OUTCOMES, type Outcome } from "../../src/device/command.ts"

const LONGEST_WAIT_MS = 5_000
const NOW_MS = 1_750_000_000_123
const MAX_LINE_BYTES = 100_000
const UNDELIVERED = "to_device.undelivered"
const REPLIES = "replies"
const KEPT = OUTCOMES.filter(isKept)
const RECIPIENT = { connectionId: "gw.0.x.1", deviceId: "thermostat:7", epoch: 1_750_000_000_000 }

beforeEach(() => {
  jest.useFakeTimers()
})

afterEach(() => {
  jest.useRealTimers()
})

/** The embedded broker with the results of the next publishes as the test wants them. */
class ScriptedBroker extends EmbeddedBroker {
  readonly results: PublishResult[] = []
  /** Where each publish went, whatever became of it. */
  readonly attempts: string[] = []

  override store(message: OutgoingMessage): PublishResult {
    this.attempts.push(message.routingKey)
    return this.results.shift() ?? super.store(message)
  }
}

class Subject {
  nowMs = NOW_MS
  readonly broker = new ScriptedBroker()
  readonly counters = new Counters()
  readonly outboundMessages = new OutboundMessages(this.broker, this.counters, () => NOW_MS)
  readonly unacknowledged = new UnacknowledgedCommands(this.broker, 1_000_000, this.counters)
  readonly outcomes = new Outcomes(
    this.outboundMessages,
    this.unacknowledged,
    this.counters,
    UNDELIVERED,
    () => NOW_MS,
    () => this.nowMs,
  )
  readonly undelivered: Delivery[] = []
  readonly replies: Delivery[] = []

  async start(): Promise<this> {
    const subscribe = (queue: string, into: Delivery[]) => ({
      queue,
      prefetch: 100,
      deliver: (delivery: Delivery) => void into.push(delivery),
    })
    const queues = [UNDELIVERED, REPLIES].map((name) => ({ name, durable: true, arguments: {} }))
    const subscriptions = [
      subscribe(UNDELIVERED, this.undelivered),
      subscribe(REPLIES, this.replies),
    ]
    const listener = { stateChanged: () => undefined, warning: () => undefined }
    this.broker.start({ exchanges: [], queues, subscriptions }, listener)
    await settled()
    return this
  }

  settle(delivery: Delivery, outcome: Outcome, detail: string, recipient: typeof RECIPIENT | null) {
    const command = this.take(delivery)
    this.outcomes.settle(command, outcome, detail, recipient)
  }

  take(delivery: Delivery): QueuedCommand {
    const command = new QueuedCommand(delivery, null, this.outcomes, this.nowMs)
    this.unacknowledged.add(command, null)
    return command
  }

  /** Lets the longest wait between tries pass. */
  async waitOut(): Promise<void> {
    jest.advanceTimersByTime(LONGEST_WAIT_MS)
    await settled()
  }

  /** Lets time pass until something is published again, and no longer. */
  async nextAttempt(): Promise<void> {
    const before = this.broker.attempts.length
    for (let ms = 0; ms < LONGEST_WAIT_MS; ms += 10) {
      jest.advanceTimersByTime(10)
      await settled()
      if (this.broker.attempts.length > before) return
    }
    throw new Error("nothing was published again")
  }

  /** The outcome of each command whose time was observed. */
  timed(): string[] {
    const times = Object.entries(this.counters.commandTimes)
    return times.flatMap(([outcome, { counts }]) =>
      [...counts].flatMap((count) => new Array<string>(count).fill(outcome)),
    )
  }

  receipts(): unknown[] {
    return this.replies.map(({ body }) => JSON.parse(Buffer.from(body).toString()))
  }
}

/**
 * Lets everything happen that needs no time: the embedded broker answers at the end of the turn.
 */
async function settled(): Promise<void> {
  for (let n = 0; n < 20; n += 1) await Promise.resolve()
}

class TestDelivery implements Delivery {
  readonly queue = "to_device"
  readonly body = Buffer.from("switch on")
  readonly properties: MessageProperties
  readonly redelivered = false
  readonly lost = false
  readonly settled = false
  acknowledged = 0

  constructor(properties: MessageProperties = {}) {
    this.properties = properties
  }

  acknowledge(): void {
    this.acknowledged += 1
  }
}

const HEADERS = { device_id: "thermostat:7", to_device_seq: 7 }
const ASKING: MessageProperties = { headers: HEADERS, replyTo: REPLIES, correlationId: "request 1" }

describe.each([...OUTCOMES])("a command that ends as %s", (outcome) => {
  const kept = KEPT.includes(outcome)

  test("is counted once, kept if it was not written, and acknowledged once", async () => {
    const subject = await new Subject().start()
    const delivery = new TestDelivery({ headers: HEADERS, messageId: "m" })
    subject.settle(delivery, outcome, "why", RECIPIENT)
    expect(delivery.acknowledged).toBe(kept ? 0 : 1)
    await settled()
    expect(delivery.acknowledged).toBe(1)
    expect(subject.unacknowledged.count).toBe(0)
    const settledCounts = Object.entries(subject.counters.commandsSettled)
    expect(settledCounts.filter(([, count]) => count > 0)).toEqual([[outcome, 1]])
    expect(subject.timed()).toEqual([outcome])
    expect(subject.undelivered.map(({ body }) => Buffer.from(body).toString())).toEqual(
      kept ? ["switch on"] : [],
    )
    expect(subject.broker.attempts).toEqual(kept ? [UNDELIVERED] : [])
  })

  test("has a receipt where one was asked for, as JSON with all its fields", async () => {
    const subject = await new Subject().start()
    const delivery = new TestDelivery(ASKING)
    subject.settle(delivery, outcome, "why", RECIPIENT)
    await settled()
    expect(delivery.acknowledged).toBe(1)
    expect(subject.receipts()).toEqual([
      {
        outcome,
        device_id: "thermostat:7",
        connection_id: "gw.0.x.1",
        epoch: 1_750_000_000_000,
        at: NOW_MS,
        detail: "why",
      },
    ])
    expect(subject.replies[0]?.properties).toMatchObject({
      correlationId: "request 1",
      contentType: "application/json",
      deliveryMode: 2,
      appId: "owsla",
    })
    expect(subject.counters.receiptsSent).toBe(1)
    expect(subject.broker.attempts).toEqual(kept ? [UNDELIVERED, REPLIES] : [REPLIES])
  })

  test("is not acknowledged before the broker has all that is owed for it", async () => {
    const subject = await new Subject().start()
    const delivery = new TestDelivery(ASKING)
    if (kept) subject.broker.results.push("nacked", "cut", "confirmed")
    subject.broker.results.push("cut", "cut")
    subject.settle(delivery, outcome, "why", RECIPIENT)
    await settled()
    while (subject.broker.results.length > 0) {
      expect([delivery.acknowledged, subject.unacknowledged.count]).toEqual([0, 1])
      await subject.nextAttempt()
    }
    expect(delivery.acknowledged).toBe(0)
    await subject.nextAttempt()
    expect(delivery.acknowledged).toBe(1)
    expect(subject.broker.attempts).toEqual([
      ...(kept ? Array(3).fill(UNDELIVERED) : []),
      ...Array(3).fill(REPLIES),
    ])
    expect(subject.replies.length).toBe(1)
    expect(subject.outboundMessages.count).toBe(0)
  })
})

describe("the time of a command", () => {
  test("is from its arrival until its copy is stored", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("nacked")
    subject.settle(new TestDelivery({ headers: HEADERS }), "expired", "why", RECIPIENT)
    await settled()
    subject.nowMs += 30
    await subject.waitOut()
    expect(subject.timed()).toEqual(["expired"])
    expect(subject.counters.commandTimes.expired.sum).toBeCloseTo(0.03, 5)
  })

  test("ends with its writing, however long its receipt takes", async () => {
    const subject = await new Subject().start()
    const command = subject.take(new TestDelivery({ headers: HEADERS, replyTo: REPLIES }))
    subject.nowMs += 30
    subject.outcomes.settle(command, "written", "", RECIPIENT)
    subject.nowMs += 30
    await settled()
    expect(subject.timed()).toEqual(["written"])
    expect(subject.counters.commandTimes.written.sum).toBeCloseTo(0.03, 5)
  })
})

describe("the receipt of an answered command", () => {
  async function receiptOf(line: Uint8Array) {
    const subject = await new Subject().start()
    const command = subject.take(new TestDelivery(ASKING))
    command.settle("answered", "", RECIPIENT, { line, fromDeviceSeq: 7 })
    await settled()
    return subject.receipts()[0]
  }

  test("contains the line as text", async () => {
    expect(await receiptOf(Buffer.from("\ufeffr1 é"))).toMatchObject({
      outcome: "answered",
      reply: { line: "\ufeffr1 é", encoding: "utf-8", from_device_seq: 7 },
    })
  })

  test("contains a line that is not UTF-8 in base64", async () => {
    // A part of a larger buffer, as lines are.
    const line = Buffer.from([0, 114, 255, 0]).subarray(1, 3)
    expect(await receiptOf(line)).toMatchObject({
      reply: { line: Buffer.from([114, 255]).toString("base64"), encoding: "base64" },
    })
  })

  test("is read by another worker, however long the line is", async () => {
    for (const line of [Buffer.alloc(MAX_LINE_BYTES), Buffer.alloc(MAX_LINE_BYTES, 255)]) {
      const told = await receiptOf(line)
      expect(readReceipt(Buffer.from(JSON.stringify(told)), MAX_LINE_BYTES)).toEqual(
        told as Receipt,
      )
    }
  })
})

test("a receipt has the trace context of its command, also of one that is not valid", async () => {
  const subject = await new Subject().start()
  const trace = { traceparent: "00-4bf92f35-00f067aa-01", tracestate: "a=1" }
  const headers = { ...HEADERS, ...trace, other: "x" }
  subject.settle(new TestDelivery({ ...ASKING, headers }), "invalid", "why", null)
  await settled()
  expect(subject.replies[0]?.properties.headers).toMatchObject(trace)
  expect(subject.replies[0]?.properties.headers).not.toHaveProperty("other")
  expect(subject.undelivered[0]?.properties.headers).toMatchObject(trace)
})

describe("the copy in the undelivered queue", () => {
  test("is the message as it came, with its outcome and the reason added", async () => {
    const subject = await new Subject().start()
    const properties: MessageProperties = {
      contentType: "text/plain",
      contentEncoding: "utf-8",
      headers: { ...HEADERS, large: 3_000_000_000, own: "x", yes: true, bytes: Buffer.of(1, 2) },
      priority: 3,
      correlationId: "c",
      messageId: "m",
      timestamp: new Date(1_750_000_000_000),
      type: "t",
      appId: "back-end",
    }
    const delivery = new TestDelivery(properties)
    subject.settle(delivery, "late", "to_device_seq 7", RECIPIENT)
    await settled()
    const { headers, ...others } = subject.undelivered[0]?.properties ?? {}
    const { headers: _, ...sent } = properties
    expect(others).toEqual({ ...sent, deliveryMode: 2 })
    const {
      "owsla-publish-id": postId,
      bytes,
      large,
      to_device_seq: seq,
      ...rest
    } = (headers ?? {}) as Record<string, unknown>
    expect(postId).toBeString()
    expect(Array.from(bytes as Uint8Array)).toEqual([1, 2])
    expect([Number(large), Number(seq)]).toEqual([3_000_000_000, 7])
    expect(rest).toEqual({
      device_id: "thermostat:7",
      own: "x",
      yes: true,
      "owsla-outcome": "late",
      "owsla-detail": "to_device_seq 7",
    })
  })

  test("has no expiration, which would let the broker drop it", async () => {
    const subject = await new Subject().start()
    const delivery = new TestDelivery({ headers: HEADERS, expiration: "1000" })
    subject.settle(delivery, "expired", "why", null)
    await settled()
    expect(subject.undelivered[0]?.properties.expiration).toBeUndefined()
  })

  test("has the outcome of its last journey, when it was sent again from the queue", async () => {
    const subject = await new Subject().start()
    const before = { "owsla-outcome": "offline", "owsla-detail": "before" }
    const delivery = new TestDelivery({ headers: { ...HEADERS, ...before } })
    subject.settle(delivery, "closed", "now", null)
    await settled()
    expect(subject.undelivered[0]?.properties.headers).toMatchObject({
      "owsla-outcome": "closed",
      "owsla-detail": "now",
    })
  })

  test("says nothing of its way between workers, so it can be sent again", async () => {
    const subject = await new Subject().start()
    const internal = Object.fromEntries(INTERNAL_HEADERS.map((name) => [name, 1]))
    const delivery = new TestDelivery({ headers: { ...HEADERS, ...internal } })
    subject.settle(delivery, "closed", "why", null)
    await settled()
    const { headers = {} } = subject.undelivered[0]?.properties ?? {}
    expect(Object.keys(headers).filter((name) => INTERNAL_HEADERS.includes(name))).toEqual([])
    expect(headers["device_id"]).toBe("thermostat:7")
  })

  test("does not name where it is to be routed by the broker, nor who sent it", async () => {
    const subject = await new Subject().start()
    const headers = { ...HEADERS, CC: ["to_device"], BCC: ["to_device"] }
    const delivery = new TestDelivery({ headers, userId: "back-end" })
    subject.settle(delivery, "offline", "why", null)
    await settled()
    const copy = subject.undelivered[0]?.properties
    // RabbitMQ routes by the first two, and closes the channel of whoever publishes as another.
    expect(copy?.headers?.["CC"]).toBeUndefined()
    expect(copy?.headers?.["BCC"]).toBeUndefined()
    expect(copy?.userId).toBeUndefined()
  })

  test("has its ids, its number and its outcome when all its headers are too large", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("unencodable")
    const headers = { ...HEADERS, connection_id: "gw.0.x.1", huge: "x".repeat(100_000) }
    const delivery = new TestDelivery({ headers, messageId: "m" })
    subject.settle(delivery, "offline", "why", null)
    await settled()
    expect(delivery.acknowledged).toBe(1)
    const [copy, ...others] = subject.undelivered
    expect(others).toEqual([])
    expect(copy?.properties.messageId).toBe("m")
    const { "owsla-publish-id": _, to_device_seq, ...rest } = copy?.properties.headers ?? {}
    expect(Number(to_device_seq)).toBe(7)
    expect(rest).toEqual({
      connection_id: "gw.0.x.1",
      device_id: "thermostat:7",
      "owsla-outcome": "offline",
      "owsla-detail": "why",
    })
  })

  test("is stored before the command is acknowledged, even when that is too large too", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("unencodable", "unencodable")
    const headers = { connection_id: "x".repeat(100_000) }
    const delivery = new TestDelivery({ headers, timestamp: new Date(Number.NaN) })
    subject.settle(delivery, "invalid", "connection_id does not match", null)
    await settled()
    await subject.waitOut()
    expect([delivery.acknowledged, subject.undelivered.length]).toEqual([1, 1])
    expect(Buffer.from(subject.undelivered[0]?.body ?? []).toString()).toBe("switch on")
    expect(subject.undelivered[0]?.properties.headers).toMatchObject({
      "owsla-outcome": "invalid",
      "owsla-detail": "connection_id does not match",
    })
  })
})

describe("the receipt", () => {
  test("names the ids that were asked for when there is no recipient", async () => {
    const subject = await new Subject().start()
    const headers = { connection_id: "gw.9.x.1", device_id: "thermostat:7" }
    const delivery = new TestDelivery({ ...ASKING, headers })
    subject.settle(delivery, "offline", "not connected to any worker", null)
    await settled()
    expect(subject.receipts()).toEqual([
      {
        outcome: "offline",
        device_id: "thermostat:7",
        connection_id: "gw.9.x.1",
        epoch: null,
        at: NOW_MS,
        detail: "not connected to any worker",
      },
    ])
  })

  test("names none that is no string", async () => {
    const subject = await new Subject().start()
    const headers = { connection_id: 7, device_id: { nested: true } }
    subject.settle(new TestDelivery({ ...ASKING, headers }), "invalid", "", null)
    await settled()
    expect(subject.receipts()).toMatchObject([{ device_id: null, connection_id: null }])
  })

  test("has no correlation_id when the command had none", async () => {
    const subject = await new Subject().start()
    subject.settle(new TestDelivery({ replyTo: REPLIES }), "written", "", null)
    await settled()
    expect(subject.replies[0]?.properties.correlationId).toBeUndefined()
  })

  test("that nobody takes is counted, not repeated, and holds up nothing", async () => {
    const subject = await new Subject().start()
    const delivery = new TestDelivery({ ...ASKING, replyTo: "gone" })
    subject.settle(delivery, "written", "", RECIPIENT)
    await settled()
    await subject.waitOut()
    expect(delivery.acknowledged).toBe(1)
    expect(subject.broker.attempts).toEqual(["gone"])
    const { receiptsSent, receiptsUnroutable } = subject.counters
    expect([receiptsSent, receiptsUnroutable]).toEqual([0, 1])
  })

  test("is made of whatever is known", () => {
    expect(receipt("written", "", RECIPIENT, null, 5)).toEqual({
      outcome: "written",
      device_id: "thermostat:7",
      connection_id: "gw.0.x.1",
      epoch: 1_750_000_000_000,
      at: 5,
      detail: "",
    })
    expect(receipt("offline", "why", null, null, 5)).toEqual({
      outcome: "offline",
      device_id: null,
      connection_id: null,
      epoch: null,
      at: 5,
      detail: "why",
    })
  })
})

describe("a receipt that the broker refuses", () => {
  /** Lets the worker sweep for so long. */
  async function sweep(subject: Subject, forMs: number): Promise<void> {
    for (let ms = 0; ms <= forMs; ms += 250) {
      subject.nowMs += 250
      subject.outcomes.late.sweep(subject.nowMs)
      await settled()
    }
  }

  async function refused(times: number): Promise<{ subject: Subject; delivery: TestDelivery }> {
    const subject = await new Subject().start()
    subject.broker.results.push(...Array(times).fill("nacked"))
    const delivery = new TestDelivery(ASKING)
    subject.settle(delivery, "written", "", RECIPIENT)
    await settled()
    return { subject, delivery }
  }

  test("is published again and is sent once; the command is acknowledged meanwhile", async () => {
    const { subject, delivery } = await refused(3)
    expect([delivery.acknowledged, subject.outcomes.late.count]).toEqual([1, 1])
    await sweep(subject, RETRY_FOR_MS)
    expect(subject.receipts()).toMatchObject([{ outcome: "written", at: NOW_MS }])
    expect(subject.replies[0]?.properties.correlationId).toBe("request 1")
    expect([delivery.acknowledged, subject.outcomes.late.count]).toEqual([1, 0])
    expect([subject.counters.receiptsSent, subject.counters.receiptsUnroutable]).toEqual([1, 0])
  })

  test("for as long as it is tried is given up and counted", async () => {
    const { subject } = await refused(1_000)
    await sweep(subject, RETRY_FOR_MS + 5_000)
    expect(subject.outcomes.late.count).toBe(0)
    expect([subject.counters.receiptsSent, subject.counters.receiptsUnroutable]).toEqual([0, 1])
    // The waits become longer.
    expect(subject.broker.attempts.length).toBeLessThan(15)
  })

  test("and whose queue is gone then is given up at once", async () => {
    const { subject } = await refused(1)
    subject.broker.results.push("returned")
    await sweep(subject, 1_000)
    expect([subject.outcomes.late.count, subject.counters.receiptsUnroutable]).toEqual([0, 1])
  })

  test("beyond the bound is given up", async () => {
    const { subject } = await refused(0)
    const given: boolean[] = []
    const add = (queue: string) =>
      subject.outcomes.late.add(queue, Buffer.of(), {}, (sent) => given.push(sent))
    for (let n = 0; n < MAX_LATE_OF_QUEUE; n += 1) expect(add(REPLIES)).toBe(true)
    // Those of another reply queue have room.
    expect(add(REPLIES)).toBe(false)
    for (let n = 0; n < MAX_LATE - MAX_LATE_OF_QUEUE; n += 1) expect(add("others")).toBe(true)
    expect(add("a third")).toBe(false)
    expect(given).toEqual([])
    subject.broker.results.push("nacked")
    subject.settle(new TestDelivery(ASKING), "written", "", RECIPIENT)
    await settled()
    expect([subject.outcomes.late.count, subject.counters.receiptsUnroutable]).toEqual([
      MAX_LATE,
      1,
    ])
  })
})

describe("for a connection, the outcomes", () => {
  test("settle the delivery of the command", async () => {
    const subject = await new Subject().start()
    const delivery = new TestDelivery(ASKING)
    subject.take(delivery).settle("written", "", RECIPIENT)
    await settled()
    expect([delivery.acknowledged, subject.receipts().length]).toEqual([1, 1])
  })

  test("acknowledge a repeated delivery without copy, receipt or outcome", async () => {
    const subject = await new Subject().start()
    const delivery = new TestDelivery(ASKING)
    subject.take(delivery).acknowledge()
    await settled()
    expect(delivery.acknowledged).toBe(1)
    expect(subject.unacknowledged.count).toBe(0)
    expect(subject.broker.attempts).toEqual([])
    expect(subject.counters.commandsRedelivered).toBe(1)
    expect(Object.values(subject.counters.commandsSettled)).not.toContain(1)
  })
})
