/**
 * What becomes of a delivery: read, routed to a connection, to another worker or
 * nowhere, and what the broker gave up itself. On the embedded broker, which answers as it is told, with
 * a scripted connection and the clock held.
 */

import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test"
import fc from "fast-check"
import type {
  Delivery,
  HeaderValue,
  MessageProperties,
  OutgoingMessage,
  PublishResult,
} from "../../src/broker/broker.ts"
import { EmbeddedBroker } from "../../src/broker/embedded.ts"
import { OutboundMessages } from "../../src/broker/outbound-messages.ts"
import { WORKER_QUEUE_TTL_MS, workerQueue } from "../../src/broker/topology.ts"
import { INTERNAL_HEADERS } from "../../src/commands/command-message.ts"
import { Consumer } from "../../src/commands/consumer.ts"
import { CommandIds } from "../../src/commands/forwarding.ts"
import { Outcomes } from "../../src/commands/outcomes.ts"
import { CommandRouter, type Place } from "../../src/commands/router.ts"
import { MAX_HOPS } from "../../src/commands/routing.ts"
import { UnacknowledgedCommands } from "../../src/commands/unacknowledged-commands.ts"
import { Counters } from "../../src/counters.ts"
import type { Command } from "../../src/device/command.ts"
import type { Connection } from "../../src/device/connection.ts"
import { FLEET_KEYS, OTHER_KEYS, RANDOM_PART } from "../support/fleet-keys.ts"
import { CHEAP_RUNS, checkAsync } from "../support/property.ts"

const LONGEST_WAIT_MS = 5_000
const NOW_MS = 1_750_000_000_123
/** The time cut to whole seconds, as in a timestamp. */
const SECOND_MS = 1_750_000_000_000
const UNDELIVERED = "to_device.undelivered"
const REPLIES = "replies"
const MAX_LINE_BYTES = 100
const MAX_HELD_BYTES = 100
const PREFETCH = 4
const HERE = "gw.0"
/** Minted by this worker, by another, and by one that has no queue. */
const [OWN, OTHER, GONE] = ["gw.0.mb2k3f9zq7.1", "gw.1.mb2k3f9zq7.1", "gw.9.mb2k3f9zq7.1"]
const OTHER_QUEUE = workerQueue("gw.1")
const RECIPIENT = { connectionId: OWN, deviceId: "thermostat:7", epoch: 1_750_000_000_000 }

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
  /** "pause" and "resume" in the order in which they were asked for. */
  readonly reading: string[] = []

  override store(message: OutgoingMessage): PublishResult {
    this.published.push(message)
    return this.results.shift() ?? super.store(message)
  }

  override pauseConsuming(): void {
    this.reading.push("pause")
  }

  override resumeConsuming(): void {
    this.reading.push("resume")
  }
}

/** A connection that keeps what it is offered. */
class ScriptedConnection {
  readonly offered: Command[] = []
  /** A connection whose socket was offered bytes of all commands. */
  writing = false
  /** A connection whose commands wait for a missing number. */
  atGap = false
  gapsGivenUp = 0
  readonly endpoint = { isHeld: () => this.atGap }

  offer(command: Command): void {
    this.offered.push(command)
  }

  withdrawLost(): void {
    if (this.writing) return
    for (const command of this.offered.splice(0)) command.withdraw()
  }

  giveUpGap(): void {
    this.gapsGivenUp += 1
  }

  /** Ends the oldest command that it was offered. */
  settle(outcome: "written" | "closed"): void {
    const command = this.offered.shift()
    command?.settle(outcome, "", RECIPIENT)
  }
}

/** The message of a member, when it has headers that only members may set. */
function asMember(properties: MessageProperties): MessageProperties {
  const { headers = {} } = properties
  if (!Object.keys(headers).some((name) => name.startsWith("owsla-"))) return properties
  return { ...properties, headers: { ...headers, "owsla-member": FLEET_KEYS.commandKey } }
}

class TestDelivery implements Delivery {
  readonly queue: string
  readonly body: Buffer
  readonly properties: MessageProperties
  readonly redelivered: boolean
  lost = false
  settled = false
  acknowledged = 0

  constructor(properties: MessageProperties, body: string | Buffer = "on", redelivered = false) {
    this.queue = "to_device"
    this.properties = properties
    this.body = Buffer.from(body)
    this.redelivered = redelivered
  }

  acknowledge(): void {
    this.acknowledged += 1
  }
}

class Subject {
  readonly broker = new ScriptedBroker()
  readonly counters = new Counters()
  readonly connection = new ScriptedConnection()
  readonly unacknowledged = new UnacknowledgedCommands(this.broker, MAX_HELD_BYTES, this.counters)
  readonly outcomes: Outcomes
  readonly consumer: Consumer
  /** Workers that were heard lately. */
  readonly heard = new Set<string>()
  readonly received = new Map<string, Delivery[]>()
  readonly located: { id: string; trusting: boolean }[] = []
  readonly faults: Error[] = []
  /** The look-up of connections throws. */
  broken = false
  /** Where the fleet says that a device is; null: it says nothing yet. */
  place: Place | null = { kind: "nowhere", detail: "nobody holds it" }
  readonly #looking: ((place: Place) => void)[] = []
  readonly #ids = new Map([
    [OWN, this.connection],
    ["thermostat:7", this.connection],
  ])

  constructor() {
    const outboundMessages = new OutboundMessages(this.broker, this.counters, () => NOW_MS)
    const nowMs = () => NOW_MS
    const { counters, unacknowledged } = this
    this.outcomes = new Outcomes(outboundMessages, unacknowledged, counters, UNDELIVERED, nowMs)
    const router = new CommandRouter(outboundMessages, {
      workerId: HERE,
      nowMs,
      counters,
      find: (id) => {
        if (this.broken) throw new Error("broken")
        return this.#ids.get(id) as Connection | undefined
      },
      locate: (id, trusting, found) => {
        this.located.push({ id, trusting })
        if (this.place === null) this.#looking.push(found)
        else found(this.place)
      },
      commandIds: new CommandIds({ worker: HERE, incarnation: "mb2k3f9zq7" }, RANDOM_PART),
      commandKey: FLEET_KEYS.commandKey,
    })
    this.consumer = new Consumer(router, this.outcomes, unacknowledged, {
      workerId: HERE,
      maxLineBytes: MAX_LINE_BYTES,
      nowMs,
      counters,
      mayServe: (worker) => this.heard.has(worker),
      keys: FLEET_KEYS,
      isGatewayQueue: (queue) => queue.startsWith("owsla."),
      fault: (error) => void this.faults.push(error),
    })
  }

  async start(): Promise<this> {
    const names = [UNDELIVERED, REPLIES, OTHER_QUEUE]
    this.broker.start(
      {
        exchanges: [],
        queues: names.map((name) => ({ name, durable: true, arguments: {} })),
        subscriptions: names.map((queue) => {
          const into: Delivery[] = []
          this.received.set(queue, into)
          return { queue, prefetch: 100, deliver: (delivery: Delivery) => void into.push(delivery) }
        }),
      },
      { stateChanged: () => undefined, warning: () => undefined },
    )
    await settled()
    return this
  }

  async deliver(properties: MessageProperties, body?: string | Buffer): Promise<TestDelivery> {
    return await this.deliverFromAnybody(asMember(properties), body)
  }

  /** Its headers that only members may set are no member's. */
  async deliverFromAnybody(
    properties: MessageProperties,
    body?: string | Buffer,
  ): Promise<TestDelivery> {
    const delivery = new TestDelivery(properties, body)
    this.consumer.deliver(delivery, PREFETCH)
    await settled()
    return delivery
  }

  /** The broker delivers a message again. */
  async redeliver({ properties, body }: Delivery): Promise<TestDelivery> {
    const delivery = new TestDelivery(properties, Buffer.from(body), true)
    this.consumer.deliver(delivery, PREFETCH)
    await settled()
    return delivery
  }

  /** The connection that these came on is lost. */
  async lose(...deliveries: TestDelivery[]): Promise<void> {
    for (const delivery of deliveries) delivery.lost = true
    this.unacknowledged.lost()
    await settled()
  }

  /** The fleet says where the device is that was looked for first. */
  async found(place: Place): Promise<void> {
    this.#looking.shift()?.(place)
    await settled()
  }

  /** A device is admitted by this worker. */
  comes(deviceId: string): void {
    this.#ids.set(deviceId, this.connection)
  }

  async deliverDead(properties: MessageProperties): Promise<TestDelivery> {
    return await this.deliverDeadFromAnybody(asMember(properties))
  }

  async deliverDeadFromAnybody(properties: MessageProperties): Promise<TestDelivery> {
    const delivery = new TestDelivery(properties)
    this.consumer.deliverDeadLetter(delivery, PREFETCH)
    await settled()
    return delivery
  }

  /** Lets the longest wait between tries pass. */
  async waitOut(): Promise<void> {
    jest.advanceTimersByTime(LONGEST_WAIT_MS)
    await settled()
  }

  /** Outcome and detail of each copy in the undelivered queue. */
  kept(): (readonly [HeaderValue, HeaderValue])[] {
    const copies = this.received.get(UNDELIVERED) ?? []
    return copies.map(({ properties: { headers } }) => [
      headers?.["owsla-outcome"],
      headers?.["owsla-detail"],
    ])
  }

  /** What went to the queue of the other worker, whether it stayed there or not. */
  forwarded(): OutgoingMessage[] {
    return this.broker.published.filter(({ routingKey }) => routingKey === OTHER_QUEUE)
  }

  receipts(): { outcome: string }[] {
    const replies = this.received.get(REPLIES) ?? []
    return replies.map(({ body }) => JSON.parse(Buffer.from(body).toString()))
  }
}

/** Lets everything happen that needs no time: the embedded broker answers at the end of the turn. */
async function settled(): Promise<void> {
  for (let n = 0; n < 20; n += 1) await Promise.resolve()
}

describe("a command for a connection of this worker", () => {
  test("is offered to it with all that it says", async () => {
    const subject = await new Subject().start()
    const headers = { connection_id: OWN, to_device_seq: 7 }
    const timestamp = new Date(SECOND_MS - 1_000)
    const properties = { headers, messageId: "m", expiration: "5000", timestamp }
    const delivery = new TestDelivery(properties, "switch on", true)
    subject.consumer.deliver(delivery, PREFETCH)
    expect(subject.connection.offered[0]).toMatchObject({
      body: Buffer.from("switch on"),
      seq: 7,
      messageId: "m",
      // The last moment of the second in which it was sent.
      expiresAtMs: SECOND_MS - 1 + 5_000,
      redelivered: true,
    })
    expect(subject.connection.offered[0]?.cameBy).toBe("delivery")
    expect(delivery.acknowledged).toBe(0)
    expect(subject.counters.commandsReceived).toBe(1)
  })

  test("is found by the device's id as well", async () => {
    const subject = await new Subject().start()
    await subject.deliver({ headers: { device_id: "thermostat:7" } })
    expect(subject.connection.offered).toMatchObject([
      { seq: null, messageId: null, expiresAtMs: Number.POSITIVE_INFINITY },
    ])
  })

  test("is for that very connection when both ids are given", async () => {
    const subject = await new Subject().start()
    await subject.deliver({ headers: { connection_id: GONE, device_id: "thermostat:7" } })
    expect(subject.connection.offered).toEqual([])
    expect(subject.kept().length).toBe(1)
  })

  test("is acknowledged when the connection has settled it", async () => {
    const subject = await new Subject().start()
    const delivery = await subject.deliver({ headers: { connection_id: OWN }, replyTo: REPLIES })
    expect(subject.unacknowledged.count).toBe(1)
    subject.connection.settle("written")
    await settled()
    expect([delivery.acknowledged, subject.unacknowledged.count]).toEqual([1, 0])
    expect(subject.receipts()).toMatchObject([{ outcome: "written", connection_id: OWN }])
    expect(subject.kept()).toEqual([])
  })

  test("is kept when the connection closed on it", async () => {
    const subject = await new Subject().start()
    const delivery = await subject.deliver({ headers: { connection_id: OWN } })
    subject.connection.settle("closed")
    await settled()
    expect(delivery.acknowledged).toBe(1)
    expect(subject.kept()).toEqual([["closed", ""]])
  })
})

describe("a command that is none", () => {
  const id = { connection_id: OWN }
  const WRONG: [string, "invalid" | "too_large", MessageProperties, string][] = [
    ["has no properties at all", "invalid", {}, "on"],
    ["names no id", "invalid", { headers: { other: "x" } }, "on"],
    ["names an empty id", "invalid", { headers: { device_id: "" } }, "on"],
    ["names an id that is no string", "invalid", { headers: { connection_id: 7 } }, "on"],
    ["names an id outside the alphabet", "invalid", { headers: { device_id: "a b" } }, "on"],
    [
      "names an id that is too long",
      "invalid",
      { headers: { connection_id: "x".repeat(65) } },
      "on",
    ],
    ["names one good and one bad id", "invalid", { headers: { ...id, device_id: "#" } }, "on"],
    ["has a negative number", "invalid", { headers: { ...id, to_device_seq: -1 } }, "on"],
    ["has half a number", "invalid", { headers: { ...id, to_device_seq: 0.5 } }, "on"],
    ["has a number that is a word", "invalid", { headers: { ...id, to_device_seq: "one" } }, "on"],
    ["has a number that is true", "invalid", { headers: { ...id, to_device_seq: true } }, "on"],
    ["has an expiration that is none", "invalid", { headers: id, expiration: "soon" }, "on"],
    ["holds LF", "invalid", { headers: id }, "a\nb"],
    ["holds CR", "invalid", { headers: id }, "a\r"],
    ["is too long", "too_large", { headers: id }, "x".repeat(MAX_LINE_BYTES + 1)],
  ]

  test.each(WRONG)("as it %s, ends as %s and is kept", async (_, outcome, properties, body) => {
    const subject = await new Subject().start()
    const delivery = await subject.deliver({ ...properties, replyTo: REPLIES }, body)
    expect(subject.connection.offered).toEqual([])
    expect(subject.kept().map(([kept]) => kept)).toEqual([outcome])
    expect(subject.kept()[0]?.[1]).not.toBe("")
    expect(subject.receipts()).toMatchObject([{ outcome }])
    expect([delivery.acknowledged, subject.unacknowledged.count]).toEqual([1, 0])
    expect(subject.counters.commandsSettled[outcome]).toBe(1)
  })

  test("but only looks odd is one", async () => {
    const subject = await new Subject().start()
    await subject.deliver({ headers: { ...id, to_device_seq: "12" }, expiration: "0" }, "")
    await subject.deliver({ headers: { ...id, to_device_seq: 2n ** 53n - 1n } })
    await subject.deliver({ headers: id }, "x".repeat(MAX_LINE_BYTES))
    expect(subject.connection.offered.map(({ seq }) => seq)).toEqual([12, 2 ** 53 - 1, null])
  })
})

describe("a command for nobody", () => {
  const NOBODY: [string, MessageProperties["headers"]][] = [
    ["a device that no worker holds", { device_id: "nobody" }],
    ["a connection of this worker that has closed", { connection_id: "gw.0.mb2k3f9zq7.zz" }],
    ["a connection that no worker can have made", { connection_id: "made-up" }],
  ]

  test.each(NOBODY)("as it is for %s, ends as offline and is kept", async (_, headers = {}) => {
    const subject = await new Subject().start()
    const delivery = await subject.deliver({ headers })
    expect(subject.kept().map(([outcome]) => outcome)).toEqual(["offline"])
    expect([delivery.acknowledged, subject.unacknowledged.count]).toEqual([1, 0])
  })
})

describe("a command for another worker's connection", () => {
  test("goes to that worker's queue as it came, and is acknowledged once it is there", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("nacked")
    const properties: MessageProperties = {
      contentType: "text/plain",
      headers: { connection_id: OTHER, to_device_seq: 3, own: "x" },
      messageId: "m",
      correlationId: "c",
      replyTo: REPLIES,
      timestamp: new Date(1_750_000_000_000),
      priority: 2,
    }
    const delivery = await subject.deliver(properties, "switch on")
    expect([delivery.acknowledged, subject.unacknowledged.count]).toEqual([0, 1])
    await subject.waitOut()
    expect([delivery.acknowledged, subject.unacknowledged.count]).toEqual([1, 0])

    expect(subject.received.get(OTHER_QUEUE)?.length).toBe(1)
    const [refused, forwarded, ...others] = subject.forwarded()
    expect([refused, others]).toEqual([forwarded, []])
    expect(Buffer.from(forwarded?.body ?? []).toString()).toBe("switch on")
    const { headers = {}, ...rest } = forwarded?.properties ?? {}
    const { headers: _, ...sent } = properties
    expect(rest).toEqual({ ...sent, deliveryMode: 2 })
    const hops = { "owsla-hops": 1 }
    expect(headers).toMatchObject({ connection_id: OTHER, to_device_seq: 3, own: "x", ...hops })
    expect(subject.counters.commandsForwarded).toBe(1)
    // Its outcome and its receipt are the other worker's to tell.
    expect(Object.values(subject.counters.commandsSettled)).not.toContain(1)
    expect(subject.receipts()).toEqual([])
  })

  test("takes along when it expires, and how much of its expiration is left", async () => {
    const subject = await new Subject().start()
    const timestamp = new Date(SECOND_MS - 2_000)
    // The second of the timestamp ended at most 1,124 ms ago.
    const pastMs = NOW_MS - SECOND_MS + 1_001
    const headers = { connection_id: OTHER }
    await subject.deliver({ headers, expiration: "10000", timestamp })
    await subject.deliver({ headers, expiration: "10000" })
    const carried = { "owsla-expires-at": BigInt(NOW_MS + 3_000), "owsla-hops": 1 }
    await subject.deliver({ headers: { ...headers, ...carried }, expiration: "3000", timestamp })
    await subject.deliver({ headers, expiration: "1000", timestamp })
    const told = subject.forwarded().map(({ properties: { expiration, headers } }) => ({
      expiration,
      leftMs: Number(headers?.["owsla-expires-at"]) - NOW_MS,
      hops: Number(headers?.["owsla-hops"]),
    }))
    expect(told).toEqual([
      { expiration: String(10_000 - pastMs), leftMs: 10_000 - pastMs, hops: 1 },
      { expiration: "10000", leftMs: 10_000, hops: 1 },
      { expiration: "3000", leftMs: 3_000, hops: 2 },
      { expiration: "0", leftMs: 1_000 - pastMs, hops: 1 },
    ])
  })

  test("without an expiration has none afterwards", async () => {
    const subject = await new Subject().start()
    await subject.deliver({ headers: { connection_id: OTHER } })
    const { expiration, headers } = subject.forwarded()[0]?.properties ?? {}
    expect([expiration, headers?.["owsla-expires-at"]]).toEqual([undefined, undefined])
  })

  test("ends as offline when that worker has no queue, and its receipt says so", async () => {
    const subject = await new Subject().start()
    const headers = { connection_id: GONE }
    const delivery = await subject.deliver({ headers, replyTo: REPLIES, expiration: "5000" })
    expect(subject.kept()).toEqual([["offline", expect.stringContaining(workerQueue("gw.9"))]])
    expect(subject.receipts()).toMatchObject([{ outcome: "offline", connection_id: GONE }])
    expect([delivery.acknowledged, subject.unacknowledged.count]).toEqual([1, 0])
    const copy = subject.received.get(UNDELIVERED)?.[0]
    expect(copy?.properties.headers?.["owsla-hops"]).toBeUndefined()
  })

  test("ends as invalid and is kept when its headers are too large to be forwarded", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("unencodable", "unencodable")
    const headers = { connection_id: OTHER, huge: "x".repeat(100_000) }
    const delivery = await subject.deliver({ headers, replyTo: REPLIES })
    expect(subject.kept().map(([outcome]) => outcome)).toEqual(["invalid"])
    expect(subject.receipts()).toMatchObject([{ outcome: "invalid" }])
    expect([delivery.acknowledged, subject.unacknowledged.count]).toEqual([1, 0])
  })

  test("is forwarded a bounded number of times", async () => {
    const subject = await new Subject().start()
    const hops = (count: number) => ({ headers: { connection_id: OTHER, "owsla-hops": count } })
    await subject.deliver(hops(MAX_HOPS - 1))
    expect(subject.forwarded().length).toBe(1)
    await subject.deliver(hops(MAX_HOPS))
    expect(subject.forwarded().length).toBe(1)
    expect(subject.kept().map(([outcome]) => outcome)).toEqual(["offline"])
  })

  test("does not take along what would route it elsewhere, or who sent it", async () => {
    const subject = await new Subject().start()
    const headers = { connection_id: OTHER, CC: ["to_device"], BCC: ["to_device"] }
    await subject.deliver({ headers, userId: "back-end" })
    const forwarded = subject.forwarded()[0]?.properties
    // RabbitMQ routes by the first two, and closes the channel of whoever publishes as another.
    expect(forwarded?.headers?.["CC"]).toBeUndefined()
    expect(forwarded?.headers?.["BCC"]).toBeUndefined()
    expect(forwarded?.userId).toBeUndefined()
  })
})

describe("a command for a device by its name", () => {
  const ELSEWHERE: Place = { kind: "worker", worker: "gw.1" }
  const named = (headers: MessageProperties["headers"] = {}) => ({
    headers: { device_id: "lock:1", ...headers },
  })

  test("that is here is looked for nowhere else", async () => {
    const subject = await new Subject().start()
    await subject.deliver({ headers: { device_id: "thermostat:7" } })
    expect(subject.located).toEqual([])
    expect(subject.connection.offered.length).toBe(1)
  })

  test("that is not here is looked for, by what was announced", async () => {
    const subject = await new Subject().start()
    await subject.deliver(named())
    expect(subject.located).toEqual([{ id: "lock:1", trusting: true }])
  })

  test("goes to the worker that holds it, and is acknowledged once it is there", async () => {
    const subject = await new Subject().start()
    subject.place = ELSEWHERE
    subject.broker.results.push("nacked")
    const delivery = await subject.deliver({ ...named({ to_device_seq: 3 }), messageId: "m" })
    expect(delivery.acknowledged).toBe(0)
    await subject.waitOut()
    expect([delivery.acknowledged, subject.unacknowledged.count]).toEqual([1, 0])
    const [forwarded] = subject.received.get(OTHER_QUEUE) ?? []
    expect(forwarded?.properties).toMatchObject({
      messageId: "m",
      headers: { device_id: "lock:1", to_device_seq: 3, "owsla-hops": 1 },
    })
    expect(subject.kept()).toEqual([])
  })

  test("that is nowhere ends as offline, with what the fleet said, and is kept", async () => {
    const subject = await new Subject().start()
    subject.place = { kind: "nowhere", detail: "no answer from gw.2" }
    const delivery = await subject.deliver({ ...named(), replyTo: REPLIES })
    expect(subject.kept()).toEqual([["offline", "no answer from gw.2"]])
    expect(subject.receipts()).toMatchObject([{ outcome: "offline", device_id: "lock:1" }])
    expect([delivery.acknowledged, subject.unacknowledged.count]).toEqual([1, 0])
  })

  test("is held and in nobody's hands while the fleet is asked", async () => {
    const subject = await new Subject().start()
    subject.place = null
    const delivery = await subject.deliver(named())
    expect([delivery.acknowledged, subject.unacknowledged.count]).toEqual([0, 1])
    expect([subject.forwarded(), subject.kept()]).toEqual([[], []])
    await subject.found(ELSEWHERE)
    expect([delivery.acknowledged, subject.unacknowledged.count]).toEqual([1, 0])
    expect(subject.forwarded().length).toBe(1)
  })

  const PLACES: [string, Place][] = [
    ["nowhere", { kind: "nowhere", detail: "" }],
    ["elsewhere", ELSEWHERE],
  ]
  test.each(PLACES)("that came here meanwhile is written to here, found %s", async (_, place) => {
    const subject = await new Subject().start()
    subject.place = null
    await subject.deliver(named())
    subject.comes("lock:1")
    await subject.found(place)
    expect(subject.connection.offered.length).toBe(1)
    expect([subject.forwarded(), subject.kept()]).toEqual([[], []])
  })

  test("whose delivery was lost while the fleet was asked is left to the broker", async () => {
    const subject = await new Subject().start()
    subject.place = null
    const delivery = await subject.deliver(named())
    await subject.lose(delivery)
    await subject.found(ELSEWHERE)
    expect([subject.forwarded(), subject.kept()]).toEqual([[], []])
    expect([delivery.acknowledged, subject.unacknowledged.count]).toEqual([0, 0])
  })

  test("that was led here by an announcement is looked for without one", async () => {
    const subject = await new Subject().start()
    subject.place = ELSEWHERE
    await subject.deliver(named({ "owsla-hops": 1, "owsla-command": "gw.5.x.0" }))
    expect(subject.located).toEqual([{ id: "lock:1", trusting: false }])
    expect(subject.forwarded()[0]?.properties.headers).toMatchObject({ "owsla-hops": 2 })
  })

  test("that has been to too many workers is looked for no more", async () => {
    const subject = await new Subject().start()
    subject.place = ELSEWHERE
    await subject.deliver(named({ "owsla-hops": BigInt(MAX_HOPS), "owsla-command": "gw.5.x.0" }))
    expect([subject.located, subject.forwarded()]).toEqual([[], []])
    expect(subject.kept().map(([outcome]) => outcome)).toEqual(["offline"])
  })

  test("that a worker left in its queue is looked for without an announcement", async () => {
    const subject = await new Subject().start()
    subject.place = ELSEWHERE
    const death = [{ reason: "expired", queue: workerQueue("gw.5"), count: 1 }]
    await subject.deliverDead(named({ "x-death": death }))
    expect(subject.located).toEqual([{ id: "lock:1", trusting: false }])
    expect(subject.forwarded().length).toBe(1)
  })
})

describe("the copies of a command that was forwarded", () => {
  const COMMAND_ID = "gw.5.mb2k3f9zq7.0"
  const copy = (hops = 1) => ({
    headers: { device_id: "thermostat:7", "owsla-hops": hops, "owsla-command": COMMAND_ID },
    replyTo: REPLIES,
  })

  test("carry one id each time it is forwarded on, and another for each command", async () => {
    const subject = await new Subject().start()
    await subject.deliver({ headers: { connection_id: OTHER } })
    await subject.deliver({ headers: { connection_id: OTHER } })
    await subject.deliver({ headers: { connection_id: OTHER, "owsla-command": COMMAND_ID } })
    const ids = subject.forwarded().map(({ properties }) => properties.headers?.["owsla-command"])
    expect(ids).toEqual([
      `${HERE}.mb2k3f9zq7.${RANDOM_PART}.0`,
      `${HERE}.mb2k3f9zq7.${RANDOM_PART}.1`,
      COMMAND_ID,
    ])
  })

  test("are written once: the second is acknowledged, counted and otherwise ignored", async () => {
    const subject = await new Subject().start()
    const first = await subject.deliver(copy())
    const second = await subject.deliver(copy())
    expect(subject.connection.offered.length).toBe(1)
    expect([first.acknowledged, second.acknowledged]).toEqual([0, 1])
    expect(subject.unacknowledged.count).toBe(1)
    expect(subject.counters.commandsRedelivered).toBe(1)
  })

  test("have one outcome and one receipt, also when one comes after the end", async () => {
    const subject = await new Subject().start()
    await subject.deliver(copy())
    subject.connection.settle("closed")
    await settled()
    const late = await subject.deliver(copy())
    expect(late.acknowledged).toBe(1)
    expect(subject.kept()).toEqual([["closed", ""]])
    expect(subject.receipts().length).toBe(1)
    expect(subject.counters.commandsSettled.closed).toBe(1)
  })

  test("are ended by the delivery that can be acknowledged, when the first was lost", async () => {
    const subject = await new Subject().start()
    const first = await subject.deliver(copy())
    subject.connection.writing = true
    await subject.lose(first)
    const again = await subject.redeliver(first)
    expect(again.acknowledged).toBe(0)
    expect([subject.connection.offered.length, subject.unacknowledged.count]).toEqual([1, 1])
    subject.connection.settle("written")
    await settled()
    expect([first.acknowledged, again.acknowledged]).toEqual([0, 1])
    expect(subject.unacknowledged.count).toBe(0)
  })

  test("are none when the command comes by again behind its device", async () => {
    const subject = await new Subject().start()
    await subject.deliver(copy(1))
    await subject.deliver(copy(3))
    expect(subject.connection.offered.length).toBe(2)
  })

  test("are none of a command that was never forwarded", async () => {
    const subject = await new Subject().start()
    const fresh = { headers: { device_id: "thermostat:7" } }
    await subject.deliver(fresh)
    await subject.deliver(fresh)
    expect(subject.connection.offered.length).toBe(2)
  })

  test("begin anew when the first was lost before anything was done with it", async () => {
    const subject = await new Subject().start()
    subject.place = null
    const away = { headers: { ...copy().headers, device_id: "lock:1" } }
    const first = await subject.deliver(away)
    await subject.lose(first)
    await subject.found({ kind: "worker", worker: "gw.1" })
    await subject.redeliver(first)
    await subject.found({ kind: "worker", worker: "gw.1" })
    expect(subject.forwarded().length).toBe(1)
    expect(subject.unacknowledged.count).toBe(0)
  })
})

describe("what is held", () => {
  const held = { headers: { connection_id: OWN } }

  test("beyond its bound stops the reading, once, until half of it is left", async () => {
    const subject = await new Subject().start()
    const body = "x".repeat(MAX_HELD_BYTES / 4)
    for (let n = 0; n < 4; n += 1) await subject.deliver(held, body)
    expect(subject.broker.reading).toEqual([])
    await subject.deliver(held, body)
    await subject.deliver(held, body)
    expect(subject.broker.reading).toEqual(["pause"])
    expect(subject.unacknowledged.count).toBe(6)
    for (let n = 0; n < 3; n += 1) subject.connection.settle("written")
    await settled()
    expect(subject.broker.reading).toEqual(["pause"])
    subject.connection.settle("written")
    await settled()
    expect(subject.broker.reading).toEqual(["pause", "resume"])
    subject.connection.settle("written")
    subject.connection.settle("written")
    await settled()
    expect(subject.broker.reading).toEqual(["pause", "resume"])
    expect(subject.unacknowledged.count).toBe(0)
  })

  test("is released by a forward, a refusal and a repeated delivery too", async () => {
    const subject = await new Subject().start()
    const body = "x".repeat(60)
    await subject.deliver({ headers: { connection_id: OTHER } }, body)
    await subject.deliver({ headers: { connection_id: GONE } }, body)
    await subject.deliver({}, body)
    await subject.deliver(held, body)
    const repeated = subject.connection.offered.shift()
    repeated?.acknowledge()
    expect(subject.unacknowledged.count).toBe(0)
    await subject.deliver(held, "x".repeat(MAX_HELD_BYTES))
    expect(subject.broker.reading).toEqual([])
  })

  test("counts a dead letter as well", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("nacked")
    await subject.deliverDead({})
    expect(subject.unacknowledged.count).toBe(1)
    await subject.waitOut()
    expect(subject.unacknowledged.count).toBe(0)
  })
})

describe("a command whose delivery is lost", () => {
  const asked = { headers: { connection_id: OWN }, replyTo: REPLIES }

  test("before a byte was offered is dropped, and written when it is delivered again", async () => {
    const subject = await new Subject().start()
    const first = await subject.deliver(asked)
    await subject.lose(first)
    expect([subject.connection.offered.length, subject.unacknowledged.count]).toEqual([0, 0])
    expect(subject.counters.commandsDropped).toBe(1)
    const again = await subject.redeliver(first)
    subject.connection.settle("written")
    await settled()
    expect([first.acknowledged, again.acknowledged]).toEqual([0, 1])
    expect(subject.receipts()).toMatchObject([{ outcome: "written" }])
    // This worker knows that it did not write the command before.
    expect(subject.counters.commandsPossiblyRepeated).toBe(0)
  })

  test("after its bytes were offered is written once, though it has no id, and told once", async () => {
    const subject = await new Subject().start()
    const first = await subject.deliver(asked)
    subject.connection.writing = true
    await subject.lose(first)
    subject.connection.settle("written")
    await settled()
    const again = await subject.redeliver(first)
    expect([subject.connection.offered.length, again.acknowledged]).toEqual([0, 1])
    expect(subject.receipts().length).toBe(1)
    expect([subject.unacknowledged.count, subject.counters.commandsSettled.written]).toEqual([0, 1])
  })

  test("is one of several that are alike: as many are written as there are", async () => {
    const subject = await new Subject().start()
    const [offered, waiting] = [await subject.deliver(asked), await subject.deliver(asked)]
    subject.connection.writing = true
    const [command] = subject.connection.offered.splice(1)
    await subject.lose(offered, waiting)
    command?.withdraw()
    const again = [await subject.redeliver(offered), await subject.redeliver(waiting)]
    expect(subject.connection.offered.length).toBe(2)
    subject.connection.settle("written")
    subject.connection.settle("written")
    await settled()
    expect(again.map(({ acknowledged }) => acknowledged)).toEqual([1, 1])
    expect(subject.receipts().length).toBe(2)
  })

  test("while its acknowledgement may be lost too is acknowledged again, and not written", async () => {
    const subject = await new Subject().start()
    const known = { ...asked, correlationId: "1" }
    const [processed, unsure] = [
      await subject.deliver(known, "a"),
      await subject.deliver(known, "b"),
    ]
    subject.connection.settle("written")
    subject.connection.settle("written")
    await settled()
    processed.settled = true
    await subject.lose(processed, unsure)
    const again = await subject.redeliver(unsure)
    expect([again.acknowledged, subject.connection.offered.length]).toEqual([1, 0])
    expect(subject.counters.commandsPossiblyRepeated).toBe(0)
    // The broker has processed the other acknowledgement: this is another command with the same text.
    await subject.redeliver(processed)
    expect(subject.connection.offered.length).toBe(1)
    expect(subject.counters.commandsPossiblyRepeated).toBe(1)
  })

  test("while its acknowledgement may be lost, and like others of its text, is written rather than left out", async () => {
    const subject = await new Subject().start()
    const written = await subject.deliver(asked)
    subject.connection.settle("written")
    await settled()
    await subject.lose(written)
    // It may be another one that was still on its way.
    const again = await subject.redeliver(written)
    expect([again.acknowledged, subject.connection.offered.length]).toEqual([0, 1])
    expect(subject.counters.commandsPossiblyRepeated).toBe(1)
  })

  test.each(["expired", "delivery_limit"])(
    "and that the broker gives up as %s, after its bytes were offered, has one outcome",
    async (reason) => {
      const subject = await new Subject().start()
      const first = await subject.deliver({ ...asked, expiration: "60000" })
      subject.connection.writing = true
      await subject.lose(first)
      const death = [{ reason, queue: "to_device", count: 1, "original-expiration": "60000" }]
      const { expiration: _, ...properties } = first.properties
      const headers = { ...properties.headers, "x-death": death, "x-first-death-reason": reason }
      const dead = await subject.deliverDead({ ...properties, headers })
      expect([dead.acknowledged, subject.kept()]).toEqual([0, []])
      subject.connection.settle("written")
      await settled()
      expect([dead.acknowledged, subject.kept(), subject.receipts().length]).toEqual([1, [], 1])
    },
  )

  test("twice, and comes each time by another worker that found it left in the queue, is written once", async () => {
    const subject = await new Subject().start()
    const comes = (hops: number, left: object) => {
      const headers = { ...asked.headers, "owsla-command": "gw.1.x.0", "owsla-hops": hops, ...left }
      return subject.deliver({ ...asked, headers })
    }
    const first = await comes(1, {})
    subject.connection.writing = true
    await subject.lose(first)
    const second = await comes(2, { "owsla-left": 1 })
    await subject.lose(second)
    const third = await comes(3, { "owsla-left": 2 })
    subject.connection.settle("written")
    await settled()
    expect([first.acknowledged, second.acknowledged, third.acknowledged]).toEqual([0, 0, 1])
    expect([subject.connection.offered.length, subject.receipts().length]).toEqual([0, 1])
  })

  test("before anything of its outcome was published has none: the next delivery decides", async () => {
    const subject = await new Subject().start()
    // The broker takes nothing while the copy of another is tried again.
    subject.broker.results.push("nacked")
    const other = await subject.deliver({})
    const first = await subject.deliver(asked)
    subject.connection.settle("closed")
    await subject.lose(first)
    await subject.waitOut()
    expect(subject.kept().map(([outcome]) => outcome)).toEqual(["invalid"])
    expect([other.acknowledged, subject.receipts(), subject.unacknowledged.count]).toEqual([
      1,
      [],
      0,
    ])
    expect(subject.counters.commandsSettled.closed).toBe(0)
    await subject.redeliver(first)
    subject.connection.settle("written")
    await settled()
    expect(subject.receipts()).toMatchObject([{ outcome: "written" }])
  })

  test("and that is delivered again before its outcome is published keeps that outcome", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("nacked")
    await subject.deliver({})
    const first = await subject.deliver(asked)
    subject.connection.settle("closed")
    await subject.lose(first)
    const again = await subject.redeliver(first)
    await subject.waitOut()
    expect(subject.kept().map(([outcome]) => outcome)).toEqual(["invalid", "closed"])
    expect([again.acknowledged, subject.unacknowledged.count]).toEqual([1, 0])
    expect(subject.counters.commandsSettled.closed).toBe(1)
  })

  test("on its way to another worker is not sent after it was published, nor before", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("nacked")
    const published = await subject.deliver({ headers: { connection_id: OTHER } }, "a")
    const waiting = await subject.deliver({ headers: { connection_id: OTHER } }, "b")
    await subject.lose(published, waiting)
    const again = await subject.redeliver(published)
    await subject.waitOut()
    const bodies = subject.forwarded().map(({ body }) => Buffer.from(body).toString())
    expect(bodies).toEqual(["a", "a"])
    expect(again.acknowledged).toBe(1)
    expect(subject.unacknowledged.count).toBe(0)
  })
})

describe("commands that all wait for missing numbers", () => {
  test("and fill the prefetch of their queue give up the oldest gap, once nothing comes any more", async () => {
    const subject = await new Subject().start()
    subject.connection.atGap = true
    const numbered = (seq: number) => ({ headers: { connection_id: OWN, to_device_seq: seq } })
    const sweep = () => {
      subject.consumer.sweep()
      return subject.connection.gapsGivenUp
    }
    for (let seq = 1; seq < PREFETCH; seq += 1) await subject.deliver(numbered(seq))
    expect([sweep(), sweep()]).toEqual([0, 0])
    await subject.deliver(numbered(PREFETCH))
    // The missing one may be on its way by another queue.
    expect([sweep(), sweep()]).toEqual([0, 1])
    await subject.deliver({ headers: { device_id: "nobody" } })
    expect([sweep(), sweep()]).toEqual([1, 2])
    expect(subject.counters.gapsGivenUpEarly).toBe(2)
    // One that waits for something else will make room.
    subject.connection.atGap = false
    expect(sweep()).toBe(2)
  })
})

describe("a dead letter", () => {
  const death = (queue: string, reason = "expired", expiration?: string) => {
    const original = expiration === undefined ? {} : { "original-expiration": expiration }
    return { "x-death": [{ reason, queue, count: 1, ...original }] }
  }
  const OWN_QUEUE = workerQueue(HERE)
  const LONG = String(WORKER_QUEUE_TTL_MS * 4)

  test("that expired before anybody took it ends as expired and is kept", async () => {
    const subject = await new Subject().start()
    const headers = { connection_id: OWN, ...death("to_device", "expired", "50") }
    const delivery = await subject.deliverDead({ headers, replyTo: REPLIES })
    expect(subject.kept()).toEqual([["expired", expect.stringContaining("to_device")]])
    expect(subject.receipts()).toMatchObject([{ outcome: "expired", connection_id: OWN }])
    expect([delivery.acknowledged, subject.unacknowledged.count]).toEqual([1, 0])
    const { deadLettersReceived, commandsReceived } = subject.counters
    expect([deadLettersReceived, commandsReceived]).toEqual([1, 0])
  })

  test("that was left in a worker's queue is routed again", async () => {
    const subject = await new Subject().start()
    await subject.deliverDead({ headers: { device_id: "thermostat:7", ...death(OWN_QUEUE) } })
    expect(subject.connection.offered.length).toBe(1)
    const elsewhere = death(workerQueue("gw.5"))
    const delivery = await subject.deliverDead({ headers: { connection_id: OTHER, ...elsewhere } })
    const [forwarded] = subject.forwarded()
    expect(forwarded?.properties.headers?.["x-death"]).toBeUndefined()
    expect(Number(forwarded?.properties.headers?.["owsla-hops"])).toBe(1)
    expect([delivery.acknowledged, subject.kept()]).toEqual([1, []])
  })

  test("that was left in the queue of the only worker that could take it ends as offline", async () => {
    const subject = await new Subject().start()
    const headers = { connection_id: OTHER, ...death(OTHER_QUEUE) }
    await subject.deliverDead({ headers, replyTo: REPLIES })
    expect(subject.forwarded()).toEqual([])
    expect(subject.kept()).toEqual([["offline", expect.stringContaining(OTHER_QUEUE)]])
    expect(subject.receipts()).toMatchObject([{ outcome: "offline", connection_id: OTHER }])
  })

  test("that was left in the queue of a worker that was heard since is sent there again", async () => {
    const subject = await new Subject().start()
    subject.heard.add("gw.1")
    const headers = { connection_id: OTHER, ...death(OTHER_QUEUE) }
    const delivery = await subject.deliverDead({ headers })
    expect(subject.forwarded().length).toBe(1)
    expect([delivery.acknowledged, subject.kept()]).toEqual([1, []])
  })

  const GIVEN_UP: [string, string][] = [
    ["expired", "expired"],
    ["delivery_limit", "closed"],
    ["maxlen", "closed"],
  ]
  test.each(GIVEN_UP)(
    "of a device elsewhere, given up as %s, ends at the worker that may have written it, as %s",
    async (reason, outcome) => {
      const subject = await new Subject().start()
      subject.place = { kind: "worker", worker: "gw.1" }
      const headers = { device_id: "lock:1", ...death("to_device", reason, "5000") }
      const delivery = await subject.deliverDead({ headers, replyTo: REPLIES })
      expect([delivery.acknowledged, subject.kept(), subject.receipts()]).toEqual([1, [], []])
      const [forwarded] = subject.forwarded()
      expect(forwarded?.properties.expiration).toBeUndefined()

      const holder = await new Subject().start()
      const { properties = {} } = forwarded ?? {}
      const arrived = await holder.deliver(properties)
      expect(holder.connection.offered).toEqual([])
      expect(holder.kept()).toEqual([
        [outcome, expect.stringContaining(reason === "expired" ? "to_device" : reason)],
      ])
      expect(holder.receipts()).toMatchObject([{ outcome }])
      expect([arrived.acknowledged, holder.unacknowledged.count]).toEqual([1, 0])
      // The worker was gone, and its queue dead-lettered the command.
      const orphan = { ...properties, headers: { ...properties.headers, ...death(OTHER_QUEUE) } }
      subject.place = { kind: "nowhere", detail: "nobody holds it" }
      await subject.deliverDead(orphan)
      expect(subject.kept().map(([kept]) => kept)).toEqual([outcome])
    },
  )

  test("that has been to too many workers ends as offline", async () => {
    const subject = await new Subject().start()
    const elsewhere = death(workerQueue("gw.5"))
    const headers = { connection_id: OTHER, "owsla-hops": MAX_HOPS, ...elsewhere }
    await subject.deliverDead({ headers })
    expect(subject.forwarded()).toEqual([])
    expect(subject.kept().map(([outcome]) => outcome)).toEqual(["offline"])
  })

  test("whose own time was over in a worker's queue ends as expired", async () => {
    const subject = await new Subject().start()
    const own = { device_id: "thermostat:7" }
    const at = (atMs: number) => ({ "owsla-expires-at": BigInt(atMs) })
    // Its expiration was shorter than a worker's queue waits.
    await subject.deliverDead({ headers: { ...own, ...death(OWN_QUEUE, "expired", "5000") } })
    // It was longer, but the time has come since.
    const late = { ...own, ...at(NOW_MS), ...death(OWN_QUEUE, "expired", LONG) }
    await subject.deliverDead({ headers: late })
    const timestamp = new Date(SECOND_MS - Number(LONG) - 1_000)
    await subject.deliverDead({
      headers: { ...own, ...death(OWN_QUEUE, "expired", LONG) },
      timestamp,
    })
    expect(subject.connection.offered).toEqual([])
    expect(subject.kept().map(([outcome]) => outcome)).toEqual(["expired", "expired", "expired"])
  })

  test("with time left is routed with what is left of it", async () => {
    const subject = await new Subject().start()
    const own = { device_id: "thermostat:7", ...death(OWN_QUEUE, "expired", LONG) }
    const timestamp = new Date(SECOND_MS - WORKER_QUEUE_TTL_MS)
    await subject.deliverDead({ headers: own, timestamp })
    await subject.deliverDead({ headers: { ...own, "owsla-expires-at": BigInt(NOW_MS + 7) } })
    expect(subject.connection.offered.map(({ expiresAtMs }) => expiresAtMs)).toEqual([
      SECOND_MS + 999 + Number(LONG) - WORKER_QUEUE_TTL_MS,
      NOW_MS + 7,
    ])
  })

  test("with an expiration and no timestamp has waited as long as the worker's queue lets it", async () => {
    const subject = await new Subject().start()
    // A back-end published it to that queue itself (reply_to), so nobody has noted when it expires.
    await subject.deliverDead({
      headers: { device_id: "thermostat:7", ...death(OWN_QUEUE, "expired", LONG) },
    })
    const left = Number(LONG) - WORKER_QUEUE_TTL_MS
    expect(subject.connection.offered[0]?.expiresAtMs).toBeLessThanOrEqual(NOW_MS + left)
  })

  test("that the broker gave up for another reason ends as closed, with that reason", async () => {
    const subject = await new Subject().start()
    const headers = { connection_id: OWN, ...death(OWN_QUEUE, "delivery_limit") }
    await subject.deliverDead({ headers })
    await subject.deliverDead({ headers: { connection_id: OWN, ...death("q", "maxlen") } })
    expect(subject.connection.offered).toEqual([])
    expect(subject.kept()).toEqual([
      ["closed", expect.stringContaining("delivery_limit")],
      ["closed", expect.stringContaining("maxlen")],
    ])
  })

  test("that does not say why is kept", async () => {
    const subject = await new Subject().start()
    for (const xDeath of [undefined, null, "x", [], ["x"], [null], {}, [[{}]]]) {
      const headers = { connection_id: OWN, "x-death": xDeath as HeaderValue }
      const delivery = await subject.deliverDead({ headers })
      expect(delivery.acknowledged).toBe(1)
    }
    expect(subject.kept().map(([outcome]) => outcome)).toEqual(Array(8).fill("closed"))
  })

  test("that is no command ends as invalid", async () => {
    const subject = await new Subject().start()
    await subject.deliverDead({ headers: death("to_device") })
    expect(subject.kept().map(([outcome]) => outcome)).toEqual(["invalid"])
  })
})

describe("a message from anybody but a member of the fleet", () => {
  const FORGED = {
    "owsla-hops": 2,
    "owsla-command": "gw.5.mb2k3f9zq7.0",
    "owsla-redelivered": true,
    "owsla-given-up": "expired 1 for no reason",
    "owsla-left": 1,
    "owsla-expires-at": 1,
    "owsla-publish-id": "7",
    "owsla-outcome": "written",
    "owsla-user-id": "admin",
    "owsla-later": {},
  }
  const WRONG_KEYS: HeaderValue[] = [
    undefined,
    "",
    "x".repeat(FLEET_KEYS.commandKey.length),
    OTHER_KEYS.commandKey,
    `${FLEET_KEYS.commandKey}x`,
    null,
    7,
    [FLEET_KEYS.commandKey],
    { toString: FLEET_KEYS.commandKey },
  ]

  test.each(WRONG_KEYS.map((key) => [key]))(
    "has no effect with its headers for members, with %p for a key",
    async (key) => {
      const subject = await new Subject().start()
      const headers = { connection_id: OWN, ...FORGED, "owsla-member": key }
      await subject.deliverFromAnybody({ headers: { ...headers } })
      await subject.deliverFromAnybody({ headers: { ...headers } })
      // Neither expired, nor given up, nor a copy of the other.
      expect(subject.connection.offered).toHaveLength(2)
      for (const { expiresAtMs, redelivered, forwarded } of subject.connection.offered) {
        expect([expiresAtMs, redelivered, forwarded]).toEqual([
          Number.POSITIVE_INFINITY,
          false,
          false,
        ])
      }
    },
  )

  test("is passed on without them, to other workers and to the undelivered queue", async () => {
    const subject = await new Subject().start()
    const own = { mine: "x" }
    await subject.deliverFromAnybody({ headers: { connection_id: OTHER, ...own, ...FORGED } })
    await subject.deliverFromAnybody({ headers: { connection_id: OWN, ...own, ...FORGED } }, "\n")
    const [forwarded] = subject.forwarded()
    expect(forwarded?.properties.headers).toEqual({
      connection_id: OTHER,
      mine: "x",
      "owsla-hops": 1,
      "owsla-command": `${HERE}.mb2k3f9zq7.${RANDOM_PART}.0`,
      "owsla-member": FLEET_KEYS.commandKey,
      "owsla-publish-id": expect.any(String),
    })
    expect(subject.received.get(UNDELIVERED)?.[0]?.properties.headers).toEqual({
      connection_id: OWN,
      mine: "x",
      "owsla-outcome": "invalid",
      "owsla-detail": expect.any(String),
      "owsla-publish-id": expect.any(String),
    })
  })

  test("says nothing of a given-up command either", async () => {
    const subject = await new Subject().start()
    await subject.deliverDeadFromAnybody({ headers: { connection_id: OWN, ...FORGED } })
    expect(subject.kept()).toEqual([["closed", "given up by the broker: no x-death header"]])
  })

  test("with a name for reply_to that closes the channel of anybody who publishes it is invalid", async () => {
    const subject = await new Subject().start()
    const headers = { connection_id: OTHER }
    await subject.deliverFromAnybody({ headers, replyTo: "amq.rabbitmq.reply-to" })
    expect(subject.kept().map(([outcome]) => outcome)).toEqual(["invalid"])
    for (const { properties } of subject.broker.published) {
      expect(properties).not.toHaveProperty("replyTo")
    }
    // The address that the broker puts in its place is a queue's name like any other.
    await subject.deliverFromAnybody({ headers, replyTo: "amq.rabbitmq.reply-to.g1x.y" })
    expect(subject.forwarded()).toHaveLength(1)
  })

  test.each(["owsla.worker.gw.1", "owsla.fleet.gw.1.x", "owsla.dead_letters"])(
    "has no receipt in the gateway's queue %s: it is invalid",
    async (replyTo) => {
      const subject = await new Subject().start()
      const headers = { connection_id: OWN }
      const delivery = await subject.deliverFromAnybody({ headers, replyTo, correlationId: "c" })
      const dead = await subject.deliverDeadFromAnybody({ headers, replyTo })
      expect([delivery.acknowledged, dead.acknowledged]).toEqual([1, 1])
      expect(subject.connection.offered).toEqual([])
      const detail = `reply_to names a queue of the gateway: ${replyTo}`
      expect(subject.kept()).toEqual([
        ["invalid", detail],
        ["invalid", detail],
      ])
      expect(subject.broker.published.map(({ routingKey }) => routingKey)).not.toContain(replyTo)
    },
  )

  test("a member forwards a command that came by HTTP with its own queue for the receipt", async () => {
    const subject = await new Subject().start()
    const headers = { connection_id: OWN, "owsla-hops": 1, "owsla-command": "id" }
    await subject.deliver({ headers, replyTo: "owsla.fleet.gw.1.x", correlationId: "c" })
    expect(subject.connection.offered).toHaveLength(1)
    subject.connection.settle("closed")
    await settled()
    // Its copy may be sent again by hand, and has nothing that nobody else may use.
    const [copy] = subject.received.get(UNDELIVERED) ?? []
    expect(copy?.properties).not.toHaveProperty("replyTo")
    expect(copy?.properties).not.toHaveProperty("correlationId")
    expect(subject.broker.published.at(-1)).toMatchObject({ routingKey: "owsla.fleet.gw.1.x" })
  })
})

describe("whatever the headers are", () => {
  const READ = ["connection_id", "device_id", "to_device_seq", "x-death"]
  const NAMES = [
    "reason",
    "queue",
    "original-expiration",
    "toString",
    "toJSON",
    "length",
    "__proto__",
  ]
  const anyValue = fc.letrec<{ value: HeaderValue }>((tie) => ({
    value: fc.oneof(
      { maxDepth: 3 },
      fc.string(),
      fc.constantFrom(OWN, OTHER, GONE, "thermostat:7", "expired", "rejected", OTHER_QUEUE, "1000"),
      fc.double(),
      fc.integer(),
      fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
      fc.boolean(),
      fc.constant(null),
      fc.date({ noInvalidDate: false }),
      fc.uint8Array({ maxLength: 8 }),
      fc.array(tie("value"), { maxLength: 3 }),
      fc.dictionary(fc.constantFrom(...NAMES), tie("value"), { maxKeys: 4 }),
    ),
  })).value
  const member = fc.constantFrom(null, FLEET_KEYS.commandKey)
  const anyHeaders = fc.dictionary(
    fc.constantFrom(...READ, ...INTERNAL_HEADERS, "owsla-publish-id", "CC", "BCC", "other"),
    anyValue,
    { maxKeys: 8 },
  )

  test("a command has one outcome and is acknowledged, and nothing of it stays in hand", async () => {
    const subject = await new Subject().start()
    await checkAsync(
      fc.asyncProperty(
        anyHeaders,
        member,
        fc.boolean(),
        fc.constantFrom(undefined, REPLIES, OTHER_QUEUE, UNDELIVERED, "nowhere"),
        async (headers, key, isDead, replyTo) => {
          const own = key === null ? headers : { ...headers, "owsla-member": key }
          const properties = { headers: own, ...(replyTo === undefined ? {} : { replyTo }) }
          const delivery = isDead
            ? await subject.deliverDeadFromAnybody(properties)
            : await subject.deliverFromAnybody(properties)
          while (subject.connection.offered.length > 0) subject.connection.settle("written")
          await settled()
          expect([delivery.acknowledged, subject.unacknowledged.count]).toEqual([1, 0])
          expect(subject.faults).toEqual([])
          for (const kept of subject.received.values()) kept.length = 0
          subject.broker.published.length = 0
        },
      ),
      CHEAP_RUNS,
    )
  })
})

describe("a command whose handling throws", () => {
  test("is kept as invalid, acknowledged and released, and the error is told", async () => {
    const subject = await new Subject().start()
    subject.broken = true
    const headers = { connection_id: OWN, to_device_seq: 7, more: "x" }
    const delivery = await subject.deliver({ headers, replyTo: REPLIES, messageId: "m" })
    expect([delivery.acknowledged, subject.unacknowledged.count]).toEqual([1, 0])
    expect(subject.faults.map(({ message }) => message)).toEqual(["broken"])
    expect(subject.kept()).toEqual([["invalid", "internal error, see the server log"]])
    expect(subject.receipts()).toMatchObject([{ outcome: "invalid", connection_id: OWN }])
  })

  test("when it was given up too", async () => {
    const subject = await new Subject().start()
    subject.broken = true
    const delivery = await subject.deliverDead({ headers: { connection_id: OWN } })
    expect([delivery.acknowledged, subject.unacknowledged.count]).toEqual([1, 0])
    expect(subject.kept().map(([outcome]) => outcome)).toEqual(["invalid"])
  })

  test("after its device was looked for", async () => {
    const subject = await new Subject().start()
    subject.place = null
    const delivery = await subject.deliver({ headers: { device_id: "lock:1" } })
    subject.broken = true
    await subject.found({ kind: "nowhere", detail: "" })
    expect([delivery.acknowledged, subject.unacknowledged.count]).toEqual([1, 0])
    expect(subject.kept().map(([outcome]) => outcome)).toEqual(["invalid"])
  })
})
