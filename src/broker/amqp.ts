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
import { AMQPView } from "@cloudamqp/amqp-client/amqp-view"
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
import { ownProperties } from "./fields.ts"
import { Link } from "./link.ts"

/** Each unconfirmed publish of the client pins a buffer of this size, so it is the least allowed. */
const PUBLISH_FRAME_MAX = 8_192
/**
 * A header frame comes whole, and with what a dead letter adds to its headers it may be larger than
 * the 131,072 that RabbitMQ agrees to: one that does not fit breaks the connection again and again.
 */
const CONSUME_FRAME_MAX = 262_144
/** What is left in a publish buffer for properties, beside the longest names and the frames' own. */
const MAX_PROPERTY_BYTES = PUBLISH_FRAME_MAX - 600

/** Enough for hundreds at once; were it too short, commands would come again and none be lost. */
const ACKNOWLEDGEMENTS_MS = 200

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
  #consumingChannels: AMQPChannel[] = []
  #stopped = false
  #lastLoss = "not connected yet"
  #blockedReason: string | null = null
  #closed = false
  /** Queues that were warned of. */
  readonly #warned = new Set<string>()
  #paused = false
  #subscribed = false
  #closing: Promise<void> | null = null

  /** @param name how the two connections are called in the broker's own tools. */
  constructor(url: string, name: string) {
    this.#publishing = new Link(url, `${name} publish`, PUBLISH_FRAME_MAX, {
      setUp: (client) => this.#setUpPublishing(client),
      tearDown: () => Promise.resolve(),
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
      tearDown: () => this.#handOverAcknowledgements(),
      up: () => this.#up(),
      lost: (reason) => {
        this.#lastLoss = reason
        this.#consumers = []
        this.#consumingChannels = []
        this.#subscribed = false
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
    this.#paused = true
    this.#consuming.pause()
  }

  resumeConsuming(): void {
    this.#paused = false
    this.#consuming.resume()
    // A connection made in the meantime has no subscriptions: a new one begins with them.
    if (this.#consuming.up && !this.#subscribed) this.#consuming.reset("reading again")
  }

  async stopConsuming(): Promise<void> {
    this.#stopped = true
    this.#consuming.resume()
    const consumers = this.#consumers
    this.#consumers = []
    await Promise.allSettled(consumers.map((consumer) => consumer.cancel()))
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    this.#closed = true
    await Promise.all([this.#publishing.close(), this.#consuming.close()])
    for (const lane of this.#lanes) lane.detach()
    this.#changed()
  }

  /**
   * RabbitMQ may close a connection before it has read the acknowledgements on its channels, and a
   * channel of a quorum queue takes in many at once before it passes them on.
   */
  async #handOverAcknowledgements(): Promise<void> {
    await Bun.sleep(ACKNOWLEDGEMENTS_MS)
    await Promise.all(this.#consumingChannels.map((channel) => channel.close()))
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
    for (const [lane, channel] of opened) lane.attach(channel, this.#blockedReason !== null)
  }

  async #setUpConsuming(client: AMQPBaseClient): Promise<void> {
    await this.#declare(client, this.#setup.queues)
    if (this.#paused) return
    for (const subscription of this.#setup.subscriptions) {
      if (this.#stopped) return
      const channel = await client.channel()
      channel.onerror = (reason) => this.#consuming.reset(reason)
      this.#consumingChannels.push(channel)
      await channel.basicQos(subscription.prefetch)
      const consumer = await channel.basicConsume(
        subscription.queue,
        { noAck: false, exclusive: subscription.exclusive ?? false },
        (message) => subscription.deliver(new AmqpDelivery(subscription, message)),
      )
      if (this.#stopped) await consumer.cancel()
      else this.#consumers.push(consumer)
      // Rejects when the broker cancels the consumer, for example because its queue was deleted.
      consumer.wait().catch((error: unknown) => this.#consuming.reset(String(error)))
    }
    this.#subscribed = true
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
        if (this.#warned.has(queue.name)) continue
        this.#warned.add(queue.name)
        const message = `queue ${queue.name} exists with other arguments, used as it is: ${reason}`
        this.#listener?.warning(message)
      }
    }
    await channel?.close()
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

  attach(channel: AMQPChannel, blocked: boolean): void {
    this.#channel = channel
    this.#blocked = blocked
    this.#returned.clear()
    channel.onReturn = (message) => this.#returned.add(idOf(message.properties))
    if (!blocked) this.#listener.opened()
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
    if (message.checked !== true && !fitsFrame(properties)) {
      queueMicrotask(() => settled("unencodable"))
      return
    }
    channel.basicPublish(exchange, routingKey, body, properties, true).then(
      () =>
        settled(this.#returned.size > 0 && this.#returned.delete(id) ? "returned" : "confirmed"),
      (error: unknown) => settled(failure(error)),
    )
  }
}

/** The client rejects with plain messages; only this one tells a nack apart. */
function failure(error: unknown): PublishResult {
  return error instanceof Error && error.message === "Message rejected" ? "nacked" : "cut"
}

const propertyBuffer = new AMQPView(new ArrayBuffer(MAX_PROPERTY_BYTES))

/**
 * Whether the properties can be encoded in one frame. Asked beforehand: the client's own buffers grow
 * with the bodies they carried, and the broker closes the connection at a header frame too large.
 */
function fitsFrame(properties: ClientProperties): boolean {
  try {
    propertyBuffer.setProperties(0, properties ?? {})
    return true
  } catch {
    return false
  }
}

function idOf(properties: MessageProperties): string {
  return String(properties.headers?.[POST_ID_HEADER] ?? properties.messageId)
}

class AmqpDelivery implements Delivery {
  readonly queue: string
  readonly properties: MessageProperties
  readonly #message: AMQPMessage

  constructor(subscription: Subscription, message: AMQPMessage) {
    this.queue = subscription.queue
    this.properties = ownProperties(message.properties)
    this.#message = message
  }

  get body(): Uint8Array {
    return this.#message.body ?? EMPTY
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
