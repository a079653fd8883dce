/**
 * The subscriptions of one broker over AMQP, those of the setup and those that were made at run
 * time: a consumer each on the consuming connection (`queue-consumer.ts`), on each new connection.
 *
 *   setup     subscribe ─► open ─┬─ locked ────► again every `LOCKED_RETRY_MS`
 *                                └─ failed ────► the connection is dropped
 *   run time  add ─► declare ─► open ─┬─ locked ────► again every `LOCKED_RETRY_MS`
 *                                     └─ failed ────► warning, again every `FAILED_RETRY_MS`
 *
 * A locked queue delays no other subscription, and a failure at run time disturbs none. A
 * connection that is opened while consuming is paused has no subscriptions; consuming resumes on
 * the next connection. Bound: the prefetch of each subscription, and `limit` for all together.
 */

import type { QueueDeclaration, Subscription } from "../broker/broker.ts"
import { divided } from "../broker/prefetch.ts"
import { errorText } from "../errors.ts"
import type { BatchingClient } from "./client.ts"
import type { Warn } from "./declarations.ts"
import { readBrokerError } from "./errors.ts"
import { QueueConsumer } from "./queue-consumer.ts"

const LOCKED_RETRY_MS = 1_000
const FAILED_RETRY_MS = 2_000
/**
 * Enough for hundreds at once. If it were too short, commands would be redelivered, and none lost.
 */
const ACKNOWLEDGEMENTS_MS = 200

export interface SubscriptionsHooks {
  /** The caller must reconnect. */
  readonly failed: (reason: string) => void
  /** A queue of the setup has become locked, or no longer is. */
  readonly lockedChanged: () => void
  readonly declare: (client: BatchingClient, queue: QueueDeclaration) => Promise<void>
  readonly warn: Warn
}

interface RunTimeSubscription {
  readonly queue: QueueDeclaration
  readonly consumer: QueueConsumer
}

export class Subscriptions {
  readonly #hooks: SubscriptionsHooks
  #setup: readonly QueueConsumer[] = []
  readonly #atRunTime = new Map<string, RunTimeSubscription>()
  /** Null when no subscription may be opened. */
  #client: BatchingClient | null = null
  #paused = false
  #stopped = false
  /**
   * The limit of unacknowledged deliveries of all together, when the broker allows less than the
   * subscriptions.
   */
  limit: number | null = null

  constructor(hooks: SubscriptionsHooks) {
    this.#hooks = hooks
  }

  /** A locked queue of the setup, or null. */
  get lockedQueue(): string | null {
    return this.#setup.find(({ locked }) => locked)?.queue ?? null
  }

  /** True when the connection has no subscriptions because it was made while paused. */
  get missing(): boolean {
    return this.#client === null
  }

  set paused(paused: boolean) {
    this.#paused = paused
  }

  /** The limit of unacknowledged deliveries of all together. */
  get prefetch(): number {
    return this.limit ?? sum(this.#consumers.map(({ subscription }) => subscription.prefetch))
  }

  /** The queues of the subscriptions that were made at run time. */
  get queuesAtRunTime(): QueueDeclaration[] {
    return [...this.#atRunTime.values()].map(({ queue }) => queue)
  }

  want(subscriptions: readonly Subscription[]): void {
    this.#setup = subscriptions.map((each) => this.#consumerOf(each, this.#hooks.failed))
  }

  /** @throws when the queue has a subscription that was made at run time. */
  add(queue: QueueDeclaration, subscription: Subscription): void {
    const { name } = queue
    if (this.#atRunTime.has(name)) throw new Error(`${name} has a subscription`)
    const consumer = this.#consumerOf(subscription, (reason) =>
      // Later, because a connection that is lost ends its channels before it is known to be lost.
      queueMicrotask(() => this.#failedAtRunTime(added, this.#client, reason)),
    )
    const added = { queue, consumer }
    this.#atRunTime.set(name, added)
    void this.#openAtRunTime(added)
  }

  remove(queue: string): void {
    this.#atRunTime.get(queue)?.consumer.close()
    this.#atRunTime.delete(queue)
  }

  /**
   * Subscribes on a new connection. A lock does not reject, nor does a subscription that was made
   * at run time; any other failure does.
   */
  async subscribe(client: BatchingClient): Promise<void> {
    if (this.#paused) return
    this.#client = client
    // One that is added meanwhile opens itself.
    const atRunTime = [...this.#atRunTime.values()]
    for (const consumer of this.#setup) await this.#open(client, consumer)
    for (const added of atRunTime) void this.#openAtRunTime(added)
  }

  /** The connection is lost, with its channels and deliveries. */
  lost(): void {
    this.#client = null
    for (const consumer of this.#consumers) consumer.lost()
  }

  /** Cancels all consumers. Deliveries can still be acknowledged. */
  async stop(): Promise<void> {
    this.#stopped = true
    await Promise.allSettled(this.#consumers.map((consumer) => consumer.stop()))
  }

  /** Opens no more subscriptions. */
  close(): void {
    this.#client = null
  }

  /**
   * RabbitMQ may close a connection before it has read the acknowledgements on its channels, and a
   * channel of a quorum queue takes in many at once before it passes them on.
   */
  async handOverAcknowledgements(): Promise<void> {
    await Bun.sleep(ACKNOWLEDGEMENTS_MS)
    await Promise.allSettled(this.#consumers.map((consumer) => consumer.closeChannel()))
  }

  get #consumers(): QueueConsumer[] {
    return [...this.#setup, ...[...this.#atRunTime.values()].map(({ consumer }) => consumer)]
  }

  #consumerOf(subscription: Subscription, ended: (reason: string) => void): QueueConsumer {
    const consumer = new QueueConsumer(subscription, ended)
    if (this.#stopped) void consumer.stop()
    return consumer
  }

  async #open(client: BatchingClient, consumer: QueueConsumer): Promise<void> {
    const wasLocked = consumer.locked
    await consumer.open(client, this.#shareOf(consumer))
    if (consumer.locked !== wasLocked) this.#hooks.lockedChanged()
    if (!consumer.locked) return
    const again = () =>
      this.#open(client, consumer).catch((error: unknown) => this.#hooks.failed(String(error)))
    consumer.retryLater(again, LOCKED_RETRY_MS)
  }

  async #openAtRunTime(added: RunTimeSubscription): Promise<void> {
    const client = this.#client
    const { queue, consumer } = added
    if (client === null || consumer.stopped) return
    try {
      await this.#hooks.declare(client, queue)
      if (this.#client !== client) return
      const share = this.#shareOf(consumer)
      if (this.#exceedsLimit(share)) {
        this.#hooks.failed(`dividing the prefetch again, with ${queue.name}`)
        return
      }
      await consumer.open(client, share)
    } catch (error) {
      this.#failedAtRunTime(added, client, errorText(error))
      return
    }
    if (!consumer.locked) return
    if (consumer.lockedForLong) {
      const message = `${queue.name} is not consumed: another connection uses it exclusively`
      this.#hooks.warn(`${queue.name} locked`, message)
    }
    consumer.retryLater(() => this.#openAtRunTime(added), LOCKED_RETRY_MS)
  }

  #failedAtRunTime(added: RunTimeSubscription, client: BatchingClient | null, reason: string) {
    const { queue, consumer } = added
    // With the connection, each subscription is opened again.
    if (client === null || this.#client !== client || consumer.stopped) return
    const message = `${queue.name} is not consumed, trying again every few seconds: ${reason}`
    this.#hooks.warn(`${queue.name} ${readBrokerError(reason).kind}`, message)
    consumer.drop().catch(() => undefined)
    consumer.retryLater(() => this.#openAtRunTime(added), FAILED_RETRY_MS)
  }

  /**
   * True when the others hold too much of `limit` for a new consumer, because they were opened
   * before it came. AMQP cannot lower the prefetch of a consumer, so the connection is made again.
   */
  #exceedsLimit(share: number): boolean {
    const consumers = this.#consumers
    if (this.limit === null || consumers.length > this.limit) return false
    return sum(consumers.map(({ prefetch }) => prefetch)) + share > this.limit
  }

  #shareOf(consumer: QueueConsumer): number {
    if (this.limit === null) return consumer.subscription.prefetch
    const consumers = this.#consumers
    const weights = consumers.map(({ subscription }) => subscription.prefetch)
    return divided(this.limit, weights)[consumers.indexOf(consumer)] ?? 1
  }
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, number) => total + number, 0)
}
