/**
 * Messages of anybody but a member of the fleet, with any headers, and commands whose handling
 * throws.
 */

import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test"
import fc from "fast-check"
import type { HeaderValue } from "../../src/broker/broker.ts"
import { INTERNAL_HEADERS } from "../../src/commands/command-message.ts"
import { FLEET_KEYS, OTHER_KEYS, RANDOM_PART } from "../support/fleet-keys.ts"
import { CHEAP_RUNS, checkAsync } from "../support/property.ts"
import {
  GONE,
  HERE,
  OTHER,
  OTHER_QUEUE,
  OWN,
  REPLIES,
  Subject,
  settled,
  UNDELIVERED,
} from "./consumer-subject.ts"

beforeEach(() => {
  jest.useFakeTimers()
})

afterEach(() => {
  jest.useRealTimers()
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
