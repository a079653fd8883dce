/** Messages with any properties, large bodies, and commands that cannot be written. */

import { describe, expect, test } from "bun:test"
import type { HeaderValue, MessageProperties, PublishResult } from "../../src/broker/broker.ts"
import { OutboundMessages } from "../../src/broker/outbound-messages.ts"
import { Consumer } from "../../src/commands/consumer.ts"
import { CommandIds } from "../../src/commands/forwarding.ts"
import { Outcomes } from "../../src/commands/outcomes.ts"
import { CommandRouter } from "../../src/commands/router.ts"
import { UnacknowledgedCommands } from "../../src/commands/unacknowledged-commands.ts"
import { Counters } from "../../src/counters.ts"
import { FLEET_KEYS, RANDOM_PART } from "../support/fleet-keys.ts"
import { until } from "../support/wait.ts"
import {
  BackEnd,
  backEnd,
  closers,
  depthOf,
  LIMIT_MS,
  LOCALHOST,
  queue,
  rabbit,
  setUpBroker,
  User,
} from "./amqp-harness.ts"

setUpBroker()

describe("a message as odd as a back-end can make it", () => {
  /** One field of every type that RabbitMQ passes on: its tag, its bytes, what it means. */
  const FIELDS: [string, number[], HeaderValue][] = [
    ["t", [1], true],
    ["b", [255], -1],
    ["B", [255], 255],
    ["s", [255, 254], -2],
    ["u", [255, 254], 65_534],
    ["I", [255, 255, 255, 254], -2],
    ["i", [255, 255, 255, 254], 4_294_967_294],
    ["l", [0, 0, 1, 0, 0, 0, 0, 0], 2 ** 40],
    ["L", [0, 0, 1, 0, 0, 0, 0, 0], 2 ** 40],
    ["f", [0x3f, 0xc0, 0, 0], 1.5],
    ["d", [0x3f, 0xf8, 0, 0, 0, 0, 0, 0], 1.5],
    ["D", [2, 0, 0, 0, 150], 1.5],
    ["S", [0, 0, 0, 2, 0xc3, 0xa9], "é"],
    ["x", [0, 0, 0, 2, 0, 255], new Uint8Array([0, 255])],
    ["T", [0, 0, 0, 0, 0x60, 0, 0, 0], new Date(0x60000000 * 1000)],
    ["V", [], null],
    ["A", [0, 0, 0, 4, 0x74, 1, 0x74, 0], [true, false]],
    ["F", [0, 0, 0, 4, 1, 0x61, 0x74, 1], { a: true }],
  ]

  test.each(FIELDS)(
    "with a header of type %s is delivered once, and the connection lives",
    async (tag, bytes, meaning) => {
      // Classic: it hands out a message as it came, every time. A quorum queue writes one that it
      // hands out again with other types.
      const inbox = queue("inbox", { "x-queue-type": "classic" })
      const user = new User(rabbit.url)
      user.start([inbox], [inbox])
      await user.ready()
      const key = [1, "x".charCodeAt(0)]
      const table = new Uint8Array([...key, tag.charCodeAt(0), ...bytes])
      await backEnd.publishEncoded(inbox.name, table)
      await backEnd.publish(inbox.name, "after")
      const deliveries = await user.delivered(2)
      const value = deliveries[0]?.properties.headers?.["x"]
      expect(value instanceof Uint8Array ? new Uint8Array(value) : value).toEqual(meaning)
      expect(user.bodies()).toEqual(["", "after"])
      expect(user.states).toEqual([{ kind: "ready" }])
    },
    LIMIT_MS,
  )

  test(
    "with everything nested and 100 KB of headers is delivered once",
    async () => {
      const inbox = queue("inbox")
      const user = new User(rabbit.url)
      user.start([inbox], [inbox])
      await user.ready()
      const headers = {
        nested: { list: [1, "two", [true, { deep: null }]], bytes: new Uint8Array([1, 2]) },
        when: new Date(1_700_000_000_000),
        half: 0.5,
        huge: "x".repeat(100_000),
      }
      const wide = await BackEnd.connect(`${rabbit.url}?frameMax=131072`)
      closers.push(() => wide.close())
      await wide.publish(inbox.name, "odd", { headers })
      await wide.publish(inbox.name, "after")
      const deliveries = await user.delivered(2)
      expect(user.bodies()).toEqual(["odd", "after"])
      expect(deliveries[0]?.properties.headers?.["huge"]).toBe(headers.huge)
      expect(deliveries[0]?.properties.headers?.["half"]).toBe(0.5)
      expect(user.states).toEqual([{ kind: "ready" }])
    },
    LIMIT_MS,
  )

  test(
    "with all the headers that one frame holds is delivered, and as a dead letter too",
    async () => {
      const dead = queue("dead")
      const mortal = queue("mortal", {
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": dead.name,
      })
      const user = new User(rabbit.url)
      user.start([dead, mortal], [dead])
      await user.ready()
      const wide = await BackEnd.connect(`${rabbit.url}?frameMax=131072`)
      closers.push(() => wide.close())
      const headers = { huge: "x".repeat(130_900) }
      await wide.publish(mortal.name, "huge", { headers, expiration: "1" })
      await wide.publish(dead.name, "after")
      await until(() => user.bodies().length >= 2, { what: "both" })
      expect(user.bodies().sort()).toEqual(["after", "huge"])
      expect(user.states).toEqual([{ kind: "ready" }])
    },
    LIMIT_MS,
  )

  test(
    "with headers of bytes keeps them as they were while others come",
    async () => {
      const inbox = queue("inbox")
      const user = new User(rabbit.url)
      user.onDelivery = () => undefined
      await backEnd.declare(inbox)
      const wide = await BackEnd.connect(`${rabbit.url}?frameMax=131072`)
      closers.push(() => wide.close())
      const filled = (n: number) => new Uint8Array(20_000).fill(n)
      for (let n = 0; n < 40; n += 1) {
        await wide.publish(inbox.name, `${n}`, { headers: { bytes: filled(n) } })
      }
      // Consumed only now, so that many come in one read.
      user.start([inbox], [inbox])
      const deliveries = await user.delivered(40)
      const spoilt = deliveries.filter(({ properties }, n) => {
        return Buffer.compare(properties.headers?.["bytes"] as Uint8Array, filled(n)) !== 0
      })
      expect(spoilt.length).toBe(0)
    },
    LIMIT_MS,
  )
})

describe("a publish", () => {
  test(
    "that its queue refuses ends nacked, and what was confirmed is in the queue",
    async () => {
      const most = 5
      const full = {
        ...queue("full"),
        arguments: {
          "x-queue-type": "classic",
          "x-max-length": most,
          "x-overflow": "reject-publish",
        },
      }
      const user = new User(rabbit.url)
      user.start([full])
      await user.ready()
      const results = await Promise.all(
        Array.from({ length: 50 }, () => user.publish(full.name, "x")),
      )
      expect(new Set(results)).toEqual(new Set<PublishResult>(["confirmed", "nacked"]))
      const confirmed = results.filter((result) => result === "confirmed").length
      await depthOf(full.name, confirmed)
      expect(user.states).toEqual([{ kind: "ready" }])
    },
    LIMIT_MS,
  )

  const MANY = Array.from({ length: 900 }, (_, n) => n)
  /** Each more than RabbitMQ or a frame of the publishing connection takes. */
  const TOO_LARGE: [string, MessageProperties][] = [
    ["9 KB of headers", { headers: { huge: "x".repeat(9_000) } }],
    ["many headers", { headers: Object.fromEntries(MANY.map((n) => [`${n}`, "0"])) }],
    ["200 KB of headers", { headers: { huge: "x".repeat(200_000) } }],
    ["headers of bytes", { headers: { huge: new Uint8Array(10_000) } }],
    ["the name of a header", { headers: { ["x".repeat(256)]: "" } }],
    ["a long message_id", { messageId: "x".repeat(256) }],
    ["a long correlation_id", { correlationId: "x".repeat(256) }],
    ["a time beyond time", { timestamp: new Date(Number.NaN) }],
  ]

  test.each(TOO_LARGE)(
    "with %s ends unencodable, and the publish channel works on",
    async (_, properties) => {
      const inbox = queue("inbox")
      const user = new User(rabbit.url)
      user.start([inbox], [inbox])
      await user.ready()
      const results = [
        user.publish(inbox.name, "before"),
        user.publish(inbox.name, "impossible", properties),
        user.publish(inbox.name, "after"),
      ]
      expect(await Promise.all(results)).toEqual(["confirmed", "unencodable", "confirmed"])
      await user.delivered(2)
      expect(user.bodies()).toEqual(["before", "after"])
      expect(user.states).toEqual([{ kind: "ready" }])
    },
    LIMIT_MS,
  )

  test(
    "with a large body goes out in pieces: the next one waits for it, and both arrive whole",
    async () => {
      const inbox = queue("inbox")
      const user = new User(rabbit.url)
      user.start([inbox], [inbox])
      await user.ready()
      const large = "0123456789abcdef".repeat(1_000_000)
      const confirmed = user.publish(inbox.name, large)
      expect(user.publishChannel.state).toBe("blocked")
      const { openings } = user
      let turns = 0
      while (user.openings === openings) {
        turns += 1
        await new Promise((resolve) => setImmediate(resolve))
      }
      expect(turns).toBeGreaterThan(15)
      expect(user.publishChannel.state).toBe("open")
      expect(await user.publish(inbox.name, "after")).toBe("confirmed")
      expect(await confirmed).toBe("confirmed")
      await until(() => user.deliveries.length === 2, { what: "both" })
      const bodies = user.deliveries.map(({ body }) => Buffer.from(body).toString())
      expect(bodies.map((body) => Bun.hash(body))).toEqual([large, "after"].map((x) => Bun.hash(x)))
      expect(user.states).toEqual([{ kind: "ready" }])
    },
    LIMIT_MS,
  )

  test(
    "with a large body is cut with its connection, and the channel takes others on the next one",
    async () => {
      const inbox = queue("inbox")
      const user = new User(rabbit.url)
      user.start([inbox])
      await user.ready()
      const cut = user.publish(inbox.name, "x".repeat(16_000_000))
      expect(user.publishChannel.state).toBe("blocked")
      user.broker.reset("the test")
      expect(await cut).toBe("cut")
      await until(() => user.publishChannel.state === "open", { what: "the channel to open again" })
      expect(await user.publish(inbox.name, "after")).toBe("confirmed")
      expect(await rabbit.queueDepth(inbox.name)).toBe(1)
    },
    LIMIT_MS,
  )

  test(
    "with too many headers ends unencodable also after one with a large body",
    async () => {
      const inbox = queue("inbox")
      const user = new User(rabbit.url)
      user.start([inbox], [inbox])
      await user.ready()
      expect(await user.publish(inbox.name, "x".repeat(100_000))).toBe("confirmed")
      const headers = { huge: "x".repeat(20_000) }
      expect(await user.publish(inbox.name, "impossible", { headers })).toBe("unencodable")
      expect(await user.publish(inbox.name, "after")).toBe("confirmed")
      expect(user.states).toEqual([{ kind: "ready" }])
    },
    LIMIT_MS,
  )
})

describe("a command that cannot be written, whatever its properties,", () => {
  /** The gateway's own way from `to_device` to the undelivered queue, without a device. */
  async function gateway() {
    const [toDevice, undelivered] = [queue("to_device"), queue("undelivered")]
    const user = new User(rabbit.url)
    const counters = new Counters()
    const outboundMessages = new OutboundMessages(user.broker, counters, Date.now)
    const unacknowledged = new UnacknowledgedCommands(user.broker, 1_000_000, counters)
    const outcomes = new Outcomes(
      outboundMessages,
      unacknowledged,
      counters,
      undelivered.name,
      Date.now,
      Date.now,
    )
    const router = new CommandRouter(outboundMessages, {
      workerId: "gw.0",
      nowMs: Date.now,
      counters,
      find: () => undefined,
      locate: (_id, _trusting, found) => found({ kind: "nowhere", detail: "nobody holds it" }),
      commandIds: new CommandIds({ worker: "gw.0", incarnation: "mb2k3f9zq7" }, RANDOM_PART),
      commandKey: FLEET_KEYS.commandKey,
    })
    const consumer = new Consumer(router, outcomes, unacknowledged, {
      workerId: "gw.0",
      framing: "line",
      maxLineBytes: 65_536,
      maxReplyMs: 60_000,
      maxHoldMs: 60_000,
      keeper: { hold: () => undefined },
      keeperQueueOf: () => null,
      nowMs: Date.now,
      steadyMs: Date.now,
      counters,
      mayServe: () => false,
      keys: FLEET_KEYS,
      isGatewayQueue: () => false,
      fault: (error) => {
        throw error
      },
    })
    user.onDelivery = (delivery) => consumer.deliver(delivery, 1_000)
    user.start([toDevice, undelivered], [toDevice])
    await user.ready()
    closers.push(() => outboundMessages.stop())
    return {
      user,
      unacknowledged,
      counters,
      toDevice: toDevice.name,
      undelivered: undelivered.name,
    }
  }

  /** Waits until the one command that was published is settled, and returns its copies. */
  async function copiesOf(subject: Awaited<ReturnType<typeof gateway>>) {
    const { user, unacknowledged, undelivered } = subject
    await user.delivered(1)
    await until(() => unacknowledged.count === 0, {
      what: "the command to be acknowledged",
    })
    const copies = []
    while (copies.length < 10) {
      const copy = await backEnd.get(undelivered)
      if (copy === null) break
      copies.push(copy)
    }
    return copies
  }

  const headers = { device_id: "nobody" }

  test(
    "is kept with all its headers, nested ones included",
    async () => {
      const made = await gateway()
      const odd = {
        list: [3_000_000_000, 2 ** 40, -5, "text"],
        table: { count: 4_000_000_000, bytes: new Uint8Array([1, 2, 3]), deep: { yes: true } },
        large: 3_000_000_000,
        when: new Date(1_700_000_000_000),
        nothing: null,
      }
      // The client used here would write these wrongly too, were they numbers.
      const encoded = {
        ...odd,
        list: [3_000_000_000n, 2n ** 40n, -5n, "text"],
        table: { ...odd.table, count: 4_000_000_000n },
        large: 3_000_000_000n,
      }
      await backEnd.publish(made.toDevice, "odd", { headers: { ...headers, ...encoded } })
      const copies = await copiesOf(made)
      expect(copies.length).toBe(1)
      const kept = copies[0]?.properties.headers ?? {}
      expect(kept["owsla-outcome"]).toBe("offline")
      expect({
        list: kept["list"],
        table: kept["table"],
        large: kept["large"],
        when: kept["when"],
        nothing: kept["nothing"],
      }).toEqual(odd)
    },
    LIMIT_MS,
  )

  test(
    "is kept when another user of the broker sent it and signed it with user_id",
    async () => {
      await rabbit.ctl("add_user", "backend", "backend-password")
      await rabbit.ctl("set_permissions", "backend", ".*", ".*", ".*")
      const made = await gateway()
      const url = `amqp://backend:backend-password@${LOCALHOST}:${rabbit.port}`
      const other = await BackEnd.connect(url)
      closers.push(() => other.close())
      await other.publish(made.toDevice, "signed", { headers, userId: "backend" })
      const copies = await copiesOf(made)
      expect(copies.map((copy) => copy.bodyString())).toEqual(["signed"])
      expect(made.user.states).toEqual([{ kind: "ready" }])
    },
    LIMIT_MS,
  )

  test(
    "is kept once, and goes nowhere else, when it came with a CC header",
    async () => {
      const made = await gateway()
      const elsewhere = queue("elsewhere")
      await backEnd.declare(elsewhere)
      const copied = { ...headers, CC: [made.toDevice, elsewhere.name] }
      await backEnd.publish(made.toDevice, "copied", { headers: copied })
      const copies = await copiesOf(made)
      expect(copies.length).toBe(1)
      expect(made.counters.commandsReceived).toBe(1)
      // The one that its sender asked for.
      await depthOf(elsewhere.name, 1)
    },
    LIMIT_MS,
  )

  test(
    "is kept when its timestamp is in nanoseconds",
    async () => {
      const made = await gateway()
      // Encoded by hand, since a Date cannot hold it: the client here reads it as an invalid one.
      const timestamp = { valueOf: () => 1.7e18 * 1000 } as Date
      await backEnd.publish(made.toDevice, "in nanoseconds", { headers, timestamp })
      const copies = await copiesOf(made)
      expect(copies.map((copy) => copy.bodyString())).toEqual(["in nanoseconds"])
    },
    LIMIT_MS,
  )

  test(
    "is kept when its connection_id is larger than a frame",
    async () => {
      const made = await gateway()
      const wide = await BackEnd.connect(`${rabbit.url}?frameMax=131072`)
      closers.push(() => wide.close())
      const huge = { connection_id: "x".repeat(10_000) }
      await wide.publish(made.toDevice, "huge id", { headers: huge })
      const copies = await copiesOf(made)
      expect(copies.map((copy) => copy.bodyString())).toEqual(["huge id"])
      expect(copies[0]?.properties.headers?.["owsla-outcome"]).toBe("invalid")
    },
    LIMIT_MS,
  )

  test(
    "is kept with its ids when all its headers are larger than a frame",
    async () => {
      const made = await gateway()
      const wide = await BackEnd.connect(`${rabbit.url}?frameMax=131072`)
      closers.push(() => wide.close())
      const huge = { ...headers, to_device_seq: 7n, huge: "x".repeat(100_000) }
      await wide.publish(made.toDevice, "huge", { headers: huge, messageId: "m" })
      const [copy, ...others] = await copiesOf(made)
      expect(others).toEqual([])
      expect(copy?.bodyString()).toBe("huge")
      expect(copy?.properties.messageId).toBe("m")
      expect(copy?.properties.headers).toMatchObject({
        device_id: "nobody",
        to_device_seq: 7,
        "owsla-outcome": "offline",
      })
    },
    LIMIT_MS,
  )
})
