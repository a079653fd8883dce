/**
 * The message of a line in `from_device`. The line is kept until the broker has confirmed it. Also
 * the counters and callbacks. With the embedded broker, whose answers the test sets, and a clock
 * that the test controls.
 */

import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test"
import { FrameWriter } from "../../src/amqp/frame-writer.ts"
import type { OutgoingMessage, PublishResult } from "../../src/broker/broker.ts"
import { EmbeddedBroker } from "../../src/broker/embedded.ts"
import { MAX_TRACE_BYTES } from "../../src/commands/command-options.ts"
import { Counters } from "../../src/counters.ts"
import type { Command } from "../../src/device/command.ts"
import type { Connection } from "../../src/device/connection.ts"
import { LinePublisher, type LinesOptions } from "../../src/lines/line-publisher.ts"
import { testCommand } from "../support/commands.ts"

const LONGEST_WAIT_MS = 5_000
const READ_AT_MS = 1_750_000_000_123
const QUEUE = "from_device"

beforeEach(() => {
  acknowledged.length = 0
  jest.useFakeTimers()
})

afterEach(() => {
  jest.useRealTimers()
})

/** The embedded broker with the results of the next publishes as the test wants them. */
class ScriptedBroker extends EmbeddedBroker {
  readonly results: PublishResult[] = []
  readonly published: OutgoingMessage[] = []
  redeclared = 0

  override store(message: OutgoingMessage): PublishResult {
    // Copied in depth, since one object serves all lines.
    this.published.push(structuredClone({ ...message }))
    return this.results.shift() ?? super.store(message)
  }

  override redeclare(): void {
    this.redeclared += 1
  }

  bodies(): string[] {
    return this.published.splice(0).map(({ body }) => Buffer.from(body).toString())
  }
}

/** The acknowledgements of all connections of a test, as `<connection>:<seq>`. */
const acknowledged: string[] = []

interface Options {
  acknowledges?: boolean
  queueOf?: LinesOptions["queueOf"]
  traces?: LinesOptions["traces"]
  windowLines?: number
  windowBytes?: number
}

class Subject {
  readonly broker = new ScriptedBroker()
  readonly counters = new Counters()
  readonly confirmed = acknowledged
  readonly lines: LinePublisher
  relieved = 0
  nowMs = READ_AT_MS
  readonly #next = new Map<Connection, number>()

  constructor({
    acknowledges = true,
    windowLines = 100,
    windowBytes = 1e6,
    queueOf = () => QUEUE,
    traces = null,
  }: Options = {}) {
    this.lines = new LinePublisher(this.broker, {
      queueOf,
      replyTo: "owsla.worker.gw.0",
      windowLines,
      windowBytes,
      nowMs: () => this.nowMs,
      steadyMs: () => this.nowMs,
      counters: this.counters,
      acknowledges,
      traces,
      relieved: () => {
        this.relieved += 1
      },
    })
  }

  async start(...names: string[]): Promise<this> {
    const queues = [QUEUE, ...names].map((name) => ({ name, durable: true, arguments: {} }))
    const listener = { stateChanged: () => undefined, warning: () => undefined }
    this.broker.start({ exchanges: [], queues, subscriptions: [] }, listener)
    await settled()
    return this
  }

  /** Takes lines of one connection, numbered as its endpoint would. */
  async take(connection: Connection, ...bodies: string[]): Promise<void> {
    for (const body of bodies) {
      const seq = this.#next.get(connection) ?? 0
      this.#next.set(connection, seq + 1)
      this.lines.take(connection, seq, Buffer.from(body), null)
    }
    await settled()
  }

  /** Lets the longest wait between tries pass. */
  async waitOut(): Promise<void> {
    jest.advanceTimersByTime(LONGEST_WAIT_MS)
    await settled()
  }
}

/** Waits for the end of the tick, when the embedded broker answers. */
async function settled(): Promise<void> {
  for (let n = 0; n < 20; n += 1) await Promise.resolve()
}

function connection(
  connectionId: string,
  deviceId = connectionId,
  linesReceivedAtMs = READ_AT_MS,
): Connection {
  const recipient = { connectionId, deviceId, epoch: 1_750_000_000_000 }
  const offer = ({ body }: Command) => {
    acknowledged.push(`${connectionId}:${Buffer.from(body).toString().replace("ACK ", "")}`)
  }
  const endpoint = { recipient }
  return { id: connectionId, endpoint, offer, linesReceivedAtMs } as unknown as Connection
}

describe("the tape of a connection", () => {
  test.each([true, false])(
    "is told of each confirm while it records; with acknowledgements %p",
    async (acknowledges) => {
      const subject = await new Subject({ acknowledges }).start()
      const told: number[] = []
      const taped = Object.assign(connection("c"), {
        tape: { confirmed: (_: Connection, seq: number) => told.push(seq) },
      })
      await subject.take(taped, "before")
      subject.lines.taping = true
      await subject.take(taped, "a", "b")
      await subject.take(connection("other"), "not recorded")
      subject.lines.taping = false
      await subject.take(taped, "after")
      expect(told).toEqual([1, 2])
      const all = ["c:0", "c:1", "c:2", "other:0", "c:3"]
      expect(acknowledged).toEqual(acknowledges ? all : [])
    },
  )
})

/** AMQP 0-9-1, section 4.2.3. */
const SMALLEST_FRAME = 4_096

describe("a line that answers a command", () => {
  const trace = { traceparent: "00-4bf92f35-00f067aa-01", tracestate: "a=1" }

  test("names the command and has its trace context, and the next line has neither", async () => {
    const subject = await new Subject().start()
    const from = connection("gw.0.x.1")
    subject.lines.take(from, 0, Buffer.of(1), testCommand({ messageId: "m", trace }))
    subject.lines.take(from, 1, Buffer.of(1), testCommand({ trace: { traceparent: "x" } }))
    subject.lines.take(from, 2, Buffer.of(1), null)
    const headers = subject.broker.published.map(({ properties }) => properties.headers)
    const common = { connection_id: "gw.0.x.1", device_id: "gw.0.x.1", epoch: 1_750_000_000_000 }
    expect(headers).toEqual([
      { ...common, from_device_seq: 0, in_reply_to: "m", ...trace },
      { ...common, from_device_seq: 1, traceparent: "x" },
      { ...common, from_device_seq: 2 },
    ])
  })

  test("fits the smallest frame of AMQP, whatever it names", async () => {
    const subject = await new Subject().start()
    const longest = "x".repeat(MAX_TRACE_BYTES)
    const about = {
      messageId: "m".repeat(255),
      trace: { traceparent: longest, tracestate: longest },
    }
    const from = connection("c".repeat(128), "d".repeat(128))
    subject.lines.take(from, 0, Buffer.of(1), testCommand(about))
    const [message] = subject.broker.published
    const writer = new FrameWriter(2 * SMALLEST_FRAME)
    writer.publish(1, message as OutgoingMessage, SMALLEST_FRAME)
    expect(writer.length).toBeGreaterThan(2 * MAX_TRACE_BYTES)
  })

  test("names it also when it is published again", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("nacked")
    subject.lines.take(connection("c"), 0, Buffer.of(1), testCommand({ messageId: "m" }))
    await settled()
    await subject.waitOut()
    const ids = subject.broker.published.map(
      ({ properties }) => properties.headers?.["in_reply_to"],
    )
    expect(ids).toEqual(["m", "m"])
  })
})

describe("the time of a line", () => {
  test("is from its receipt, also when it waited for room, until its confirm", async () => {
    const subject = await new Subject().start()
    const { lineConfirm } = subject.counters
    subject.lines.take(connection("a", "a", READ_AT_MS - 3), 0, Buffer.of(1), null)
    subject.nowMs += 4
    expect(lineConfirm.sum).toBe(0)
    await settled()
    expect(lineConfirm.sum).toBeCloseTo(0.007, 5)
    expect([...lineConfirm.counts].reduce((sum, count) => sum + count)).toBe(1)
  })

  test("lasts until the confirm of its last publish", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("nacked")
    await subject.take(connection("a"), "line")
    expect(subject.counters.lineConfirm.sum).toBe(0)
    subject.nowMs += 20
    await subject.waitOut()
    expect(subject.counters.lineConfirm.sum).toBeCloseTo(0.02, 5)
  })
})

describe("a line", () => {
  test("becomes one message with exactly the fields of the contract", async () => {
    const subject = await new Subject().start()
    const body = new Uint8Array([0, 255, 32, 9])
    subject.lines.take(connection("gw.0.x.1", "thermostat:7"), 0, body, null)
    const [message, ...others] = subject.broker.published
    expect(others).toEqual([])
    expect(message).toMatchObject({ id: "gw.0.x.1:0", exchange: "", routingKey: QUEUE, body })
    expect(message?.properties).toEqual({
      headers: {
        connection_id: "gw.0.x.1",
        device_id: "thermostat:7",
        from_device_seq: 0,
        epoch: 1_750_000_000_000,
      },
      deliveryMode: 2,
      messageId: "gw.0.x.1:0",
      replyTo: "owsla.worker.gw.0",
      timestamp: new Date(READ_AT_MS),
      appId: "owsla",
    })
  })

  test("has its number, however large", async () => {
    const subject = await new Subject().start()
    for (const seq of [2 ** 31, 2 ** 53 - 1])
      subject.lines.take(connection("c"), seq, Buffer.of(1), null)
    const numbers = subject.broker.published.map(({ id, properties }) => [
      id,
      properties.messageId,
      properties.headers?.["from_device_seq"],
    ])
    expect(numbers).toEqual([
      ["c:2147483648", "c:2147483648", 2 ** 31],
      ["c:9007199254740991", "c:9007199254740991", 2 ** 53 - 1],
    ])
  })

  test("is the same message when it is published again, with the time at which it was read", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("cut", "cut")
    await subject.take(connection("c"), "a", "b")
    subject.nowMs += 60_000
    await subject.take(connection("d"), "other")
    await subject.waitOut()
    const [a, b, ...again] = subject.broker.published
    expect(again.slice(0, 2)).toEqual([a, b] as OutgoingMessage[])
    expect(again[2]?.properties.timestamp).toEqual(new Date(READ_AT_MS + 60_000))
  })

  test("keeps its own fields in the broker while others follow", async () => {
    const subject = await new Subject().start()
    const seen: unknown[] = []
    subject.broker.tap([QUEUE], (_body, properties) => seen.push(properties))
    await subject.take(connection("c"), "a")
    subject.nowMs += 5_000
    await subject.take(connection("d"), "b")
    expect(seen).toMatchObject([
      { messageId: "c:0", timestamp: new Date(READ_AT_MS), headers: { connection_id: "c" } },
      { messageId: "d:0", timestamp: new Date(READ_AT_MS + 5_000), headers: { device_id: "d" } },
    ])
  })
})

describe("lines that the broker takes", () => {
  test("are told as confirmed, in order for each connection, and counted", async () => {
    const subject = await new Subject().start()
    await subject.take(connection("c"), "0", "1", "2")
    await subject.take(connection("d"), "0")
    expect(subject.confirmed).toEqual(["c:0", "c:1", "c:2", "d:0"])
    expect(subject.counters.linesConfirmed).toBe(4)
    expect([subject.lines.count, subject.lines.bytes]).toEqual([0, 0])
    expect(subject.lines.silentSinceMs()).toBeNull()
  })
})

describe("lines that the broker does not take", () => {
  test("because it is away are kept, and published in order when it is there", async () => {
    const subject = new Subject()
    await subject.take(connection("c"), "0", "1", "2")
    expect([subject.lines.count, subject.lines.bytes]).toEqual([3, 3])
    expect(subject.lines.silentSinceMs()).toBeNull()
    expect(subject.confirmed).toEqual([])
    await subject.start()
    expect(subject.broker.bodies()).toEqual(["0", "1", "2"])
    expect(subject.confirmed).toEqual(["c:0", "c:1", "c:2"])
    expect(subject.counters.linesRepublished).toBe(0)
  })

  test("because their queue is gone have it declared again, and go again in order", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("confirmed", "returned", "confirmed")
    await subject.take(connection("c"), "0", "1", "2")
    expect(subject.confirmed).toEqual(["c:0"])
    expect([subject.broker.redeclared, subject.counters.linesReturned]).toEqual([1, 1])
    await subject.waitOut()
    expect(subject.broker.bodies()).toEqual(["0", "1", "2", "1", "2"])
    expect(subject.confirmed).toEqual(["c:0", "c:1", "c:2"])
    expect(subject.counters.linesRepublished).toBe(2)
    expect([subject.counters.linesNacked, subject.lines.count]).toEqual([0, 0])
  })

  test("because their queue is full go again, and nothing is declared", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("nacked", "nacked", "nacked")
    await subject.take(connection("c"), "0")
    await subject.waitOut()
    await subject.waitOut()
    await subject.waitOut()
    expect(subject.broker.bodies()).toEqual(["0", "0", "0", "0"])
    expect([subject.counters.linesNacked, subject.counters.linesRepublished]).toEqual([3, 3])
    expect([subject.broker.redeclared, subject.counters.linesReturned]).toEqual([0, 0])
    expect(subject.confirmed).toEqual(["c:0"])
  })

  test("make those of other connections no repeats", async () => {
    const subject = await new Subject().start()
    const [c, d] = [connection("c"), connection("d")]
    subject.broker.results.push("cut")
    const taken = [subject.take(c, "c0"), subject.take(d, "d0"), subject.take(c, "c1")]
    await Promise.all(taken)
    await subject.waitOut()
    expect(subject.broker.bodies()).toEqual(["c0", "d0", "c1", "c0", "c1"])
    expect(subject.confirmed).toEqual(["c:0", "d:0", "c:1"])
  })

  test("keep the order in their partition, and make those of another one no repeats", async () => {
    const subject = await new Subject({
      queueOf: ({ deviceId }) => `${QUEUE}.${deviceId}`,
    }).start(`${QUEUE}.0`, `${QUEUE}.1`)
    const [c, d, e] = [connection("c", "0"), connection("d", "1"), connection("e", "0")]
    subject.broker.results.push("nacked", "confirmed", "confirmed", "confirmed", "nacked")
    const taken = [subject.take(c, "c0"), subject.take(d, "d0"), subject.take(c, "c1")]
    await Promise.all([...taken, subject.take(e, "e0", "e1")])
    await subject.waitOut()
    const bodies = (queue: string) =>
      subject.broker.published
        .filter(({ routingKey }) => routingKey === queue)
        .map(({ body }) => Buffer.from(body).toString())
    expect(bodies(`${QUEUE}.0`)).toEqual(["c0", "c1", "e0", "e1", "c0", "c1", "e1"])
    expect(bodies(`${QUEUE}.1`)).toEqual(["d0"])
    expect(subject.confirmed).toEqual(["c:0", "d:0", "c:1", "e:0", "e:1"])
  })

  test("are kept when they are stopped, and no timer publishes them", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("nacked")
    await subject.take(connection("c"), "0")
    subject.lines.stop()
    await subject.waitOut()
    expect(subject.broker.bodies()).toEqual(["0"])
    expect(subject.lines.count).toBe(1)
  })
})

describe("the window", () => {
  test("is full at its number of lines and relieved once at half of it", async () => {
    const subject = new Subject({ windowLines: 4 })
    await subject.take(connection("c"), "0", "1", "2")
    expect(subject.lines.window.hasRoom).toBe(true)
    await subject.take(connection("c"), "3")
    expect(subject.lines.window.hasRoom).toBe(false)
    await subject.start()
    expect([subject.lines.window.hasRoom, subject.relieved]).toEqual([true, 1])
  })

  test("is full at its number of bytes", async () => {
    const subject = new Subject({ windowBytes: 10 })
    await subject.take(connection("c"), "x".repeat(9))
    expect(subject.lines.window.hasRoom).toBe(true)
    await subject.take(connection("d"), "x")
    expect([subject.lines.window.hasRoom, subject.lines.bytes]).toEqual([false, 10])
    await subject.start()
    expect([subject.lines.window.hasRoom, subject.relieved]).toEqual([true, 1])
  })

  test("has room for one line larger than itself", async () => {
    const subject = new Subject({ windowBytes: 10 })
    expect(subject.lines.window.hasRoom).toBe(true)
    await subject.take(connection("c"), "x".repeat(1_000))
    expect(subject.lines.window.hasRoom).toBe(false)
    await subject.start()
    expect(subject.confirmed).toEqual(["c:0"])
  })

  test("may be filled again when it is told to be relieved", async () => {
    const subject = await new Subject({ windowLines: 2 }).start()
    for (let n = 0; n < 10; n += 1) {
      expect(subject.lines.window.hasRoom).toBe(true)
      await subject.take(connection(`c${n}`), "0", "1")
    }
    expect(subject.relieved).toBe(10)
    expect(subject.confirmed.length).toBe(20)
  })
})
