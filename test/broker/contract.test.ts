/**
 * What `broker.ts` promises, sentence by sentence, asked of each broker: the one in memory, AMQP with a real
 * RabbitMQ and its quorum queues, and the simulated one on which the property tests of the fleet run.
 *
 * The last parts are not asked of the embedded broker. They need a second client of the same queues, have to see
 * what is left in them, or lose connections; the embedded broker's queues live and die with their one object.
 *
 * One file, however long: it is one list of promises, and every broker has to keep all of them.
 */

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test"
import { AmqpBroker } from "../../src/amqp/broker.ts"
import {
  type Broker,
  type BrokerState,
  type Delivery,
  type OutgoingMessage,
  PUBLISH_ID_HEADER,
  type PublishChannel,
  type PublishResult,
  type QueueDeclaration,
} from "../../src/broker/broker.ts"
import { EmbeddedBroker } from "../../src/broker/embedded.ts"
import { readDeath } from "../../src/commands/command-message.ts"
import { AmqpProxy } from "../support/amqp-proxy.ts"
import { type CallbackPublish, callbackListener } from "../support/publish-channels.ts"
import { sharedRabbitMq, type TestBroker, uniqueNames } from "../support/rabbitmq.ts"
import { SimulatedBroker, type SimulatedClient } from "../support/simulated-broker.ts"
import { until, within } from "../support/wait.ts"

const START_LIMIT_MS = 60_000
const LIMIT_MS = 20_000
/** Queues of a broker that outlives the run go by themselves. */
const QUEUE_EXPIRES_MS = 60_000

let rabbit: TestBroker
let name: (noun: string) => string
const users: User[] = []
const closing: Promise<void>[] = []

beforeAll(async () => {
  rabbit = await sharedRabbitMq()
}, START_LIMIT_MS)

// Begun after each test and waited for at the end, since RabbitMQ is given time for the last
// acknowledgements.
afterEach(() => {
  for (const { broker } of users.splice(0)) closing.push(broker.close())
})

afterAll(() => Promise.all(closing), START_LIMIT_MS)

/** A gateway's view of its broker, with everything it was told. */
class User {
  readonly broker: Broker
  readonly publishChannel: PublishChannel<CallbackPublish>
  readonly states: BrokerState["kind"][] = []
  readonly deliveries: Delivery[] = []
  /** The calls for lost connections, and the deliveries before each. */
  readonly losses: { queue: string; deliveries: number; lost: boolean }[] = []
  /** The publish channel's state each time it was said to be open. */
  readonly openings: string[] = []
  onDelivery: (delivery: Delivery) => void = () => undefined

  constructor(broker: Broker) {
    this.broker = broker
    this.publishChannel = broker.publishChannel(
      callbackListener(() => this.openings.push(this.publishChannel.state)),
    )
    users.push(this)
  }

  /** @param subscribed the prefetch for each queue that is consumed. */
  start(
    queues: QueueDeclaration[],
    subscribed: Record<string, number> = {},
    untilClose: readonly string[] = [],
  ): void {
    const subscriptions = Object.entries(subscribed).map(([queue, prefetch]) => ({
      queue,
      prefetch,
      untilClose: untilClose.includes(queue),
      lost: () => {
        // No delivery of the lost connection is left to be acknowledged, and the next connection has none yet.
        const came = this.from(queue)
        this.losses.push({ queue, deliveries: came.length, lost: came.every(({ lost }) => lost) })
      },
      deliver: (delivery: Delivery) => {
        this.deliveries.push(delivery)
        this.onDelivery(delivery)
      },
    }))
    this.broker.start(
      { exchanges: [], queues, subscriptions },
      { stateChanged: (state) => this.states.push(state.kind), warning: () => undefined },
    )
  }

  async ready(): Promise<this> {
    await until(() => this.broker.state.kind === "ready", { what: "the broker to be ready" })
    return this
  }

  publish(message: OutgoingMessage): Promise<PublishResult> {
    const { promise, resolve } = Promise.withResolvers<PublishResult>()
    this.publishChannel.publish(message, { id: message.id, settled: resolve })
    return within(promise, { what: `message ${message.id} to be settled` })
  }

  /** What has come from one queue so far. */
  from(queue: string): Delivery[] {
    return this.deliveries.filter((delivery) => delivery.queue === queue)
  }

  /** The first `count` deliveries of one queue. */
  async delivered(count: number, queue: string): Promise<Delivery[]> {
    await until(() => this.from(queue).length >= count, {
      what: `${count} deliveries from ${queue}`,
    })
    return this.from(queue)
  }

  /**
   * Passes one message through a queue of its own, so that whatever the broker was about to deliver
   * has come before it. For what is expected not to come.
   */
  async roundTrip(fence: string): Promise<void> {
    for (let n = 0; n < 2; n += 1) {
      const before = this.from(fence).length
      expect(await this.publish(message(fence))).toBe("confirmed")
      for (const delivery of await this.delivered(before + 1, fence)) delivery.acknowledge()
    }
  }
}

let lastId = 0

/** A message to a queue. Its id is its `message_id` unless it has properties of its own. */
function message(queue: string, overrides: Partial<OutgoingMessage> = {}): OutgoingMessage {
  lastId += 1
  const id = overrides.id ?? `m${lastId}`
  const body = new Uint8Array(0)
  return { id, exchange: "", routingKey: queue, body, properties: { messageId: id }, ...overrides }
}

function text(content: string): Uint8Array {
  return new TextEncoder().encode(content)
}

function contents(deliveries: readonly Delivery[]): string[] {
  return deliveries.map(({ body }) => new TextDecoder().decode(body))
}

function queue(noun: string, args: Record<string, string | number> = {}): QueueDeclaration {
  return {
    name: name(noun),
    durable: true,
    arguments: { "x-queue-type": "quorum", "x-expires": QUEUE_EXPIRES_MS, ...args },
  }
}

function deadLetteringTo(dead: QueueDeclaration): Record<string, string> {
  return { "x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead.name }
}

/** A user of one queue whose messages it takes and does not acknowledge. */
async function userOf(broker: Broker, prefetch = 100): Promise<{ user: User; inbox: string }> {
  const inbox = queue("inbox")
  const user = new User(broker)
  user.start([inbox], { [inbox.name]: prefetch })
  return { user: await user.ready(), inbox: inbox.name }
}

/** A broker that several clients can share. */
interface World {
  readonly kind: "embedded" | "amqp" | "simulated"
  /** A client of the broker; for the embedded broker, a broker of its own. */
  make(): Broker
}

interface SharedWorld extends World {
  /** Messages that wait in a queue. */
  depth(queue: string): Promise<number>
  /** A client whose connections `lose` closes. */
  makeLosable(): Broker
  lose(): void
}

const EMBEDDED: World = { kind: "embedded", make: () => new EmbeddedBroker() }

let proxy: AmqpProxy

const AMQP: SharedWorld = {
  kind: "amqp",
  make: () => new AmqpBroker(rabbit.url, "contract test"),
  depth: (queue) => rabbit.queueDepth(queue),
  makeLosable: () => {
    const url = new URL(rabbit.url)
    url.port = String(proxy.port)
    return new AmqpBroker(url.href, "contract test")
  },
  lose: () => proxy.closeConnections(),
}

/** The simulated broker without a scheduler: whatever can happen happens at the next tick. */
const simulated = new SimulatedBroker(Date.now())
const simulatedClients: SimulatedClient[] = []

function pump(): void {
  simulated.nowMs = Date.now()
  simulated.settle()
}

function simulatedClient(): Broker {
  const client = simulated.client(`client ${simulatedClients.length}`)
  simulatedClients.push(client)
  return client
}

const SIMULATED: SharedWorld = {
  kind: "simulated",
  make: simulatedClient,
  depth: async (queue) => simulated.waiting(queue).length,
  makeLosable: simulatedClient,
  lose: () => {
    for (const client of simulatedClients) {
      client.cut("publishing")
      client.cut("consuming")
    }
  },
}

let pumping: ReturnType<typeof setInterval>

beforeAll(async () => {
  proxy = await AmqpProxy.start(rabbit.port)
  pumping = setInterval(pump, 1)
})

afterAll(() => {
  clearInterval(pumping)
  proxy.stop()
})

describe.each([EMBEDDED, AMQP, SIMULATED])("the $kind broker", (world) => {
  const { kind } = world
  const make = () => world.make()
  const depth = "depth" in world ? (world as SharedWorld).depth : null
  // New queues for each test, so that none sees what another left.
  const fresh = (run: () => Promise<void>) => async () => {
    name = uniqueNames(`contract.${kind}`)
    await run()
  }

  describe("its state", () => {
    test(
      "is away, then ready, then closed, and each change is told once",
      fresh(async () => {
        const user = new User(make())
        expect(user.broker.state.kind).toBe("away")
        user.start([])
        expect(user.states).toEqual([])
        await user.ready()
        expect(user.states).toEqual(["ready"])
        await user.broker.close()
        expect(user.broker.state.kind).toBe("closed")
        expect(user.states).toEqual(["ready", "closed"])
      }),
      LIMIT_MS,
    )

    test(
      "is closed once when it is closed twice, and neither call waits for a time-out",
      fresh(async () => {
        const user = new User(make())
        user.start([])
        await user.ready()
        const closed = Promise.all([user.broker.close(), user.broker.close()])
        await within(closed, { what: "close, twice", timeoutMs: 1_000 })
        await within(user.broker.close(), { what: "a third close", timeoutMs: 1_000 })
        expect(user.states).toEqual(["ready", "closed"])
      }),
      LIMIT_MS,
    )

    test(
      "stays closed when it is closed while it starts",
      fresh(async () => {
        const user = new User(make())
        user.start([queue("any")])
        await within(user.broker.close(), { what: "close" })
        expect(user.broker.state.kind).toBe("closed")
        expect(user.publishChannel.state).toBe("closed")
        expect(user.states.at(-1)).toBe("closed")
      }),
      LIMIT_MS,
    )
  })

  describe("a publish channel", () => {
    test(
      "opens after start has returned, and tells its listener when it is open",
      fresh(async () => {
        const user = new User(make())
        expect(user.publishChannel.state).toBe("closed")
        user.start([queue("any")])
        expect(user.openings).toEqual([])
        await user.ready()
        expect(user.openings).toEqual(["open"])
        expect(user.publishChannel.state).toBe("open")
      }),
      LIMIT_MS,
    )

    test(
      "is one of several, and each opens and confirms its own",
      fresh(async () => {
        const inbox = queue("inbox")
        const broker = make()
        const [first, second] = [new User(broker), new User(broker)]
        first.start([inbox], { [inbox.name]: 10 })
        await first.ready()
        expect(second.openings).toEqual(["open"])
        const results = [
          first.publish(message(inbox.name, { id: "same" })),
          second.publish(message(name("nowhere"), { id: "same" })),
        ]
        expect(await Promise.all(results)).toEqual(["confirmed", "returned"])
        await first.delivered(1, inbox.name)
      }),
      LIMIT_MS,
    )

    test(
      "is closed once the broker is closed",
      fresh(async () => {
        const { user } = await userOf(make())
        await user.broker.close()
        expect(user.publishChannel.state).toBe("closed")
      }),
      LIMIT_MS,
    )

    test(
      "settles each publish exactly once and never before publish has returned",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        const resultsOf = new Map<number, PublishResult[]>()
        const early: number[] = []
        for (let n = 0; n < 300; n += 1) {
          let returned = false
          const results: PublishResult[] = []
          resultsOf.set(n, results)
          const settled = (result: PublishResult) => {
            if (!returned) early.push(n)
            results.push(result)
          }
          const published = message(n % 3 === 0 ? name("nowhere") : inbox)
          user.publishChannel.publish(published, { id: published.id, settled })
          returned = true
        }
        const allSettled = () => [...resultsOf.values()].every((results) => results.length > 0)
        await until(allSettled, { what: "300 results" })
        // Nothing is in flight after this one, so nothing is left that could be told twice.
        expect(await user.publish(message(inbox))).toBe("confirmed")
        expect(early).toEqual([])
        for (const [n, results] of resultsOf) {
          expect(results).toEqual([n % 3 === 0 ? "returned" : "confirmed"])
        }
      }),
      LIMIT_MS,
    )

    test(
      "settles what is in flight when the broker is closed",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        const results: PublishResult[] = []
        for (let n = 0; n < 200; n += 1) {
          const published = message(inbox)
          user.publishChannel.publish(published, {
            id: published.id,
            settled: (result) => void results.push(result),
          })
        }
        await user.broker.close()
        await until(() => results.length === 200, { what: "200 results" })
        expect([...new Set(results)].filter((result) => !/^(confirmed|cut)$/.test(result))).toEqual(
          [],
        )
      }),
      LIMIT_MS,
    )

    test(
      "keeps the order of 2,000 messages",
      fresh(async () => {
        const { user, inbox } = await userOf(make(), 500)
        user.onDelivery = (delivery) => delivery.acknowledge()
        const sent = Array.from({ length: 2_000 }, (_, n) => String(n))
        const settled = sent.map((n) => user.publish(message(inbox, { body: text(n) })))
        expect(new Set(await Promise.all(settled))).toEqual(new Set(["confirmed"]))
        expect(contents(await user.delivered(2_000, inbox))).toEqual(sent)
      }),
      LIMIT_MS,
    )
  })

  describe("a message", () => {
    test(
      "is confirmed and delivered with all its properties",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        const timestamp = new Date(1_750_000_000_000)
        const properties = {
          contentType: "text/plain",
          contentEncoding: "utf-8",
          deliveryMode: 2,
          priority: 5,
          correlationId: "correlation 1",
          replyTo: "somewhere",
          expiration: "600000",
          messageId: "message 1",
          timestamp,
          type: "some.type",
          appId: "owsla",
        }
        const headers = {
          text: "zwölf",
          empty: "",
          large: 2n ** 53n - 1n,
          negative: -(2n ** 40n),
          zero: 0n,
          yes: true,
          no: false,
          nothing: null,
          bytes: new Uint8Array([0, 255, 10, 13]),
        }
        const body = new Uint8Array([0, 1, 254, 255])
        const sent = message(inbox, { body, properties: { ...properties, headers } })
        expect(await user.publish(sent)).toBe("confirmed")

        const [delivery] = await user.delivered(1, inbox)
        expect(delivery?.queue).toBe(inbox)
        expect(delivery?.redelivered).toBe(false)
        expect(new Uint8Array(delivery?.body ?? [])).toEqual(body)
        const { headers: received = {}, ...others } = delivery?.properties ?? {}
        expect(others).toEqual(properties)
        const { large, negative, zero, bytes, ...rest } = received
        // A 64-bit integer comes as a number or as a bigint.
        expect([large, negative, zero].map((value) => BigInt(value as bigint))).toEqual([
          headers.large,
          headers.negative,
          headers.zero,
        ])
        expect(bytes).toBeInstanceOf(Uint8Array)
        expect(Array.from(bytes as Uint8Array)).toEqual([0, 255, 10, 13])
        expect(rest).toEqual({ text: "zwölf", empty: "", yes: true, no: false, nothing: null })
      }),
      LIMIT_MS,
    )

    test(
      "without properties is delivered without any",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        expect(await user.publish(message(inbox, { properties: {} }))).toBe("confirmed")
        const [delivery] = await user.delivered(1, inbox)
        const { headers = {}, ...others } = delivery?.properties ?? {}
        expect({ headers, others }).toEqual({ headers: {}, others: {} })
      }),
      LIMIT_MS,
    )

    test(
      "has its properties read before publish returns, so the caller may fill one object anew",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        const headers = { n: "", bytes: new Uint8Array(1) }
        const timestamp = new Date(0)
        const properties = { headers, messageId: "", timestamp }
        const results: Promise<PublishResult>[] = []
        for (let n = 1; n <= 3; n += 1) {
          headers.n = String(n)
          headers.bytes[0] = n
          properties.messageId = `m${n}`
          timestamp.setTime(n * 1000)
          results.push(user.publish(message(inbox, { id: `m${n}`, properties })))
        }
        expect(await Promise.all(results)).toEqual(["confirmed", "confirmed", "confirmed"])
        const deliveries = await user.delivered(3, inbox)
        const received = deliveries.map(({ properties: { headers, messageId, timestamp } }) => ({
          n: headers?.["n"],
          bytes: Array.from(headers?.["bytes"] as Uint8Array),
          messageId,
          seconds: (timestamp?.getTime() ?? 0) / 1000,
        }))
        expect(received).toEqual(
          [1, 2, 3].map((n) => ({ n: `${n}`, bytes: [n], messageId: `m${n}`, seconds: n })),
        )
      }),
      LIMIT_MS,
    )

    test(
      "may have an empty body",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        expect(await user.publish(message(inbox))).toBe("confirmed")
        expect((await user.delivered(1, inbox))[0]?.body.length).toBe(0)
      }),
      LIMIT_MS,
    )

    test(
      "may have a body of 1 MB, and small ones before and after it",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        const large = new Uint8Array(1_048_576)
        for (let n = 0; n < large.length; n += 1) large[n] = (n * 31) >> 3
        const bodies = [text("before"), large, text("after")]
        const results = bodies.map((body) => user.publish(message(inbox, { body })))
        expect(await Promise.all(results)).toEqual(["confirmed", "confirmed", "confirmed"])
        const deliveries = await user.delivered(3, inbox)
        expect(deliveries.map(({ body }) => body.length)).toEqual([6, large.length, 5])
        expect(Buffer.compare(deliveries[1]?.body ?? text(""), large)).toBe(0)
      }),
      LIMIT_MS,
    )
  })

  describe("a message that no queue takes", () => {
    test(
      "is returned, known by its message_id",
      fresh(async () => {
        const { user } = await userOf(make())
        expect(await user.publish(message(name("nowhere")))).toBe("returned")
      }),
      LIMIT_MS,
    )

    test(
      "is returned, known by owsla-publish-id when its message_id is another's",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        const post = (id: string, to: string) => {
          const properties = { messageId: "shared", headers: { [PUBLISH_ID_HEADER]: id } }
          return user.publish(message(to, { id, properties }))
        }
        const nowhere = name("nowhere")
        const results = [post("1", inbox), post("2", nowhere), post("3", inbox), post("4", nowhere)]
        expect(await Promise.all(results)).toEqual([
          "confirmed",
          "returned",
          "confirmed",
          "returned",
        ])
      }),
      LIMIT_MS,
    )

    test(
      "is told from 500 others on the publish channel, whichever way it is known",
      fresh(async () => {
        const { user, inbox } = await userOf(make(), 1_000)
        const wanted: PublishResult[] = []
        const results = Array.from({ length: 500 }, (_, n) => {
          const lost = n % 7 === 3
          wanted.push(lost ? "returned" : "confirmed")
          const id = `n${n}`
          const properties =
            n % 2 === 0 ? { messageId: id } : { headers: { [PUBLISH_ID_HEADER]: id, n: BigInt(n) } }
          return user.publish(message(lost ? name("nowhere") : inbox, { id, properties }))
        })
        expect(await Promise.all(results)).toEqual(wanted)
      }),
      LIMIT_MS,
    )

    test(
      "is confirmed under the same id once its queue takes it",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        expect(await user.publish(message(name("nowhere"), { id: "x" }))).toBe("returned")
        expect(await user.publish(message(inbox, { id: "x" }))).toBe("confirmed")
      }),
      LIMIT_MS,
    )

    test(
      "is one to an exchange without queues too",
      fresh(async () => {
        const { user } = await userOf(make())
        const sent = message(name("nowhere"), { exchange: "amq.topic" })
        expect(await user.publish(sent)).toBe("returned")
      }),
      LIMIT_MS,
    )
  })

  describe("a subscription", () => {
    test(
      "has no more deliveries unacknowledged than its prefetch",
      fresh(async () => {
        const [inbox, fence] = [queue("inbox"), queue("fence")]
        const user = new User(make())
        user.start([inbox, fence], { [inbox.name]: 3, [fence.name]: 1 })
        await user.ready()
        for (let n = 0; n < 10; n += 1) {
          await user.publish(message(inbox.name, { body: text(String(n)) }))
        }
        await user.delivered(3, inbox.name)
        await user.roundTrip(fence.name)
        expect(contents(user.from(inbox.name))).toEqual(["0", "1", "2"])
        user.from(inbox.name)[1]?.acknowledge()
        // A second time is not a second acknowledgement.
        user.from(inbox.name)[1]?.acknowledge()
        await user.delivered(4, inbox.name)
        await user.roundTrip(fence.name)
        expect(contents(user.from(inbox.name))).toEqual(["0", "1", "2", "3"])
        user.onDelivery = (delivery) => delivery.acknowledge()
        for (const delivery of user.from(inbox.name)) delivery.acknowledge()
        expect(contents(await user.delivered(10, inbox.name))).toEqual([..."0123456789"])
      }),
      LIMIT_MS,
    )

    test(
      "that was stopped delivers no more, and what it delivered can still be acknowledged",
      fresh(async () => {
        const { user, inbox } = await userOf(make(), 10)
        for (const body of ["a", "b", "c"]) await user.publish(message(inbox, { body: text(body) }))
        const deliveries = [...(await user.delivered(3, inbox))]
        await within(user.broker.stopConsuming(), { what: "stopConsuming" })
        for (const body of ["d", "e"]) {
          expect(await user.publish(message(inbox, { body: text(body) }))).toBe("confirmed")
        }
        for (const delivery of deliveries) delivery.acknowledge()
        expect(await user.publish(message(inbox, { body: text("f") }))).toBe("confirmed")
        expect(contents(user.from(inbox))).toEqual(["a", "b", "c"])
        if (depth !== null) {
          await until(async () => (await depth(inbox)) === 3, { what: "three left" })
          await user.broker.close()
          expect(await depth(inbox)).toBe(3)
          expect(contents(user.from(inbox))).toEqual(["a", "b", "c"])
        }
      }),
      LIMIT_MS,
    )

    test(
      "that lasts until the broker is closed goes on when the others are stopped",
      fresh(async () => {
        const [inbox, lasting] = [queue("inbox"), queue("lasting")]
        const user = new User(make())
        user.start([inbox, lasting], { [inbox.name]: 10, [lasting.name]: 10 }, [lasting.name])
        await user.ready()
        await user.publish(message(lasting.name, { body: text("before") }))
        const [before] = await user.delivered(1, lasting.name)
        await within(user.broker.stopConsuming(), { what: "stopConsuming" })
        before?.acknowledge()
        await user.publish(message(inbox.name))
        await user.publish(message(lasting.name, { body: text("after") }))
        expect(contents(await user.delivered(2, lasting.name))).toEqual(["before", "after"])
        expect(user.from(inbox.name)).toEqual([])
      }),
      LIMIT_MS,
    )

    test(
      "that is stopped before the broker is there delivers nothing",
      fresh(async () => {
        const inbox = queue("inbox")
        const user = new User(make())
        user.start([inbox], { [inbox.name]: 10 })
        await within(user.broker.stopConsuming(), { what: "stopConsuming" })
        await user.ready()
        expect(await user.publish(message(inbox.name))).toBe("confirmed")
        if (depth !== null) {
          await until(async () => (await depth(inbox.name)) === 1, { what: "one left" })
        }
        expect(user.deliveries).toEqual([])
      }),
      LIMIT_MS,
    )

    test(
      "that was paused and resumed has lost and repeated nothing",
      fresh(async () => {
        const { user, inbox } = await userOf(make(), 100)
        user.broker.pauseConsuming()
        const sent = Array.from({ length: 20 }, (_, n) => String(n))
        for (const body of sent) {
          expect(await user.publish(message(inbox, { body: text(body) }))).toBe("confirmed")
        }
        user.broker.resumeConsuming()
        const deliveries = await user.delivered(20, inbox)
        expect(contents(deliveries)).toEqual(sent)
        expect(deliveries.some(({ redelivered }) => redelivered)).toBe(false)
        // As often as one likes, and in any order.
        user.broker.resumeConsuming()
        user.broker.pauseConsuming()
        user.broker.pauseConsuming()
        user.broker.resumeConsuming()
        await user.publish(message(inbox, { body: text("last") }))
        await user.delivered(21, inbox)
      }),
      LIMIT_MS,
    )

    test(
      "can be paused and stopped without waiting for each other",
      fresh(async () => {
        const { user, inbox } = await userOf(make(), 100)
        await user.publish(message(inbox))
        const [delivery] = await user.delivered(1, inbox)
        user.broker.pauseConsuming()
        try {
          const stopped = user.broker.stopConsuming()
          await within(stopped, { what: "stopConsuming while paused", timeoutMs: 2_000 })
        } finally {
          user.broker.resumeConsuming()
        }
        delivery?.acknowledge()
      }),
      LIMIT_MS,
    )
  })

  describe("a delivery", () => {
    test(
      "that is acknowledged after close does nothing",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        await user.publish(message(inbox))
        const [delivery] = await user.delivered(1, inbox)
        await user.broker.close()
        delivery?.acknowledge()
        delivery?.acknowledge()
        if (depth !== null) {
          await until(async () => (await depth(inbox)) === 1, { what: "it to be back" })
        }
      }),
      LIMIT_MS,
    )

    test(
      "stays as it was while others come",
      fresh(async () => {
        const { user, inbox } = await userOf(make())
        const filled = (n: number) => new Uint8Array(30_000).fill(n)
        for (let n = 0; n < 20; n += 1) {
          await user.publish(message(inbox, { body: filled(n), properties: { messageId: `${n}` } }))
        }
        const deliveries = await user.delivered(20, inbox)
        for (const [n, { body, properties }] of deliveries.entries()) {
          expect(properties.messageId).toBe(`${n}`)
          expect(Buffer.compare(body, filled(n))).toBe(0)
        }
      }),
      LIMIT_MS,
    )
  })

  describe("a message whose time is over", () => {
    test(
      "is dead-lettered with the reason, its queue and its own expiration",
      fresh(async () => {
        const dead = queue("dead")
        const mortal = queue("mortal", deadLetteringTo(dead))
        const user = new User(make())
        user.start([dead, mortal], { [dead.name]: 10 })
        await user.ready()
        const properties = { expiration: "30", messageId: "m", headers: { device_id: "d" } }
        const sent = message(mortal.name, { body: text("late"), properties })
        expect(await user.publish(sent)).toBe("confirmed")

        const [delivery] = await user.delivered(1, dead.name)
        expect(contents(delivery === undefined ? [] : [delivery])).toEqual(["late"])
        expect(readDeath(delivery?.properties ?? {})).toEqual({
          reason: "expired",
          queue: mortal.name,
          expiration: "30",
        })
        // Kept, it would let the broker drop the dead letter too.
        expect(delivery?.properties.expiration).toBeUndefined()
        expect(delivery?.properties.messageId).toBe("m")
        expect(delivery?.properties.headers?.["device_id"]).toBe("d")
      }),
      LIMIT_MS,
    )

    test(
      "is dead-lettered by its queue's x-message-ttl, with or without an expiration of its own",
      fresh(async () => {
        const dead = queue("dead")
        const mortal = queue("mortal", { ...deadLetteringTo(dead), "x-message-ttl": 30 })
        const user = new User(make())
        user.start([dead, mortal], { [dead.name]: 10 })
        await user.ready()
        await user.publish(message(mortal.name))
        await user.publish(message(mortal.name, { properties: { expiration: "600000" } }))

        const deaths = (await user.delivered(2, dead.name)).map((d) => readDeath(d.properties))
        const because = { reason: "expired", queue: mortal.name }
        expect(deaths).toEqual([
          { ...because, expiration: null },
          { ...because, expiration: "600000" },
        ])
      }),
      LIMIT_MS,
    )

    test(
      "is not delivered after it, and no other is held up by it",
      fresh(async () => {
        const dead = queue("dead")
        const inbox = queue("inbox", deadLetteringTo(dead))
        const user = new User(make())
        user.start([dead, inbox], { [dead.name]: 10, [inbox.name]: 1 })
        await user.ready()
        await user.publish(message(inbox.name, { body: text("first") }))
        const [first] = await user.delivered(1, inbox.name)
        const properties = { expiration: "30" }
        await user.publish(message(inbox.name, { body: text("mortal"), properties }))
        await user.publish(message(inbox.name, { body: text("second") }))
        await user.delivered(1, dead.name)
        first?.acknowledge()
        expect(contents(await user.delivered(2, inbox.name))).toEqual(["first", "second"])
        expect(contents(user.from(dead.name))).toEqual(["mortal"])
      }),
      LIMIT_MS,
    )
  })
})

describe.each([AMQP, SIMULATED])("several clients of the $kind broker", ({ kind, make, depth }) => {
  const start = async (queues: QueueDeclaration[], subscribed: Record<string, number>) => {
    const user = new User(make())
    user.start(queues, subscribed)
    return user.ready()
  }
  const fresh = (run: () => Promise<void>) => async () => {
    name = uniqueNames(`contract.two.${kind}`)
    await run()
  }

  test(
    "delivers again, to another, what was not acknowledged before close, and nothing else",
    fresh(async () => {
      const inbox = queue("inbox")
      const first = await start([inbox], { [inbox.name]: 10 })
      for (const body of ["a", "b", "c", "d"]) {
        await first.publish(message(inbox.name, { body: text(body) }))
      }
      const deliveries = await first.delivered(4, inbox.name)
      deliveries[0]?.acknowledge()
      deliveries[2]?.acknowledge()
      await first.broker.close()
      deliveries[1]?.acknowledge()

      const second = await start([inbox], { [inbox.name]: 10 })
      const again = await second.delivered(2, inbox.name)
      expect(contents(again)).toEqual(["b", "d"])
      expect(again.map(({ redelivered }) => redelivered)).toEqual([true, true])
    }),
    LIMIT_MS,
  )

  test(
    "hands over every acknowledgement that was given before close",
    fresh(async () => {
      const inbox = queue("inbox")
      const user = await start([inbox], { [inbox.name]: 1_000 })
      const published = Array.from({ length: 500 }, () => user.publish(message(inbox.name)))
      await Promise.all(published)
      for (const delivery of await user.delivered(500, inbox.name)) delivery.acknowledge()
      await user.broker.close()

      const other = await start([inbox], { [inbox.name]: 1_000 })
      await other.publish(message(inbox.name, { body: text("a new one") }))
      // What comes again comes first.
      expect(contents((await other.delivered(1, inbox.name)).slice(0, 1))).toEqual(["a new one"])
    }),
    LIMIT_MS,
  )

  test(
    "delivers nothing that came while it was paused, however long, until it is resumed",
    fresh(async () => {
      const inbox = queue("inbox")
      const user = await start([inbox], { [inbox.name]: 10 })
      user.broker.pauseConsuming()
      for (const body of ["a", "b", "c"]) {
        await user.publish(message(inbox.name, { body: text(body) }))
      }
      const handedOver = async () => (await depth(inbox.name)) === 0
      await until(handedOver, { what: "the broker to hand them over" })
      expect(user.deliveries).toEqual([])
      user.broker.resumeConsuming()
      expect(contents(await user.delivered(3, inbox.name))).toEqual(["a", "b", "c"])
    }),
    LIMIT_MS,
  )

  test(
    "delivers nothing more once stopped in the middle of subscribing",
    fresh(async () => {
      const queues = Array.from({ length: 12 }, (_, n) => queue(`inbox.${n}`))
      const feeder = await start(queues, {})
      for (const { name } of queues) await feeder.publish(message(name))

      const user = new User(make())
      const stopped = Promise.withResolvers<void>()
      user.onDelivery = () => {
        user.onDelivery = () => undefined
        stopped.resolve(user.broker.stopConsuming())
      }
      user.start(queues, Object.fromEntries(queues.map(({ name }) => [name, 10])))
      await within(stopped.promise, { what: "stopConsuming" })
      const before = user.deliveries.length
      await user.ready()
      // The last to be subscribed to: its first message, and one that came long after the stop.
      const last = queues.at(-1)?.name ?? ""
      expect(await user.publish(message(last))).toBe("confirmed")
      await until(async () => (await depth(last)) === 2, {
        what: `both messages to stay in ${last}`,
        timeoutMs: 2_000,
      })
      expect(user.deliveries.length).toBe(before)
    }),
    LIMIT_MS,
  )

  test(
    "gives each of two users of one queue its share",
    fresh(async () => {
      const inbox = queue("inbox")
      const first = await start([inbox], { [inbox.name]: 2 })
      const second = await start([inbox], { [inbox.name]: 2 })
      const published = Array.from({ length: 6 }, () => first.publish(message(inbox.name)))
      await Promise.all(published)
      await first.delivered(2, inbox.name)
      await second.delivered(2, inbox.name)
      await until(async () => (await depth(inbox.name)) === 2, { what: "two waiting" })
    }),
    LIMIT_MS,
  )
})

describe.each([AMQP, SIMULATED])("when the connections of the $kind broker are lost", (world) => {
  const { kind } = world
  const fresh = (run: () => Promise<void>) => async () => {
    name = uniqueNames(`contract.lost.${kind}`)
    await run()
  }
  const start = async (queues: QueueDeclaration[], subscribed: Record<string, number>) => {
    const user = new User(world.makeLosable())
    user.start(queues, subscribed)
    return user.ready()
  }

  test(
    "what was not acknowledged is lost, and is delivered again, first and marked",
    fresh(async () => {
      const inbox = queue("inbox")
      const user = await start([inbox], { [inbox.name]: 10 })
      for (const body of ["a", "b", "c"]) {
        await user.publish(message(inbox.name, { body: text(body) }))
      }
      const before = [...(await user.delivered(3, inbox.name))]
      expect(before.map(({ lost }) => lost)).toEqual([false, false, false])
      before[1]?.acknowledge()
      await until(() => before[1]?.settled, { what: "the broker to have the acknowledgement" })
      world.lose()
      const again = (await user.delivered(5, inbox.name)).slice(3)
      expect(before.map(({ lost }) => lost)).toEqual([true, true, true])
      expect(contents(again)).toEqual(["a", "c"])
      expect(again.map(({ redelivered, lost }) => [redelivered, lost])).toEqual([
        [true, false],
        [true, false],
      ])
      // A lost delivery cannot be acknowledged any more; an acknowledged one stays acknowledged.
      for (const delivery of [...before, ...again]) delivery.acknowledge()
      await until(() => again.every(({ settled }) => settled), { what: "both to be settled" })
      expect(before.map(({ settled }) => settled)).toEqual([false, true, false])
    }),
    LIMIT_MS,
  )

  test(
    "each subscription is told once, after its deliveries are lost and before any comes again",
    fresh(async () => {
      const [inbox, idle] = [queue("inbox"), queue("idle")]
      const user = await start([inbox, idle], { [inbox.name]: 10, [idle.name]: 10 })
      for (let n = 0; n < 3; n += 1) await user.publish(message(inbox.name))
      await user.delivered(3, inbox.name)
      world.lose()
      await user.delivered(6, inbox.name)
      expect(user.losses.toSorted((a, b) => (a.queue < b.queue ? -1 : 1))).toEqual([
        { queue: idle.name, deliveries: 0, lost: true },
        { queue: inbox.name, deliveries: 3, lost: true },
      ])
    }),
    LIMIT_MS,
  )

  test(
    "a subscription that lasts until the broker is closed comes back though the others are stopped",
    fresh(async () => {
      const [inbox, lasting] = [queue("inbox"), queue("lasting")]
      const user = new User(world.makeLosable())
      user.start([inbox, lasting], { [inbox.name]: 10, [lasting.name]: 10 }, [lasting.name])
      await user.ready()
      await within(user.broker.stopConsuming(), { what: "stopConsuming" })
      world.lose()
      await until(() => user.states.at(-1) === "ready" && user.states.length > 2, {
        what: "the broker to be back",
      })
      await user.publish(message(inbox.name))
      await user.publish(message(lasting.name, { body: text("after") }))
      expect(contents(await user.delivered(1, lasting.name))).toEqual(["after"])
      expect(user.from(inbox.name)).toEqual([])
    }),
    LIMIT_MS,
  )

  test(
    "another client may be given what was delivered before",
    fresh(async () => {
      const inbox = queue("inbox")
      const user = await start([inbox], { [inbox.name]: 10 })
      await user.publish(message(inbox.name, { body: text("a") }))
      await user.delivered(1, inbox.name)
      const other = new User(world.make())
      other.start([inbox], { [inbox.name]: 10 })
      await other.ready()
      await user.broker.stopConsuming()
      world.lose()
      const [delivery] = await other.delivered(1, inbox.name)
      expect([contents(delivery ? [delivery] : []), delivery?.redelivered]).toEqual([["a"], true])
    }),
    LIMIT_MS,
  )

  test(
    "what was returned to its queue more often than the limit is dead-lettered as delivery_limit",
    fresh(async () => {
      const dead = queue("dead")
      const inbox = queue("inbox", { ...deadLetteringTo(dead), "x-delivery-limit": 1 })
      const user = await start([dead, inbox], { [dead.name]: 10, [inbox.name]: 10 })
      const properties = { messageId: "m", headers: { device_id: "d" } }
      await user.publish(message(inbox.name, { body: text("a"), properties }))
      await user.delivered(1, inbox.name)
      world.lose()
      const [, again] = await user.delivered(2, inbox.name)
      expect(Number(again?.properties.headers?.["x-delivery-count"])).toBe(1)
      world.lose()
      const [delivery] = await user.delivered(1, dead.name)
      expect(readDeath(delivery?.properties ?? {})).toEqual({
        reason: "delivery_limit",
        queue: inbox.name,
        expiration: null,
      })
      expect(delivery?.properties.messageId).toBe("m")
      expect(user.from(inbox.name).length).toBe(2)
    }),
    LIMIT_MS,
  )

  test(
    "what comes back after its time is dead-lettered as expired",
    fresh(async () => {
      const dead = queue("dead")
      const inbox = queue("inbox", deadLetteringTo(dead))
      const user = await start([dead, inbox], { [dead.name]: 10, [inbox.name]: 10 })
      const sentAtMs = performance.now()
      const properties = { expiration: "300" }
      await user.publish(message(inbox.name, { body: text("a"), properties }))
      await user.delivered(1, inbox.name)
      await until(() => performance.now() - sentAtMs > 400, { what: "its time to be over" })
      world.lose()
      const [delivery] = await user.delivered(1, dead.name)
      expect(readDeath(delivery?.properties ?? {})?.reason).toBe("expired")
      expect(user.from(inbox.name).length).toBe(1)
    }),
    LIMIT_MS,
  )

  test(
    "a queue that holds more than its length dead-letters the oldest as maxlen",
    fresh(async () => {
      const dead = queue("dead")
      const inbox = queue("inbox", { ...deadLetteringTo(dead), "x-max-length": 2 })
      const user = await start([dead, inbox], { [dead.name]: 10 })
      for (const body of ["a", "b", "c"]) {
        await user.publish(message(inbox.name, { body: text(body) }))
      }
      const deliveries = await user.delivered(1, dead.name)
      expect(contents(deliveries)).toEqual(["a"])
      expect(readDeath(deliveries[0]?.properties ?? {})?.reason).toBe("maxlen")
    }),
    LIMIT_MS,
  )
})
