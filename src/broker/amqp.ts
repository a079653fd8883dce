/**
 * The broker over AMQP 0-9-1: RabbitMQ, or what speaks like it.
 *
 * Two connections, so that a blocked publisher still takes commands: one carries the lanes, a channel
 * each; the other the subscriptions, a channel each. Queues are declared on both before use; one that
 * exists with other arguments is used as it is.
 *
 * Never retries a message: what a lost connection leaves unconfirmed is reported as "cut", and its
 * publisher decides. Bounds: prefetch for each subscription; lanes are bounded by their publishers.
 */

import type { AMQPBaseClient, AMQPChannel, AMQPMessage } from "@cloudamqp/amqp-client"
import {
  type Broker,
  type BrokerListener,
  type BrokerSetup,
  type BrokerState,
  type Delivery,
  type Lane,
  type LaneListener,
  type LaneState,
  type MessageProperties,
  type OutgoingMessage,
  POST_ID_HEADER,
  type PublishResult,
  type QueueDeclaration,
  type Subscription,
} from "./broker.ts"
import { Link } from "./link.ts"

/** Each unconfirmed publish of the client pins a buffer of this size, so it is the least allowed. */
const PUBLISH_FRAME_MAX = 8_192
/** A header frame comes whole: one larger than this would break the connection again and again. */
const CONSUME_FRAME_MAX = 131_072

/** What a command's headers mean is decided by whoever reads them; here they are just carried. */
type ClientProperties = Parameters<AMQPChannel["basicPublish"]>[3]

export class AmqpBroker implements Broker {
  readonly kind = "amqp"
  readonly #publishing: Link
  readonly #consuming: Link
  readonly #lanes: AmqpLane[] = []
  #setup: BrokerSetup = { queues: [], subscriptions: [] }
  #listener: BrokerListener | null = null
  #declareAgain: (() => Promise<void>) | null = null
  #consumers: { cancel(): Promise<unknown> }[] = []
  #stopped = false
  #lastLoss = "not connected yet"
  #blockedReason: string | null = null
  #closed = false
  readonly #warned = new Set<string>()

  /** @param name how the two connections are called in the broker's own tools. */
  constructor(url: string, name: string) {
    this.#publishing = new Link(url, `${name} publish`, PUBLISH_FRAME_MAX, {
      setUp: (client) => this.#setUpPublishing(client),
      up: () => this.#up(),
      lost: (reason) => {
        this.#lastLoss = reason
        this.#blockedReason = null
        this.#declareAgain = null
        for (const lane of this.#lanes) lane.detach()
        this.#changed()
      },
      blocked: (reason) => {
        this.#blockedReason = reason
        for (const lane of this.#lanes) lane.block()
        this.#changed()
      },
      unblocked: () => {
        this.#blockedReason = null
        for (const lane of this.#lanes) lane.unblock()
        this.#changed()
      },
    })
    this.#consuming = new Link(url, `${name} consume`, CONSUME_FRAME_MAX, {
      setUp: (client) => this.#setUpConsuming(client),
      up: () => this.#up(),
      lost: (reason) => {
        this.#lastLoss = reason
        this.#consumers = []
        this.#changed()
      },
      blocked: () => undefined,
      unblocked: () => undefined,
    })
  }

  get state(): BrokerState {
    if (this.#closed) return { is: "closed" }
    if (!this.#publishing.up || !this.#consuming.up) return { is: "away", reason: this.#lastLoss }
    if (this.#blockedReason !== null) return { is: "blocked", reason: this.#blockedReason }
    return { is: "ready" }
  }

  start(setup: BrokerSetup, listener: BrokerListener): void {
    this.#setup = setup
    this.#listener = listener
    this.#publishing.start()
    this.#consuming.start()
  }

  lane(listener: LaneListener): Lane {
    const lane = new AmqpLane(listener)
    this.#lanes.push(lane)
    return lane
  }

  redeclare(): void {
    const declareAgain = this.#declareAgain
    if (declareAgain === null) return
    // Called once for each returned message: one declaration at a time serves them all.
    this.#declareAgain = null
    declareAgain().then(
      () => {
        this.#declareAgain ??= declareAgain
      },
      (error: unknown) => this.reset(String(error)),
    )
  }

  reset(reason: string): void {
    this.#publishing.reset(reason)
  }

  pauseConsuming(): void {
    this.#consuming.pause()
  }

  resumeConsuming(): void {
    this.#consuming.resume()
  }

  async stopConsuming(): Promise<void> {
    this.#stopped = true
    const consumers = this.#consumers
    this.#consumers = []
    await Promise.allSettled(consumers.map((consumer) => consumer.cancel()))
  }

  async close(): Promise<void> {
    this.#closed = true
    await Promise.all([this.#publishing.close(), this.#consuming.close()])
    this.#changed()
  }

  #up(): void {
    // One of the two alone changes nothing for anybody.
    if (this.#publishing.up && this.#consuming.up) this.#changed()
  }

  #changed(): void {
    this.#listener?.stateChanged(this.state)
  }

  async #setUpPublishing(client: AMQPBaseClient): Promise<void> {
    const shared = this.#setup.queues.filter((queue) => queue.exclusive !== true)
    await this.#declare(client, shared)
    this.#declareAgain = () => this.#declare(client, shared)
    const opened: [AmqpLane, AMQPChannel][] = []
    for (const lane of this.#lanes) {
      const channel = await client.channel()
      await channel.confirmSelect()
      channel.onerror = (reason) => this.#publishing.reset(reason)
      opened.push([lane, channel])
    }
    for (const [lane, channel] of opened) lane.attach(channel)
  }

  async #setUpConsuming(client: AMQPBaseClient): Promise<void> {
    await this.#declare(client, this.#setup.queues)
    if (this.#stopped) return
    for (const subscription of this.#setup.subscriptions) {
      const channel = await client.channel()
      channel.onerror = (reason) => this.#consuming.reset(reason)
      await channel.basicQos(subscription.prefetch)
      const consumer = await channel.basicConsume(
        subscription.queue,
        { noAck: false, exclusive: subscription.exclusive ?? false },
        (message) => subscription.deliver(new AmqpDelivery(subscription, message)),
      )
      this.#consumers.push(consumer)
      // Rejects when the broker cancels the consumer, for example because its queue was deleted.
      consumer.wait().catch((error: unknown) => this.#consuming.reset(String(error)))
    }
  }

  /** One channel for each try, since a refused declaration closes its channel. */
  async #declare(client: AMQPBaseClient, queues: readonly QueueDeclaration[]): Promise<void> {
    let channel: AMQPChannel | null = null
    for (const queue of queues) {
      if (channel === null) {
        channel = await client.channel()
        channel.onerror = () => undefined
      }
      const { durable, exclusive = false } = queue
      try {
        const params = { durable, exclusive, autoDelete: false, passive: false }
        await channel.queueDeclare(queue.name, params, queue.arguments)
      } catch (error) {
        channel = null
        const reason = error instanceof Error ? error.message : String(error)
        if (!reason.includes("PRECONDITION_FAILED")) throw error
        this.#warnOnce(`queue ${queue.name} exists with other arguments, used as it is: ${reason}`)
      }
    }
    await channel?.close()
  }

  #warnOnce(message: string): void {
    if (this.#warned.has(message)) return
    this.#warned.add(message)
    this.#listener?.warning(message)
  }
}

class AmqpLane implements Lane {
  readonly #listener: LaneListener
  #channel: AMQPChannel | null = null
  #blocked = false
  /** Ids of returned messages whose confirm, which follows the return, has not come yet. */
  readonly #returned = new Set<string>()

  constructor(listener: LaneListener) {
    this.#listener = listener
  }

  get state(): LaneState {
    if (this.#channel === null || this.#channel.closed) return "closed"
    return this.#blocked ? "blocked" : "open"
  }

  attach(channel: AMQPChannel): void {
    this.#channel = channel
    this.#blocked = false
    this.#returned.clear()
    channel.onReturn = (message) => this.#returned.add(idOf(message.properties))
    this.#listener.opened()
  }

  detach(): void {
    this.#channel = null
  }

  block(): void {
    this.#blocked = true
  }

  unblock(): void {
    this.#blocked = false
    if (this.#channel !== null) this.#listener.opened()
  }

  publish(message: OutgoingMessage, settled: (result: PublishResult) => void): void {
    const channel = this.#channel
    if (channel === null) {
      queueMicrotask(() => settled("cut"))
      return
    }
    const { id, exchange, routingKey, body } = message
    const properties = message.properties as ClientProperties
    channel.basicPublish(exchange, routingKey, body, properties, true).then(
      () =>
        settled(this.#returned.size > 0 && this.#returned.delete(id) ? "returned" : "confirmed"),
      (error: unknown) => settled(failure(error, channel)),
    )
  }
}

/** The client rejects with plain messages; only these tell the cases apart. */
function failure(error: unknown, channel: AMQPChannel): PublishResult {
  if (error instanceof Error && error.message === "Message rejected") return "nacked"
  if (channel.closed || channel.connection.closed || channel.connection.blocked) return "cut"
  return "unencodable"
}

function idOf(properties: MessageProperties): string {
  return String(properties.headers?.[POST_ID_HEADER] ?? properties.messageId)
}

class AmqpDelivery implements Delivery {
  readonly queue: string
  readonly #message: AMQPMessage

  constructor(subscription: Subscription, message: AMQPMessage) {
    this.queue = subscription.queue
    this.#message = message
  }

  get body(): Uint8Array {
    return this.#message.body ?? EMPTY
  }

  get properties(): MessageProperties {
    return this.#message.properties
  }

  get redelivered(): boolean {
    return this.#message.redelivered
  }

  acknowledge(): void {
    if (this.#message.channel.closed) return
    this.#message.ack().catch(() => undefined)
  }
}

const EMPTY = new Uint8Array(0)
