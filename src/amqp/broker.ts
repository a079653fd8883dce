/**
 * The broker port over AMQP 0-9-1, for RabbitMQ and compatible brokers.
 *
 * It has two connections, so that commands are consumed while publishing is blocked: one with a
 * channel for each publish channel, one with a channel for each subscription. Queues are declared
 * on both before use. A queue that exists with other arguments is used as it is.
 *
 * It retries no message: a message that a lost connection leaves unconfirmed is reported as "cut",
 * and its publisher decides. Bounds: the prefetch of each subscription; publish channels are
 * bounded by their publishers.
 */

import type { AMQPChannel } from "@cloudamqp/amqp-client"
import type {
  Broker,
  BrokerListener,
  BrokerSetup,
  BrokerState,
  ExchangeDeclaration,
  PublishChannel,
  PublishChannelListener,
  QueueDeclaration,
  Subscription,
} from "../broker/broker.ts"
import { lowerLimit } from "../broker/prefetch.ts"
import { errorText } from "../errors.ts"
import { type BatchingClient, PUBLISH_FRAME_MAX } from "./client.ts"
import { AmqpConnection, type AmqpConnectionHooks } from "./connection.ts"
import { declareAll, queueExists } from "./declarations.ts"
import { readBrokerError } from "./errors.ts"
import { AmqpPublishChannel } from "./publish-channel.ts"
import { Subscriptions } from "./subscriptions.ts"

/**
 * Larger than the 131,072 bytes that RabbitMQ negotiates: a header frame is never split, and
 * dead-lettering adds headers. A header frame that does not fit would break each new connection.
 */
const CONSUME_FRAME_MAX = 262_144

/** The part of a publish channel that its broker uses. */
type AttachableChannel = Pick<
  AmqpPublishChannel<unknown>,
  "attach" | "detach" | "block" | "unblock"
>

export class AmqpBroker implements Broker {
  readonly #publishing: AmqpConnection
  readonly #consuming: AmqpConnection
  readonly #publishChannels: AttachableChannel[] = []
  #setup: BrokerSetup = { exchanges: [], queues: [], subscriptions: [] }
  #listener: BrokerListener | null = null
  /** The client of the publishing connection. */
  #client: BatchingClient | null = null
  #redeclaring: BatchingClient | null = null
  /** The queues of `declare`, by name. */
  readonly #declared = new Map<string, QueueDeclaration>()
  readonly #subscriptions = new Subscriptions({
    failed: (reason) => this.#consuming.reset(reason),
    lockedChanged: () => {
      const queue = this.#subscriptions.lockedQueue
      if (queue !== null) this.#warnOnce(`${queue} locked`, lockedMessage(queue))
      this.#up()
    },
    declare: (client, queue) => this.#declare(client, [], [queue]),
    warn: (about, message) => this.#warnOnce(about, message),
  })
  #lastLoss = "not connected yet"
  #blockedReason: string | null = null
  #closed = false
  /** The subjects of past warnings. */
  readonly #warned = new Set<string>()
  #closing: Promise<void> | null = null

  /**
   * @param url one or several URLs of nodes of one broker. The two connections may be to different
   * nodes.
   * @param name the name of both connections in the broker's tools.
   * @param ca PEM; the only trusted CAs for `amqps:`. Null: the CAs of the system.
   * @param gatherMs the longest time for which a message waits for later ones; 0 for none.
   */
  constructor(
    url: string | readonly string[],
    name: string,
    ca: string | null = null,
    gatherMs = 0,
  ) {
    const urls = typeof url === "string" ? [url] : url
    const publishHooks: AmqpConnectionHooks = {
      setUp: (client) => this.#setUpPublishing(client),
      tearDown: () => Promise.resolve(),
      up: () => {
        this.#consuming.start()
        this.#up()
      },
      lost: (reason) => {
        this.#lastLoss = reason
        this.#blockedReason = null
        this.#client = null
        for (const publishChannel of this.#publishChannels) publishChannel.detach()
        this.#changed()
      },
      blocked: (reason) => {
        this.#blockedReason = reason
        for (const publishChannel of this.#publishChannels) publishChannel.block()
        this.#changed()
      },
      unblocked: () => {
        this.#blockedReason = null
        for (const publishChannel of this.#publishChannels) publishChannel.unblock()
        this.#changed()
      },
    }
    const consumeHooks: AmqpConnectionHooks = {
      setUp: (client) => this.#setUpConsuming(client),
      tearDown: () => this.#subscriptions.handOverAcknowledgements(),
      up: () => this.#up(),
      lost: (reason) => {
        this.#lastLoss = reason
        this.#lowerPrefetch(reason)
        this.#subscriptions.lost()
        this.#changed()
      },
      blocked: () => undefined,
      unblocked: () => undefined,
    }
    const options = { urls, ca, gatherMs }
    this.#publishing = new AmqpConnection(
      { ...options, name: `${name} publish`, frameMax: PUBLISH_FRAME_MAX },
      publishHooks,
    )
    this.#consuming = new AmqpConnection(
      { ...options, name: `${name} consume`, frameMax: CONSUME_FRAME_MAX },
      consumeHooks,
    )
  }

  get state(): BrokerState {
    if (this.#closed) return { kind: "closed" }
    if (!this.#publishing.up || !this.#consuming.up) return { kind: "away", reason: this.#lastLoss }
    const locked = this.#subscriptions.lockedQueue
    if (locked !== null) return { kind: "away", reason: lockedMessage(locked) }
    if (this.#blockedReason !== null) return { kind: "blocked", reason: this.#blockedReason }
    return { kind: "ready" }
  }

  start(setup: BrokerSetup, listener: BrokerListener): void {
    this.#setup = setup
    this.#subscriptions.want(setup.subscriptions)
    this.#listener = listener
    // The other connection follows when the queues are declared: in RabbitMQ a consumer may fail on
    // a quorum queue that is being declared.
    this.#publishing.start()
  }

  publishChannel<T>(listener: PublishChannelListener<T>): PublishChannel<T> {
    const publishChannel = new AmqpPublishChannel(listener)
    this.#publishChannels.push(publishChannel)
    return publishChannel
  }

  subscribe(queue: QueueDeclaration, subscription: Subscription): void {
    this.#subscriptions.add(queue, subscription)
  }

  unsubscribe(queueName: string): void {
    this.#subscriptions.remove(queueName)
  }

  async exists(queueName: string): Promise<boolean> {
    return queueExists(this.#connected(), queueName)
  }

  async declare(queue: QueueDeclaration): Promise<void> {
    await this.#declare(this.#connected(), [], [queue])
    this.#declared.set(queue.name, queue)
  }

  redeclare(): void {
    const client = this.#client
    // Called for each returned message; one declaration at a time is enough.
    if (client === null || this.#redeclaring === client) return
    this.#redeclaring = client
    this.#declareShared(client).then(
      () => {
        if (this.#redeclaring === client) this.#redeclaring = null
      },
      (error: unknown) => {
        if (this.#client === client) this.reset(String(error))
      },
    )
  }

  reset(reason: string): void {
    this.#publishing.reset(reason)
  }

  pauseConsuming(): void {
    this.#subscriptions.paused = true
    this.#consuming.pause()
  }

  resumeConsuming(): void {
    this.#subscriptions.paused = false
    this.#consuming.resume()
    // A connection that was made while paused has no subscriptions, so a new one is made.
    if (this.#consuming.up && this.#subscriptions.missing) this.#consuming.reset("reading again")
  }

  stopConsuming(): Promise<void> {
    this.#consuming.resume()
    return this.#subscriptions.stop()
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    this.#closed = true
    this.#client = null
    this.#subscriptions.close()
    await Promise.all([this.#publishing.close(), this.#consuming.close()])
    for (const publishChannel of this.#publishChannels) publishChannel.detach()
    this.#changed()
  }

  #up(): void {
    // The state changes when both connections are up.
    if (this.#publishing.up && this.#consuming.up) this.#changed()
  }

  #changed(): void {
    this.#listener?.stateChanged(this.state)
  }

  async #setUpPublishing(client: BatchingClient): Promise<void> {
    this.#client = client
    await this.#declareShared(client)
    const opened: [AttachableChannel, AMQPChannel][] = []
    for (const publishChannel of this.#publishChannels) {
      const channel = await client.channel()
      await channel.confirmSelect()
      channel.onerror = (reason) => this.#publishing.reset(reason)
      opened.push([publishChannel, channel])
    }
    for (const [publishChannel, channel] of opened)
      publishChannel.attach(client, channel, this.#blockedReason !== null)
  }

  async #setUpConsuming(client: BatchingClient): Promise<void> {
    await this.#declare(client, this.#setup.exchanges, this.#setup.queues)
    await this.#subscriptions.subscribe(client)
  }

  #connected(): BatchingClient {
    const client = this.#publishing.up ? this.#client : null
    if (client === null) throw new Error(`not connected: ${this.#lastLoss}`)
    return client
  }

  /** Declares what both connections use. A queue of the setup that cannot be declared rejects. */
  async #declareShared(client: BatchingClient): Promise<void> {
    await this.#declare(client, this.#setup.exchanges, this.#setup.queues.filter(isShared))
    const atRunTime = [...this.#declared.values(), ...this.#subscriptions.queuesAtRunTime]
    for (const queue of atRunTime.filter(isShared)) {
      try {
        await this.#declare(client, [], [queue])
      } catch (error) {
        // A lost connection is not a refusal.
        if (this.#client !== client) throw error
        this.#warnOnce(`${queue.name} undeclared`, errorText(error))
      }
    }
  }

  #declare(
    client: BatchingClient,
    exchanges: readonly ExchangeDeclaration[],
    queues: readonly QueueDeclaration[],
  ): Promise<void> {
    return declareAll(client, exchanges, queues, (about, message) => this.#warnOnce(about, message))
  }

  /**
   * After the broker closed a connection for too many unacknowledged messages: lowers the limit of
   * the next connections.
   */
  #lowerPrefetch(reason: string): void {
    const error = readBrokerError(reason)
    if (error.kind !== "too_many_unacknowledged") return
    const { prefetch } = this.#subscriptions
    const limit = lowerLimit(prefetch, error.limit)
    this.#subscriptions.limit = limit
    const advice = `at most ${limit} unacknowledged messages from now on, not ${prefetch}: set PREFETCH=${limit}`
    this.#warnOnce(`${limit} unacknowledged`, `${reason}; ${advice}`)
  }

  #warnOnce(about: string, message: string): void {
    if (this.#warned.has(about)) return
    this.#warned.add(about)
    this.#listener?.warning(message)
  }
}

/** False for a queue of the consuming connection only. */
function isShared({ exclusive = false, transient = false }: QueueDeclaration): boolean {
  return !(exclusive || transient)
}

function lockedMessage(queue: string): string {
  const whose = "an earlier one of this instance, or of another instance with this INSTANCE_ID"
  return `another connection uses ${queue} exclusively: ${whose}`
}
