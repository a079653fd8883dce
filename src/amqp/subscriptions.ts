/**
 * The subscriptions of one broker over AMQP: a channel each on the consuming connection, opened
 * again on each new connection.
 *
 *   none ──subscribe──► subscribed ──connection lost──► none
 *            │  └──queue in use elsewhere──► locked ──every `LOCKED_RETRY_MS`──► subscribed
 *            └──paused──► none, until it is resumed
 *
 * A locked queue delays no other subscription. The lock may belong to this client's previous
 * connection, whose loss the broker has not detected yet, or to another instance with the same
 * name. A quorum queue keeps the consumer of a partitioned node until that node is back. When this
 * client had the queue before and it stays locked for `STALE_CONSUMER_MS`, one consumer is taken
 * for such a stale one and does not prevent the subscription. Bound: the prefetch of each
 * subscription.
 */

import type { AMQPChannel } from "@cloudamqp/amqp-client"
import type { Subscription } from "../broker/broker.ts"
import { divided } from "../broker/prefetch.ts"
import { errorText } from "../errors.ts"
import type { BatchingClient } from "./client.ts"
import { Acknowledgements, AmqpDelivery } from "./delivery.ts"
import { QueueInUse, readBrokerError } from "./errors.ts"

const LOCKED_RETRY_MS = 1_000
/**
 * Longer than a broker needs to detect a reset connection, and short enough to wait for in a
 * partition.
 */
const STALE_CONSUMER_MS = 5_000
/**
 * Enough for hundreds at once. If it were too short, commands would be redelivered, and none lost.
 */
const ACKNOWLEDGEMENTS_MS = 200

export interface SubscriptionsHooks {
  /** A consumer or its channel has ended, so the caller must reconnect. */
  readonly failed: (reason: string) => void
  /** A queue has become locked, or no longer is. */
  readonly lockedChanged: () => void
}

export class Subscriptions {
  readonly #hooks: SubscriptionsHooks
  #wanted: readonly Subscription[] = []
  #client: BatchingClient | null = null
  #channels: AMQPChannel[] = []
  #consumers: { cancel(): Promise<unknown> }[] = []
  readonly #locked = new Set<Subscription>()
  /** Exclusive subscriptions that this client had on an earlier connection. */
  readonly #had = new Set<Subscription>()
  /** The time since which each is locked, over all connections, on a monotonic clock. */
  readonly #lockedSinceMs = new Map<Subscription, number>()
  /** Those that may have had deliveries on this connection. */
  readonly #subscribed = new Set<Subscription>()
  #retry: ReturnType<typeof setTimeout> | null = null
  #complete = false
  #paused = false
  #stopped = false
  /**
   * The limit of unacknowledged deliveries of all together, when the broker allows less than the
   * setup.
   */
  limit: number | null = null

  constructor(hooks: SubscriptionsHooks) {
    this.#hooks = hooks
  }

  /** A locked queue, or null. */
  get lockedQueue(): string | null {
    for (const { queue } of this.#locked) return queue
    return null
  }

  /** True when the connection has no subscriptions because it was made while paused. */
  get missing(): boolean {
    return !this.#complete
  }

  set paused(paused: boolean) {
    this.#paused = paused
  }

  /** The limit of unacknowledged deliveries of all together. */
  get prefetch(): number {
    return this.limit ?? this.#wanted.reduce((sum, { prefetch }) => sum + prefetch, 0)
  }

  want(subscriptions: readonly Subscription[]): void {
    this.#wanted = subscriptions
  }

  /** Subscribes on a new connection. A lock does not reject; any other failure does. */
  async subscribe(client: BatchingClient): Promise<void> {
    this.#client = client
    if (this.#paused) return
    for (const subscription of this.#wanted) await this.#subscribe(client, subscription)
    this.#complete = true
  }

  /** The connection is lost, with its channels and deliveries. */
  lost(): void {
    if (this.#retry !== null) clearTimeout(this.#retry)
    this.#retry = null
    this.#client = null
    this.#channels = []
    this.#consumers = []
    this.#complete = false
    this.#locked.clear()
    const subscribed = [...this.#subscribed]
    this.#subscribed.clear()
    // Later, because the loss may have been detected within a call of `acknowledge`.
    queueMicrotask(() => {
      for (const subscription of subscribed) subscription.lost?.()
    })
  }

  /** Cancels all consumers. Deliveries can still be acknowledged. */
  async stop(): Promise<void> {
    this.#stopped = true
    const consumers = this.#consumers
    this.#consumers = []
    await Promise.allSettled(consumers.map((consumer) => consumer.cancel()))
  }

  /**
   * RabbitMQ may close a connection before it has read the acknowledgements on its channels, and a
   * channel of a quorum queue takes in many at once before it passes them on.
   */
  async handOverAcknowledgements(): Promise<void> {
    await Bun.sleep(ACKNOWLEDGEMENTS_MS)
    await Promise.allSettled(this.#channels.map((channel) => channel.close()))
  }

  async #subscribe(client: BatchingClient, subscription: Subscription): Promise<void> {
    const { untilClose = false } = subscription
    if (this.#stopped && !untilClose) return
    const channel = await client.channel()
    let ended = (_reason: string): void => undefined
    channel.onerror = (reason) => ended(reason)
    const prefetch = this.#prefetchOf(subscription)
    await channel.basicQos(prefetch)
    const { exclusive = false } = subscription
    const options = { noAck: false, exclusive }
    try {
      const stale = exclusive && this.#hasStaleConsumer(subscription) ? 1 : 0
      if (exclusive) await refuseOthers(channel, subscription.queue, stale)
      let cancelled = false
      let began = false
      const acknowledgements = new Acknowledgements(client, channel, prefetch)
      this.#subscribed.add(subscription)
      client.take(channel.id, {
        content: (content) => {
          // The broker redelivers what cannot be acknowledged, and deliveries of a consumer that
          // was cancelled at once.
          if (channel.closed || (this.#stopped && !began && !untilClose)) return
          const delivery = new AmqpDelivery(subscription.queue, acknowledgements, content)
          subscription.deliver(delivery, prefetch)
        },
        cancelled: () => {
          cancelled = true
        },
      })
      const consumer = await channel.basicConsume(subscription.queue, options, () => undefined)
      // Cancelled before the client processed consume-ok: it has no registered consumer and would
      // report nothing.
      if (cancelled || channel.closed) throw new Error(`${subscription.queue}: cancelled at once`)
      if (exclusive) {
        // Another consumer may have started meanwhile. Then both leave, and the first to return
        // stays.
        await refuseOthers(channel, subscription.queue, stale + 1).catch((error: unknown) =>
          consumer.cancel().then(() => Promise.reject(error)),
        )
      }
      ended = this.#hooks.failed
      began = !this.#stopped
      this.#channels.push(channel)
      if (exclusive) this.#had.add(subscription)
      this.#lockedSinceMs.delete(subscription)
      if (untilClose) {
        // `stop` does not cancel these.
      } else if (this.#stopped) await consumer.cancel()
      else this.#consumers.push(consumer)
      // Rejects when the broker cancels the consumer, for example because its queue was deleted.
      consumer.wait().catch((error: unknown) => this.#hooks.failed(String(error)))
    } catch (error) {
      if (!isLocked(error)) throw error
      // A lock may have closed the channel or not.
      if (!channel.closed) await channel.close()
      // Deliveries before the lock was detected are lost with the channel.
      if (this.#subscribed.delete(subscription)) queueMicrotask(() => subscription.lost?.())
      if (!this.#lockedSinceMs.has(subscription)) {
        this.#lockedSinceMs.set(subscription, performance.now())
      }
      if (!this.#locked.has(subscription)) {
        this.#locked.add(subscription)
        this.#hooks.lockedChanged()
      }
      const retryMs = LOCKED_RETRY_MS * (0.5 + Math.random())
      this.#retry ??= setTimeout(() => this.#retryLocked(), retryMs)
      return
    }
    if (this.#locked.delete(subscription)) this.#hooks.lockedChanged()
  }

  #hasStaleConsumer(subscription: Subscription): boolean {
    const sinceMs = this.#lockedSinceMs.get(subscription) ?? Number.POSITIVE_INFINITY
    return this.#had.has(subscription) && performance.now() - sinceMs >= STALE_CONSUMER_MS
  }

  #prefetchOf(subscription: Subscription): number {
    if (this.limit === null) return subscription.prefetch
    const weights = this.#wanted.map(({ prefetch }) => prefetch)
    return divided(this.limit, weights)[this.#wanted.indexOf(subscription)] ?? 1
  }

  #retryLocked(): void {
    const client = this.#client
    this.#retry = null
    if (client === null) return
    for (const subscription of this.#locked) {
      this.#subscribe(client, subscription).catch((error: unknown) =>
        this.#hooks.failed(String(error)),
      )
    }
  }
}

function isLocked(error: unknown): boolean {
  return error instanceof QueueInUse || readBrokerError(errorText(error)).kind === "locked"
}

/** Quorum queues allow other consumers beside an exclusive one, so consumers are counted. */
async function refuseOthers(channel: AMQPChannel, queue: string, max: number): Promise<void> {
  const { consumerCount } = await channel.queueDeclare(queue, { passive: true })
  if (consumerCount > max) throw new QueueInUse(queue)
}
