/** A RabbitMQ, a view of it as the gateway has it, and a back-end, for the tests of `src/amqp`. */

import { afterAll, afterEach, beforeAll, beforeEach } from "bun:test"
import { AMQPClient } from "@cloudamqp/amqp-client"
import { AMQPView } from "@cloudamqp/amqp-client/amqp-view"
import { AmqpBroker } from "../../src/amqp/broker.ts"
import type {
  BrokerState,
  Delivery,
  MessageProperties,
  PublishChannel,
  PublishResult,
  QueueDeclaration,
  Subscription,
} from "../../src/broker/broker.ts"
import { type CallbackPublish, callbackListener } from "../support/publish-channels.ts"
import { type PrivateBroker, startRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { until, within } from "../support/wait.ts"

export const START_LIMIT_MS = 60_000
export const LIMIT_MS = 90_000
export const LOCALHOST = "127.0.0.1"

export let rabbit: PrivateBroker
export let backEnd: BackEnd
export let mute: MuteServer
export let name: (noun: string) => string
/** What a test has opened and is to be closed after it. */
export const closers: (() => unknown)[] = []
export const closing: unknown[] = []

/** To be called once by each file of tests. */
export function setUpBroker(): void {
  beforeAll(async () => {
    mute = new MuteServer()
    rabbit = await startRabbitMq()
    await connectBackEnd()
  }, START_LIMIT_MS)

  // New queues for each test, so that none sees what another left.
  beforeEach(() => {
    name = uniqueNames("amqp")
  })

  // Begun after each test and waited for at the end, since RabbitMQ is given time for the last
  // acknowledgements.
  afterEach(() => {
    for (const close of closers.splice(0)) closing.push(close())
  })

  afterAll(async () => {
    await Promise.all(closing)
    await mute.stop()
    await rabbit?.dispose()
  }, START_LIMIT_MS)
}

/**
 * A server that accepts and never answers, and its user: started first, as the time-out is long.
 */
export class MuteServer {
  readonly broker: AmqpBroker
  readonly states: BrokerState[] = []
  accepted = 0
  readonly #server: Bun.TCPSocketListener

  constructor() {
    const open = () => {
      this.accepted += 1
    }
    this.#server = Bun.listen({ hostname: LOCALHOST, port: 0, socket: { open, data() {} } })
    this.broker = new AmqpBroker(`amqp://${LOCALHOST}:${this.#server.port}`, "mute test")
    this.broker.start(
      { exchanges: [], queues: [], subscriptions: [] },
      { stateChanged: (state) => this.states.push(state), warning: () => undefined },
    )
  }

  async stop(): Promise<void> {
    await this.broker.close()
    this.#server.stop(true)
  }
}

/** A gateway's view of its broker, with everything it was told. */
export class User {
  readonly broker: AmqpBroker
  readonly publishChannel: PublishChannel<CallbackPublish>
  readonly states: BrokerState[] = []
  readonly warnings: string[] = []
  readonly deliveries: Delivery[] = []
  readonly results: PublishResult[] = []
  openings = 0
  onDelivery: (delivery: Delivery) => void = (delivery) => delivery.acknowledge()
  #published = 0
  #wasReady = false

  constructor(url: string, clientName = "amqp test", gatherMs = 0) {
    this.broker = new AmqpBroker(url, clientName, null, gatherMs)
    this.publishChannel = this.broker.publishChannel(
      callbackListener(() => {
        this.openings += 1
      }),
    )
    closers.push(() => this.broker.close())
  }

  /** @param consumed each as exclusively as it is declared. */
  start(queues: QueueDeclaration[] = [], consumed: QueueDeclaration[] = [], prefetch = 1_000) {
    const subscriptions = consumed.map(({ name, exclusive = false }) =>
      this.#subscription(name, { prefetch, exclusive }),
    )
    this.broker.start(
      { exchanges: [], queues, subscriptions },
      {
        stateChanged: (state) => this.states.push(state),
        warning: (message) => this.warnings.push(message),
      },
    )
  }

  /** Subscribes to a queue at run time. */
  subscribe(queue: QueueDeclaration, options: Partial<Subscription> = {}): void {
    this.broker.subscribe(queue, this.#subscription(queue.name, options))
  }

  #subscription(queue: string, options: Partial<Subscription>): Subscription {
    const deliver = (delivery: Delivery) => {
      this.deliveries.push(delivery)
      this.onDelivery(delivery)
    }
    return { queue, prefetch: 1_000, deliver, ...options }
  }

  async ready(): Promise<this> {
    await until(() => this.broker.state.kind === "ready", {
      what: "the broker to be ready",
      timeoutMs: LIMIT_MS,
    })
    // RabbitMQ fails now and then when a new quorum queue is declared and consumed at a time; what
    // was told before the first success is no part of a test.
    if (!this.#wasReady) this.states.splice(0, this.states.length - 1)
    this.#wasReady = true
    return this
  }

  /** Publishes `body` under an id of its own; the result is also appended to `results`. */
  publish(queue: string, body = "", properties: MessageProperties = {}): Promise<PublishResult> {
    const id = `p${this.#published}`
    this.#published += 1
    const message = { id, exchange: "", routingKey: queue, body: Buffer.from(body) }
    const { promise, resolve } = Promise.withResolvers<PublishResult>()
    this.publishChannel.publish(
      { ...message, properties: { messageId: id, ...properties } },
      {
        id,
        settled: (result) => {
          this.results.push(result)
          resolve(result)
        },
      },
    )
    return within(promise, { what: `${id} to be settled` })
  }

  bodies(): string[] {
    return this.deliveries.map(({ body }) => Buffer.from(body).toString())
  }

  async delivered(count: number): Promise<Delivery[]> {
    await until(() => this.deliveries.length >= count, { what: `${count} deliveries` })
    return this.deliveries
  }
}

/** Somebody else's client on the same broker: declares, publishes and looks, confirmed. */
export class BackEnd {
  readonly #client: AMQPClient

  private constructor(client: AMQPClient) {
    this.#client = client
  }

  static async connect(url = rabbit.url): Promise<BackEnd> {
    const client = new AMQPClient(url)
    client.onerror = () => undefined
    await client.connect()
    return new BackEnd(client)
  }

  /** A channel for one conversation, since an error of the broker closes it. */
  async #on<T>(talk: (channel: Awaited<ReturnType<AMQPClient["channel"]>>) => Promise<T>) {
    const channel = await this.#client.channel()
    channel.onerror = () => undefined
    const result = await talk(channel)
    await channel.close()
    return result
  }

  declare({ name, durable, arguments: args }: QueueDeclaration): Promise<unknown> {
    return this.#on((channel) => channel.queueDeclare(name, { durable, autoDelete: false }, args))
  }

  delete(queue: QueueDeclaration): Promise<unknown> {
    return this.#on((channel) => channel.queueDelete(queue.name))
  }

  publish(queue: string, body: string, properties: MessageProperties = {}): Promise<unknown> {
    return this.#on(async (channel) => {
      await channel.confirmSelect()
      return channel.basicPublish("", queue, body, properties as never)
    })
  }

  /** Publishes an empty message whose headers table is these very bytes. */
  publishEncoded(queue: string, table: Uint8Array): Promise<unknown> {
    return this.#on(async (channel) => {
      await this.#client.send(publishFrame(channel.id, queue))
      await this.#client.send(headerFrame(channel.id, table))
      // Answered after what came before it on the channel.
      return channel.queueDeclare(queue, { passive: true })
    })
  }

  /** Takes one message out of a queue, or null. */
  get(queue: string) {
    return this.#on((channel) => channel.basicGet(queue, { noAck: true }))
  }

  async close(): Promise<void> {
    await this.#client.close()
  }
}

export const FRAME = { method: 1, header: 2, end: 206 } as const
export const BASIC = { class: 60, publish: 40 } as const

export function frame(
  type: number,
  channel: number,
  write: (view: AMQPView) => number,
): Uint8Array {
  const payload = new AMQPView(new ArrayBuffer(200_000))
  const length = write(payload)
  const whole = new DataView(new ArrayBuffer(length + 8))
  whole.setUint8(0, type)
  whole.setUint16(1, channel)
  whole.setUint32(3, length)
  new Uint8Array(whole.buffer).set(new Uint8Array(payload.buffer, 0, length), 7)
  whole.setUint8(length + 7, FRAME.end)
  return new Uint8Array(whole.buffer)
}

export function publishFrame(channel: number, queue: string): Uint8Array {
  return frame(FRAME.method, channel, (view) => {
    view.setUint16(0, BASIC.class)
    view.setUint16(2, BASIC.publish)
    view.setUint16(4, 0)
    let at = 6
    at += view.setShortString(at, "")
    at += view.setShortString(at, queue)
    view.setUint8(at, 0)
    return at + 1
  })
}

export function headerFrame(channel: number, table: Uint8Array): Uint8Array {
  const headersFlag = 0x2000
  return frame(FRAME.header, channel, (view) => {
    view.setUint16(0, BASIC.class)
    view.setUint16(2, 0)
    view.setUint64(4, 0)
    view.setUint16(12, headersFlag)
    view.setUint32(14, table.length)
    new Uint8Array(view.buffer).set(table, 18)
    return 18 + table.length
  })
}

/** Connects the back-end, again after its connection was closed. */
export async function connectBackEnd(): Promise<void> {
  backEnd = await BackEnd.connect()
}

export function queue(noun: string, args: Record<string, string | number> = {}): QueueDeclaration {
  return { name: name(noun), durable: true, arguments: { "x-queue-type": "quorum", ...args } }
}

export const is = (state: BrokerState) => state.kind

export async function depthOf(queue: string, depth: number): Promise<void> {
  await until(async () => (await rabbit.queueDepth(queue)) === depth, {
    what: `${depth} messages in ${queue}`,
  })
}

/**
 * A server that passes everything on between its clients and RabbitMQ.
 *
 * @param addition a frame to add to what RabbitMQ says, right after connection.open-ok.
 */
export function startProxy(addition: Uint8Array = new Uint8Array(0)) {
  const openOk = Buffer.from([FRAME.method, 0, 0, 0, 0, 0, 5, 0, 10, 0, 41, 0, FRAME.end])
  const servers = new Map<Bun.Socket, Promise<Bun.Socket>>()
  const keptOpen = new Set<Bun.Socket>()
  let connections = 0
  const passOn = (client: Bun.Socket, chunk: Buffer) => {
    const at = chunk.indexOf(openOk)
    if (at === -1) return void client.write(chunk)
    const rest = at + openOk.length
    client.write(Buffer.concat([chunk.subarray(0, rest), addition, chunk.subarray(rest)]))
  }
  const listener = Bun.listen({
    hostname: LOCALHOST,
    port: 0,
    socket: {
      open(client) {
        connections += 1
        const socket = {
          data: (_server: Bun.Socket, chunk: Buffer) => passOn(client, chunk),
          close: () => void client.end(),
        }
        servers.set(client, Bun.connect({ hostname: LOCALHOST, port: rabbit.port, socket }))
      },
      data: async (client, chunk) => void (await servers.get(client))?.write(chunk),
      close: async (client) => {
        const server = await servers.get(client)
        servers.delete(client)
        if (!keptOpen.has(client)) server?.end()
      },
    },
  })
  closers.push(() => listener.stop(true))
  return {
    url: `amqp://guest:guest@${LOCALHOST}:${listener.port}`,
    /** How many have been accepted so far. */
    connections: () => connections,
    /** Resets the present connections; half open, RabbitMQ's side of them stays. */
    cut: ({ halfOpen = false } = {}) => {
      for (const client of servers.keys()) {
        if (halfOpen) keptOpen.add(client)
        client.terminate()
      }
    },
  }
}
