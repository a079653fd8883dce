/** What becomes of a command: read, and routed to a connection, to another worker or nowhere. */

import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test"
import type { MessageProperties } from "../../src/broker/broker.ts"
import { workerQueue } from "../../src/broker/topology.ts"
import type { Place } from "../../src/commands/router.ts"
import { MAX_HOPS } from "../../src/commands/routing.ts"
import { RANDOM_PART } from "../support/fleet-keys.ts"
import {
  GONE,
  HERE,
  MAX_LINE_BYTES,
  NOW_MS,
  OTHER,
  OTHER_QUEUE,
  OWN,
  PREFETCH,
  REPLIES,
  SECOND_MS,
  Subject,
  settled,
  TestDelivery,
  UNDELIVERED,
} from "./consumer-subject.ts"

beforeEach(() => {
  jest.useFakeTimers()
})

afterEach(() => {
  jest.useRealTimers()
})

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
