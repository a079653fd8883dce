/**
 * The brokers that the contract suite tests, and a user of a broker that records what it is told.
 *
 * Three brokers: the embedded one, AMQP with a real RabbitMQ and its quorum queues, and the
 * simulated one on which the property tests of the fleet run.
 */

import { afterAll, afterEach, beforeAll, expect } from "bun:test"
import { AmqpBroker } from "../../../src/amqp/broker.ts"
import type {
  Broker,
  BrokerState,
  Delivery,
  OutgoingMessage,
  PublishChannel,
  PublishResult,
  QueueDeclaration,
  Subscription,
} from "../../../src/broker/broker.ts"
import { EmbeddedBroker } from "../../../src/broker/embedded.ts"
import { AmqpProxy } from "../../support/amqp-proxy.ts"
import { type CallbackPublish, callbackListener } from "../../support/publish-channels.ts"
import { sharedRabbitMq, type TestBroker, uniqueNames } from "../../support/rabbitmq.ts"
import { SimulatedBroker, type SimulatedClient } from "../../support/simulated-broker.ts"
import { until, within } from "../../support/wait.ts"

const START_LIMIT_MS = 60_000
export const LIMIT_MS = 20_000
/** RabbitMQ removes the queues itself where it outlives the run. */
const QUEUE_EXPIRES_MS = 60_000

let rabbit: TestBroker
let proxy: AmqpProxy
let pumping: ReturnType<typeof setInterval>
let names: (noun: string) => string
const users: User[] = []
const closing: Promise<void>[] = []

/** Starts and stops the brokers for one test file, which calls it once at its top. */
export function useBrokers(): void {
  beforeAll(async () => {
    rabbit = await sharedRabbitMq()
    proxy = await AmqpProxy.start(rabbit.port)
    pumping = setInterval(pump, 1)
  }, START_LIMIT_MS)

  // Begun after each test and waited for at the end, since RabbitMQ is given time for the last
  // acknowledgements.
  afterEach(() => {
    for (const { broker } of users.splice(0)) closing.push(broker.close())
  })

  afterAll(async () => {
    await Promise.all(closing.splice(0))
    clearInterval(pumping)
    proxy.stop()
  }, START_LIMIT_MS)
}

/** A wrapper of tests that gives each one new names, so that no test sees the queues of another. */
export function withNewNames(prefix: string) {
  return (run: () => Promise<void>) => async () => {
    names = uniqueNames(prefix)
    await run()
  }
}

/** A name that only the present test uses. */
export function name(noun: string): string {
  return names(noun)
}

/** A user of a broker, as a gateway is one, that records everything it is told. */
export class User {
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
    const subscriptions = Object.entries(subscribed).map(([queue, prefetch]) =>
      this.subscription(queue, { prefetch, untilClose: untilClose.includes(queue) }),
    )
    this.broker.start(
      { exchanges: [], queues, subscriptions },
      { stateChanged: (state) => this.states.push(state.kind), warning: () => undefined },
    )
  }

  /** A subscription that records its deliveries and losses. */
  subscription(queue: string, options: Partial<Subscription> = {}): Subscription {
    return {
      queue,
      prefetch: 100,
      lost: () => {
        // No delivery of the lost connection is left to be acknowledged, and the next connection
        // has none yet.
        const came = this.from(queue)
        this.losses.push({ queue, deliveries: came.length, lost: came.every(({ lost }) => lost) })
      },
      deliver: (delivery: Delivery) => {
        this.deliveries.push(delivery)
        this.onDelivery(delivery)
      },
      ...options,
    }
  }

  /** Subscribes to a queue at run time. */
  subscribe(queue: QueueDeclaration, options: Partial<Subscription> = {}): void {
    this.broker.subscribe(queue, this.subscription(queue.name, options))
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
export function message(queue: string, overrides: Partial<OutgoingMessage> = {}): OutgoingMessage {
  lastId += 1
  const id = overrides.id ?? `m${lastId}`
  const body = new Uint8Array(0)
  return { id, exchange: "", routingKey: queue, body, properties: { messageId: id }, ...overrides }
}

export function text(content: string): Uint8Array {
  return new TextEncoder().encode(content)
}

export function contents(deliveries: readonly Delivery[]): string[] {
  return deliveries.map(({ body }) => new TextDecoder().decode(body))
}

export function queue(noun: string, args: Record<string, string | number> = {}): QueueDeclaration {
  return {
    name: name(noun),
    durable: true,
    arguments: { "x-queue-type": "quorum", "x-expires": QUEUE_EXPIRES_MS, ...args },
  }
}

export function deadLetteringTo(dead: QueueDeclaration): Record<string, string> {
  return { "x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead.name }
}

/** A user of one queue whose messages it takes and does not acknowledge. */
export async function userOf(
  broker: Broker,
  prefetch = 100,
): Promise<{ user: User; inbox: string }> {
  const inbox = queue("inbox")
  const user = new User(broker)
  user.start([inbox], { [inbox.name]: prefetch })
  return { user: await user.ready(), inbox: inbox.name }
}

/** One of the brokers under test. */
export interface World {
  readonly kind: "embedded" | "amqp" | "simulated"
  /** A client of the broker; for the embedded broker, a broker of its own. */
  make(): Broker
}

/** A broker that several clients can share. */
export interface SharedWorld extends World {
  /** Messages that wait in a queue. */
  depth(queue: string): Promise<number>
  /** A client whose connections `lose` closes. */
  makeLosable(): Broker
  lose(): void
}

export const EMBEDDED: World = { kind: "embedded", make: () => new EmbeddedBroker() }

export const AMQP: SharedWorld = {
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

/**
 * The simulated broker without a scheduler: whatever can happen happens at the next call of `pump`.
 */
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

export const SIMULATED: SharedWorld = {
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
