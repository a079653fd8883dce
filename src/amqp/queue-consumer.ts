/**
 * The consumer of one subscription: a channel with one consumer on the present connection, opened
 * again on each later one.
 *
 *   none ──open──► consuming ──connection lost, or channel closed──► none
 *            └──queue in use elsewhere──► locked ──open──► consuming, or still locked
 *   any ──close──► closed
 *
 * A lock may belong to this client's previous connection, whose loss the broker has not detected
 * yet, or to another client. A quorum queue keeps the consumer of a partitioned node until that
 * node is back. When this client had the queue before and it stays locked for `STALE_CONSUMER_MS`,
 * one consumer is taken for such a stale one and does not prevent the subscription. Bound: the
 * prefetch. Any other failure rejects `open`.
 */

import type { AMQPChannel } from "@cloudamqp/amqp-client"
import type { Subscription } from "../broker/broker.ts"
import { errorText } from "../errors.ts"
import type { BatchingClient } from "./client.ts"
import { Acknowledgements, AmqpDelivery } from "./delivery.ts"
import { QueueInUse, readBrokerError } from "./errors.ts"

/**
 * Longer than a broker needs to detect a reset connection, and short enough to wait for in a
 * partition.
 */
export const STALE_CONSUMER_MS = 5_000

export class QueueConsumer {
  readonly subscription: Subscription
  readonly #ended: (reason: string) => void
  #channel: AMQPChannel | null = null
  #consumer: { cancel(): Promise<unknown> } | null = null
  #prefetch = 0
  #locked = false
  /** The time since which the queue is locked, over all connections, on a monotonic clock. */
  #lockedSinceMs: number | null = null
  /** This client consumed an exclusive queue on an earlier connection. */
  #had = false
  /** There may have been deliveries on this connection. */
  #subscribed = false
  #stopped = false
  /** The consumer began before it was stopped. */
  #began = false
  #closed = false
  #retry: ReturnType<typeof setTimeout> | null = null

  /** @param ended called when the broker has cancelled the consumer or closed its channel. */
  constructor(subscription: Subscription, ended: (reason: string) => void) {
    this.subscription = subscription
    this.#ended = ended
  }

  get queue(): string {
    return this.subscription.queue
  }

  /** The limit of unacknowledged deliveries on this connection; 0 without a channel. */
  get prefetch(): number {
    return this.#prefetch
  }

  get locked(): boolean {
    return this.#locked
  }

  /** The queue has been locked for so long that its consumer may be stale. */
  get lockedForLong(): boolean {
    const sinceMs = this.#lockedSinceMs ?? Number.POSITIVE_INFINITY
    return performance.now() - sinceMs >= STALE_CONSUMER_MS
  }

  /** True when `open` does nothing. */
  get stopped(): boolean {
    return this.#stopped || this.#closed
  }

  /** Consumes on a connection. Afterwards the queue may be `locked`; any other failure rejects. */
  async open(client: BatchingClient, prefetch: number): Promise<void> {
    if (this.stopped) return
    this.#prefetch = prefetch
    this.#began = false
    const channel = await client.channel()
    if (this.#closed) return channel.close()
    this.#channel = channel
    let ended = (_reason: string): void => undefined
    channel.onerror = (reason) => ended(reason)
    try {
      const consumer = await this.#consume(client, channel, prefetch)
      ended = (reason) => {
        if (this.#channel === channel) this.#ended(reason)
      }
      // Rejects when the broker cancels the consumer, for example because its queue was deleted.
      consumer.wait().catch((error: unknown) => ended(String(error)))
      this.#had = this.subscription.exclusive === true
      this.#lockedSinceMs = null
      this.#locked = false
      this.#began = !this.#stopped
      if (this.#began) this.#consumer = consumer
      else await consumer.cancel()
    } catch (error) {
      if (this.#closed) return
      if (!isLocked(error)) throw error
      this.#locked = true
      this.#lockedSinceMs ??= performance.now()
      // A lock may have closed the channel or not.
      await this.drop()
    }
  }

  /** Calls `act` later, unless the connection is lost or the consumer closed before. */
  retryLater(act: () => unknown, delayMs: number): void {
    this.#clearRetry()
    this.#retry = setTimeout(act, delayMs * (0.5 + Math.random()))
  }

  /** Cancels the consumer, now and on later connections. Deliveries can still be acknowledged. */
  async stop(): Promise<void> {
    if (this.subscription.untilClose === true) return
    this.#stopped = true
    const consumer = this.#consumer
    this.#consumer = null
    await consumer?.cancel()
  }

  /** The connection is lost, with its channels and deliveries. */
  lost(): void {
    this.#clearRetry()
    this.#locked = false
    this.#forget()
  }

  /** Closes the channel, with its deliveries. `open` opens another. */
  async drop(): Promise<void> {
    const channel = this.#channel
    this.#forget()
    await closeChannel(channel)
  }

  /** Drops the channel for good. */
  close(): void {
    this.#closed = true
    this.#clearRetry()
    this.drop().catch(() => undefined)
  }

  /** Closes the channel before its connection is closed. */
  closeChannel(): Promise<void> {
    return closeChannel(this.#channel)
  }

  async #consume(client: BatchingClient, channel: AMQPChannel, prefetch: number) {
    const { queue, exclusive = false, mayRepeat = false, deliver } = this.subscription
    await channel.basicQos(prefetch)
    const stale = exclusive && this.#had && this.lockedForLong ? 1 : 0
    if (exclusive) await refuseOthers(channel, queue, stale)
    let cancelled = false
    const acknowledgements = new Acknowledgements(client, channel, prefetch, mayRepeat)
    this.#subscribed = true
    client.take(channel.id, {
      content: (content) => {
        // The broker redelivers what cannot be acknowledged, and deliveries of a consumer that
        // was cancelled at once.
        if (channel.closed || (this.#stopped && !this.#began)) return
        deliver(new AmqpDelivery(queue, acknowledgements, content), prefetch)
      },
      cancelled: () => {
        cancelled = true
      },
    })
    const consumer = await channel.basicConsume(queue, { noAck: false, exclusive }, () => undefined)
    // Cancelled before the client processed consume-ok: it has no registered consumer and would
    // report nothing.
    if (cancelled || channel.closed) throw new Error(`${queue}: cancelled at once`)
    if (exclusive) {
      // Another consumer may have started meanwhile. Then both leave, and the first to return
      // stays.
      await refuseOthers(channel, queue, stale + 1).catch((error: unknown) =>
        consumer.cancel().then(() => Promise.reject(error)),
      )
    }
    return consumer
  }

  /** The channel is gone, or is about to be closed. */
  #forget(): void {
    this.#channel = null
    this.#consumer = null
    this.#prefetch = 0
    if (!this.#subscribed) return
    this.#subscribed = false
    // Later, because the loss may have been detected within a call of `acknowledge`.
    queueMicrotask(() => this.subscription.lost?.())
  }

  #clearRetry(): void {
    if (this.#retry !== null) clearTimeout(this.#retry)
    this.#retry = null
  }
}

async function closeChannel(channel: AMQPChannel | null): Promise<void> {
  if (channel !== null && !channel.closed) await channel.close()
}

function isLocked(error: unknown): boolean {
  return error instanceof QueueInUse || readBrokerError(errorText(error)).kind === "locked"
}

/** Quorum queues allow other consumers beside an exclusive one, so consumers are counted. */
async function refuseOthers(channel: AMQPChannel, queue: string, max: number): Promise<void> {
  const { consumerCount } = await channel.queueDeclare(queue, { passive: true })
  if (consumerCount > max) throw new QueueInUse(queue)
}
