/**
 * The channel between workers: which messages are sent, accepted and dropped. With a publish
 * channel that the test settles, and with two workers on the embedded broker.
 */

import { describe, expect, test } from "bun:test"
import type { Delivery, PublishChannelState, PublishResult } from "../../src/broker/broker.ts"
import { EmbeddedBroker } from "../../src/broker/embedded.ts"
import { FLEET_MESSAGE_TYPE } from "../../src/broker/setup.ts"
import { EXCHANGES, FLEET_EXCHANGE, fleetQueue } from "../../src/broker/topology.ts"
import { Counters } from "../../src/counters.ts"
import { MAX_BROADCAST_IDS } from "../../src/fleet/broadcast-request.ts"
import { Channel } from "../../src/fleet/channel.ts"
import type { FleetKeys } from "../../src/fleet/fleet-keys.ts"
import { type FleetMessage, MAX_ROWS } from "../../src/fleet/messages.ts"
import { FLEET_KEYS, OTHER_KEYS } from "../support/fleet-keys.ts"
import { ScriptedBroker } from "../support/publish-channels.ts"

const SELF = { worker: "gw.0", incarnation: "mb2k3f9zq7x2" }
const OTHER = { worker: "gw.1", incarnation: "mb2k3f9zq7x3" }
const MAX_IN_FLIGHT = 1_000
const NOW_MS = 1_750_000_000_000

class Subject {
  readonly broker = new ScriptedBroker()
  readonly counters = new Counters()
  readonly channel = new Channel(this.broker, () => undefined, {
    self: SELF,
    steadyMs: () => 1_000,
    nowMs: () => NOW_MS,
    counters: this.counters,
    keys: FLEET_KEYS,
  })
  readonly publishChannel = this.broker.scripted

  /** Broadcasts. Each result is appended to the list. */
  broadcast(): PublishResult[] {
    const results: PublishResult[] = []
    this.channel.broadcast({ type: "leaving" }, (result) => results.push(result))
    return results
  }
}

/** @param keys those of the sender; null: it has none. */
function delivery(
  content: string | object,
  replyTo?: string,
  keys: FleetKeys | null = FLEET_KEYS,
): Delivery {
  const body = Buffer.from(typeof content === "string" ? content : JSON.stringify(content))
  return {
    queue: fleetQueue(SELF),
    body,
    properties: {
      ...(replyTo === undefined ? {} : { replyTo }),
      headers: keys === null ? {} : { "owsla-mac": keys.mac(body) },
    },
    redelivered: false,
    lost: false,
    settled: false,
    acknowledge: () => undefined,
  }
}

describe("a message that is sent", () => {
  test("to all goes to the exchange, with its sender", () => {
    const { channel, publishChannel, counters } = new Subject()
    channel.broadcast({ type: "alive", asks: true })
    expect(publishChannel.published).toMatchObject([
      {
        exchange: FLEET_EXCHANGE,
        routingKey: "",
        properties: {
          contentType: "application/json",
          type: FLEET_MESSAGE_TYPE,
          replyTo: fleetQueue(SELF),
        },
      },
    ])
    expect(JSON.parse(String(publishChannel.published[0]?.body))).toEqual({
      type: "alive",
      asks: true,
      from: SELF.worker,
      incarnation: SELF.incarnation,
    })
    expect(counters.fleetMessagesSent).toBe(1)
  })

  test("to one goes to the queue of that process", () => {
    const { channel, publishChannel } = new Subject()
    channel.tell(OTHER, { type: "alive", asks: false })
    expect(publishChannel.published).toMatchObject([
      { exchange: "", routingKey: fleetQueue(OTHER) },
    ])
  })

  test("is not stored by the broker", () => {
    const { channel, publishChannel } = new Subject()
    channel.broadcast({ type: "leaving" })
    expect(publishChannel.published[0]?.properties.deliveryMode).not.toBe(2)
  })

  test("has its own id, with which the broker returns it", () => {
    const subject = new Subject()
    for (let n = 0; n < 3; n += 1) subject.broadcast()
    const ids = subject.publishChannel.published.map(({ id }) => id)
    expect(new Set(ids).size).toBe(3)
    expect(subject.publishChannel.published.map(({ properties }) => properties.messageId)).toEqual(
      ids,
    )
  })

  test.each<PublishResult>(["confirmed", "returned", "nacked", "cut", "unencodable"])(
    "is told once how it ended: %s",
    (result) => {
      const subject = new Subject()
      const results = subject.broadcast()
      expect(results).toEqual([])
      subject.publishChannel.settle(result)
      expect(results).toEqual([result])
    },
  )

  test("is never sent again, with any result", () => {
    const subject = new Subject()
    subject.broadcast()
    subject.publishChannel.settle("cut")
    subject.publishChannel.state = "open"
    expect(subject.publishChannel.published.length).toBe(1)
  })
})

describe("a message that is not sent", () => {
  test.each<PublishChannelState>(["closed", "blocked"])(
    "with the publish channel %s: told as cut after the call, and counted",
    async (state) => {
      const subject = new Subject()
      subject.publishChannel.state = state
      const results = subject.broadcast()
      expect(results).toEqual([])
      await Promise.resolve()
      expect(results).toEqual(["cut"])
      expect(subject.publishChannel.published).toEqual([])
      expect(subject.counters.fleetMessagesDropped).toBe(1)
      expect(subject.counters.fleetMessagesSent).toBe(0)
    },
  )

  test("beyond a thousand unconfirmed ones is dropped and counted", async () => {
    const subject = new Subject()
    for (let n = 0; n < MAX_IN_FLIGHT; n += 1) subject.broadcast()
    expect(subject.counters.fleetMessagesDropped).toBe(0)
    const results = subject.broadcast()
    await Promise.resolve()
    expect(results).toEqual(["cut"])
    expect(subject.publishChannel.published.length).toBe(MAX_IN_FLIGHT)
    expect(subject.counters.fleetMessagesDropped).toBe(1)
  })

  test.each<PublishResult>(["confirmed", "returned", "cut"])(
    "until one of the thousand has ended: %s",
    (result) => {
      const subject = new Subject()
      for (let n = 0; n < MAX_IN_FLIGHT; n += 1) subject.broadcast()
      subject.publishChannel.settle(result)
      subject.broadcast()
      expect(subject.publishChannel.published.length).toBe(MAX_IN_FLIGHT + 1)
    },
  )

  test("does not reduce the room for later ones", async () => {
    const subject = new Subject()
    subject.publishChannel.state = "closed"
    for (let n = 0; n < MAX_IN_FLIGHT; n += 1) subject.broadcast()
    await Promise.resolve()
    subject.publishChannel.state = "open"
    for (let n = 0; n < MAX_IN_FLIGHT; n += 1) subject.broadcast()
    expect(subject.publishChannel.published.length).toBe(MAX_IN_FLIGHT)
  })
})

test("it is open as its publish channel is", () => {
  const { channel, publishChannel } = new Subject()
  expect(channel.open).toBe(true)
  for (const state of ["closed", "blocked"] as const) {
    publishChannel.state = state
    expect(channel.open).toBe(false)
  }
})

describe("a message that is received", () => {
  const alive = { type: "alive", from: "gw.1", incarnation: OTHER.incarnation, asks: true }

  test("from another worker is read", () => {
    const { channel, counters } = new Subject()
    expect(channel.read(delivery(alive, fleetQueue(OTHER)))).toEqual(alive as FleetMessage)
    expect(counters.fleetMessagesUnknown).toBe(0)
  })

  test("from the previous process of this worker is read, because that is another process", () => {
    const { channel } = new Subject()
    const before = fleetQueue({ ...SELF, incarnation: "mb2k3f9zaaaa" })
    expect(channel.read(delivery(alive, before))).not.toBeNull()
  })

  test("from this process is ignored and not counted", () => {
    const { channel, counters } = new Subject()
    expect(channel.read(delivery(alive, fleetQueue(SELF)))).toBeNull()
    expect(counters.fleetMessagesUnknown).toBe(0)
  })

  test("and cannot be parsed is counted", () => {
    const { channel, counters } = new Subject()
    expect(channel.read(delivery("\xff{", fleetQueue(OTHER)))).toBeNull()
    expect(channel.read(delivery({ ...alive, type: "adopt" }, fleetQueue(OTHER)))).toBeNull()
    expect(channel.read(delivery(""))).toBeNull()
    expect(counters.fleetMessagesUnknown).toBe(3)
  })

  test.each([
    ["without a MAC", delivery(alive, fleetQueue(OTHER), null)],
    ["with the MAC of another secret", delivery(alive, fleetQueue(OTHER), OTHER_KEYS)],
  ])("%s is dropped and counted", (_, message) => {
    const { channel, counters } = new Subject()
    expect(channel.read(message)).toBeNull()
    expect([counters.fleetMessagesUnverified, counters.fleetMessagesUnknown]).toEqual([1, 0])
  })

  test.each([[null], [7], [""], ["x"], [{}], [[]], [new Uint8Array(32)], [new Date(0)]])(
    "with %p for a MAC is dropped and counted",
    (mac) => {
      const { channel, counters } = new Subject()
      const message = delivery(alive, fleetQueue(OTHER))
      message.properties.headers = { "owsla-mac": mac }
      expect(channel.read(message)).toBeNull()
      expect(counters.fleetMessagesUnverified).toBe(1)
    },
  )

  test("and was modified is dropped", () => {
    const { channel, counters } = new Subject()
    const { properties } = delivery(alive, fleetQueue(OTHER))
    const changed = delivery({ ...alive, asks: false }, fleetQueue(OTHER))
    expect(channel.read({ ...changed, properties })).toBeNull()
    expect(counters.fleetMessagesUnverified).toBe(1)
  })

  test("and is larger than any message of a member is dropped before it is parsed", () => {
    const { channel, counters } = new Subject()
    const large = { ...alive, more: "x".repeat(3_145_728) }
    expect(channel.read(delivery(large, fleetQueue(OTHER)))).toBeNull()
    expect(counters.fleetMessagesUnverified).toBe(1)
  })

  test("with the maximum number of devices and the longest ids is read", () => {
    const { channel } = new Subject()
    const rows = Array.from({ length: MAX_ROWS }, (_, n) => String(n).padStart(128, "d"))
    const where = { type: "where", from: "gw.1", incarnation: "i", ask: 0, devices: rows }
    expect(channel.read(delivery(where, fleetQueue(OTHER)))).not.toBeNull()
  })

  test("with the longest broadcast is read", () => {
    const { channel } = new Subject()
    const ids = Array.from({ length: MAX_BROADCAST_IDS }, (_, n) => String(n).padStart(128, "d"))
    const broadcast = {
      ...{ type: "broadcast", from: "gw.1", incarnation: "i", id: crypto.randomUUID() },
      ...{ key: "k".repeat(43), again: true, to: { kind: "ids", ids } },
      ...{ line: Buffer.alloc(1_048_576).toString("base64"), supersede_key: "s".repeat(128) },
    }
    expect(channel.read(delivery(broadcast, fleetQueue(OTHER)))).toEqual(broadcast as never)
  })

  test("with invalid rows is read without them, and they are counted", () => {
    const { channel, counters } = new Subject()
    const connection = `${OTHER.worker}.${OTHER.incarnation}.1`
    const here = [
      ["lock:1", connection, NOW_MS],
      ["lock:2", connection, 2 ** 53 - 1],
    ]
    const devices = { type: "devices", from: OTHER.worker, ...OTHER, here, gone: [7] }
    expect(channel.read(delivery(devices, fleetQueue(OTHER)))).toMatchObject({
      here: [["lock:1", connection, NOW_MS]],
      gone: [],
    })
    expect(counters.fleetRowsRefused).toBe(2)
  })
})

describe("on a broker", () => {
  async function fleet() {
    const broker = new EmbeddedBroker()
    const heard: (readonly [string, FleetMessage | null])[] = []
    const channels = [SELF, OTHER].map(
      (self) =>
        new Channel(broker, () => undefined, {
          self,
          steadyMs: () => 1_000,
          nowMs: () => NOW_MS,
          counters: new Counters(),
          keys: FLEET_KEYS,
        }),
    )
    broker.start(
      {
        exchanges: EXCHANGES,
        queues: [SELF, OTHER].map((self) => ({
          name: fleetQueue(self),
          boundTo: [{ exchange: FLEET_EXCHANGE, routingKey: "" }],
          durable: true,
          arguments: {},
        })),
        subscriptions: [SELF, OTHER].map((self, at) => ({
          queue: fleetQueue(self),
          prefetch: 100,
          deliver: (message: Delivery) =>
            void heard.push([self.worker, channels[at]?.read(message) ?? null]),
        })),
      },
      { stateChanged: () => undefined, warning: () => undefined },
    )
    await settled()
    return { broker, channel: channels[0] as Channel, heard }
  }

  async function settled(): Promise<void> {
    for (let n = 0; n < 20; n += 1) await Promise.resolve()
  }

  test("a broadcast reaches all other workers and is ignored by its sender", async () => {
    const { broker, channel, heard } = await fleet()
    channel.broadcast({ type: "leaving" })
    await settled()
    const leaving: FleetMessage = { type: "leaving", from: "gw.0", incarnation: SELF.incarnation }
    expect(heard).toEqual([
      ["gw.0", null],
      ["gw.1", leaving],
    ])
    await broker.close()
  })

  test("a message to one worker reaches only that one, and is returned when the process is gone", async () => {
    const { broker, channel, heard } = await fleet()
    const results: PublishResult[] = []
    channel.tell(OTHER, { type: "leaving" }, (result) => results.push(result))
    const replaced = { ...OTHER, incarnation: "mb2k3f9zaaaa" }
    channel.tell(replaced, { type: "leaving" }, (result) => results.push(result))
    await settled()
    expect(heard.map(([worker]) => worker)).toEqual(["gw.1"])
    expect(results).toEqual(["confirmed", "returned"])
    await broker.close()
  })
})
