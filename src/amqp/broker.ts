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
  PublishChannel,
  PublishChannelListener,
  QueueDeclaration,
} from "../broker/broker.ts"
import { lowerLimit } from "../broker/prefetch.ts"
import { type BatchingClient, PUBLISH_FRAME_MAX } from "./client.ts"
import { AmqpConnection, type AmqpConnectionHooks } from "./connection.ts"
import { declareAll } from "./declarations.ts"
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
  #declareAgain: (() => Promise<void>) | null = null
  readonly #subscriptions = new Subscriptions({
    failed: (reason) => this.#consuming.reset(reason),
    lockedChanged: () => {
      const queue = this.#subscriptions.lockedQueue
      if (queue !== null) this.#warnOnce(`${queue} locked`, lockedMessage(queue))
      this.#up()
    },
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
        this.#declareAgain = null
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

  redeclare(): void {
    const declareAgain = this.#declareAgain
    if (declareAgain === null) return
    // Called for each returned message; one declaration at a time is enough.
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
    const shared = this.#setup.queues.filter(
      ({ exclusive, transient }) => !(exclusive || transient),
    )
    await this.#declare(client, shared)
    this.#declareAgain = () => this.#declare(client, shared)
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
    await this.#declare(client, this.#setup.queues)
    await this.#subscriptions.subscribe(client)
  }

  #declare(client: BatchingClient, queues: readonly QueueDeclaration[]): Promise<void> {
    return declareAll(client, this.#setup.exchanges, queues, (about, message) =>
      this.#warnOnce(about, message),
    )
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

function lockedMessage(queue: string): string {
  const whose = "an earlier one of this instance, or of another instance with this INSTANCE_ID"
  return `another connection uses ${queue} exclusively: ${whose}`
}
