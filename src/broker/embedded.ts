/**
 * The embedded broker: the broker port in memory, for trying the gateway and for fast tests, in one
 * process.
 *
 * It has RabbitMQ's default, fanout and direct exchanges, mandatory messages, confirms, prefetch,
 * redelivery, expiration of messages, and dead-lettering. It stores nothing on disk and serves no
 * other process. Bound: `MAX_QUEUE_MESSAGES` messages a queue. Beyond it the oldest message is
 * dropped, as in a queue with `x-max-length`, with one warning a queue.
 */

import type {
  Broker,
  BrokerListener,
  BrokerSetup,
  BrokerState,
  Delivery,
  MessageProperties,
  OutgoingMessage,
  PublishChannel,
  PublishChannelListener,
  PublishResult,
  QueueDeclaration,
  Subscription,
} from "./broker.ts"

const MAX_QUEUE_MESSAGES = 10_000

interface StoredMessage {
  readonly body: Uint8Array
  readonly properties: MessageProperties
  readonly expiresAtMs: number
  redelivered: boolean
}

interface Consumer {
  readonly subscription: Subscription
  readonly unacknowledged: Set<StoredMessage>
  /** Its subscription has ended, and its deliveries are lost. */
  ended: boolean
}

interface Queue {
  readonly name: string
  readonly deadLetterTo: string | null
  readonly messageTtlMs: number
  messages: StoredMessage[]
  consumers: Consumer[]
  nextConsumer: number
  dropped: number
}

interface RunTimeSubscription {
  readonly queue: QueueDeclaration
  readonly subscription: Subscription
  /** Null before the start, and when consuming was stopped before. */
  consumer: Consumer | null
}

/** Receives a copy of each message that arrives in a queue. */
export type Tap = (body: Uint8Array, properties: MessageProperties) => void

export class EmbeddedBroker implements Broker {
  readonly #nowMs: () => number
  readonly #queues = new Map<string, Queue>()
  /**
   * The queues of each exchange, by routing key; none for a topic exchange, which has no consumers
   * in this process.
   */
  readonly #exchanges = new Map<string, Map<string, Queue[]>>()
  readonly #taps = new Map<string, Set<Tap>>()
  readonly #publishers: { opened(): void }[] = []
  /** The subscriptions that were made at run time, by queue. */
  readonly #atRunTime = new Map<string, RunTimeSubscription>()
  #listener: BrokerListener | null = null
  #state: BrokerState = { kind: "away", reason: "not started" }
  #sweep: ReturnType<typeof setInterval> | null = null
  #paused = false
  #stopped = false

  constructor(nowMs: () => number = Date.now) {
    this.#nowMs = nowMs
  }

  get state(): BrokerState {
    return this.#state
  }

  start(setup: BrokerSetup, listener: BrokerListener): void {
    this.#listener = listener
    for (const { name } of setup.exchanges) this.#exchanges.set(name, new Map())
    for (const queue of setup.queues) this.#declare(queue)
    for (const subscription of setup.subscriptions) this.#consume(subscription)
    for (const added of this.#atRunTime.values()) this.#begin(added)
    this.#sweep = setInterval(() => this.#expire(), 100)
    this.#sweep.unref()
    // Later, as with a real connection.
    queueMicrotask(() => {
      if (this.#state.kind === "closed") return
      this.#state = { kind: "ready" }
      for (const publisher of this.#publishers) publisher.opened()
      this.#listener?.stateChanged(this.#state)
    })
  }

  publishChannel<T>(listener: PublishChannelListener<T>): PublishChannel<T> {
    this.#publishers.push(listener)
    return new EmbeddedPublishChannel(this, listener)
  }

  subscribe(queue: QueueDeclaration, subscription: Subscription): void {
    if (this.#atRunTime.has(queue.name)) throw new Error(`${queue.name} has a subscription`)
    const added = { queue, subscription, consumer: null }
    this.#atRunTime.set(queue.name, added)
    if (this.#listener !== null) this.#begin(added)
  }

  unsubscribe(queueName: string): void {
    const consumer = this.#atRunTime.get(queueName)?.consumer ?? null
    this.#atRunTime.delete(queueName)
    const queue = this.#queues.get(queueName)
    if (consumer === null || queue === undefined) return
    queue.consumers = queue.consumers.filter((each) => each !== consumer)
    const returned = [...consumer.unacknowledged]
    for (const message of returned) message.redelivered = true
    queue.messages.unshift(...returned)
    consumer.unacknowledged.clear()
    consumer.ended = true
    queueMicrotask(() => consumer.subscription.lost?.())
    this.#deliver(queue)
  }

  async exists(queueName: string): Promise<boolean> {
    this.#requireConnection()
    return this.#queues.has(queueName)
  }

  async declare(queue: QueueDeclaration): Promise<void> {
    this.#requireConnection()
    this.#declare(queue)
  }

  redeclare(): void {}

  reset(): void {}

  pauseConsuming(): void {
    this.#paused = true
  }

  resumeConsuming(): void {
    this.#paused = false
    for (const queue of this.#queues.values()) this.#deliver(queue)
  }

  /** Calls `tap` for the next messages of these queues. Returns a function that ends this. */
  tap(queues: readonly string[], tap: Tap): () => void {
    for (const queue of queues) {
      const taps = this.#taps.get(queue) ?? new Set()
      this.#taps.set(queue, taps.add(tap))
    }
    return () => {
      for (const queue of queues) this.#taps.get(queue)?.delete(tap)
    }
  }

  /** Deliveries stay unacknowledged and can still be acknowledged. */
  stopConsuming(): Promise<void> {
    this.#stopped = true
    for (const queue of this.#queues.values()) {
      queue.consumers = queue.consumers.filter(({ subscription }) => subscription.untilClose)
    }
    return Promise.resolve()
  }

  close(): Promise<void> {
    if (this.#state.kind === "closed") return Promise.resolve()
    this.#state = { kind: "closed" }
    if (this.#sweep !== null) clearInterval(this.#sweep)
    for (const queue of this.#queues.values()) queue.consumers = []
    this.#listener?.stateChanged(this.#state)
    return Promise.resolve()
  }

  /** Stores one message for `EmbeddedPublishChannel`. */
  store({ exchange, routingKey, body, properties, mandatory }: OutgoingMessage): PublishResult {
    const queues =
      exchange === "" ? this.#byName(routingKey) : this.#exchanges.get(exchange)?.get(routingKey)
    if (queues === undefined || queues.length === 0) {
      return mandatory === false ? "confirmed" : "returned"
    }
    // A copy, since the caller may reuse the objects for its next message.
    const own = structuredClone(properties)
    for (const queue of queues) {
      for (const tap of this.#taps.get(queue.name) ?? []) tap(body, own)
      this.#push(queue, body, own)
      this.#deliver(queue)
    }
    return "confirmed"
  }

  #requireConnection(): void {
    if (this.#state.kind !== "ready") throw new Error(`not connected: ${this.#state.kind}`)
  }

  /** A queue that exists is used as it is. */
  #declare({ name, arguments: args, boundTo = [] }: QueueDeclaration): void {
    if (this.#queues.has(name)) return
    const deadLetterTo = args["x-dead-letter-routing-key"]
    const messageTtlMs = args["x-message-ttl"]
    const queue: Queue = {
      name,
      deadLetterTo: typeof deadLetterTo === "string" ? deadLetterTo : null,
      messageTtlMs: typeof messageTtlMs === "number" ? messageTtlMs : Number.POSITIVE_INFINITY,
      messages: [],
      consumers: [],
      nextConsumer: 0,
      dropped: 0,
    }
    this.#queues.set(name, queue)
    for (const { exchange, routingKey } of boundTo) {
      const keys = this.#exchanges.get(exchange)
      keys?.set(routingKey, [...(keys.get(routingKey) ?? []), queue])
    }
  }

  #begin(added: RunTimeSubscription): void {
    if (this.#state.kind === "closed") return
    this.#declare(added.queue)
    if (this.#stopped && added.subscription.untilClose !== true) return
    added.consumer = this.#consume(added.subscription)
    const queue = this.#queues.get(added.queue.name)
    if (queue !== undefined) this.#deliver(queue)
  }

  #consume(subscription: Subscription): Consumer {
    const consumer = { subscription, unacknowledged: new Set<StoredMessage>(), ended: false }
    this.#queues.get(subscription.queue)?.consumers.push(consumer)
    return consumer
  }

  #byName(name: string): Queue[] | undefined {
    const queue = this.#queues.get(name)
    return queue === undefined ? undefined : [queue]
  }

  #push(queue: Queue, body: Uint8Array, properties: MessageProperties): void {
    const ttlMs = Math.min(
      queue.messageTtlMs,
      properties.expiration === undefined
        ? Number.POSITIVE_INFINITY
        : Number(properties.expiration),
    )
    queue.messages.push({
      body,
      properties,
      expiresAtMs: this.#nowMs() + ttlMs,
      redelivered: false,
    })
    if (queue.messages.length <= MAX_QUEUE_MESSAGES) return
    queue.messages.shift()
    queue.dropped += 1
    if (queue.dropped === 1) {
      this.#listener?.warning(
        `the embedded broker keeps the last ${MAX_QUEUE_MESSAGES} messages of ${queue.name}`,
      )
    }
  }

  #deliver(queue: Queue): void {
    while (queue.messages.length > 0 && !this.#paused) {
      const consumer = this.#nextWithRoom(queue)
      if (consumer === undefined) return
      const message = queue.messages.shift()
      if (message === undefined) return
      if (message.expiresAtMs <= this.#nowMs()) {
        this.#deadLetter(queue, message)
        continue
      }
      consumer.unacknowledged.add(message)
      let acknowledged = false
      const delivery: Delivery = {
        queue: queue.name,
        body: message.body,
        properties: message.properties,
        redelivered: message.redelivered,
        get lost() {
          return consumer.ended
        },
        acknowledge: () => {
          if (!consumer.unacknowledged.delete(message)) return
          acknowledged = true
          this.#deliver(queue)
        },
        get settled() {
          return acknowledged
        },
      }
      queueMicrotask(() => {
        if (consumer.ended) return
        consumer.subscription.deliver(delivery, consumer.subscription.prefetch)
      })
    }
  }

  #nextWithRoom(queue: Queue): Consumer | undefined {
    for (let i = 0; i < queue.consumers.length; i += 1) {
      const at = (queue.nextConsumer + i) % queue.consumers.length
      const consumer = queue.consumers[at]
      if (consumer && consumer.unacknowledged.size < consumer.subscription.prefetch) {
        queue.nextConsumer = at + 1
        return consumer
      }
    }
    return undefined
  }

  #expire(): void {
    const nowMs = this.#nowMs()
    for (const queue of this.#queues.values()) {
      if (!queue.messages.some((message) => message.expiresAtMs <= nowMs)) continue
      const expired = queue.messages.filter((message) => message.expiresAtMs <= nowMs)
      queue.messages = queue.messages.filter((message) => message.expiresAtMs > nowMs)
      for (const message of expired) this.#deadLetter(queue, message)
    }
  }

  #deadLetter(from: Queue, message: StoredMessage): void {
    const to = from.deadLetterTo === null ? undefined : this.#queues.get(from.deadLetterTo)
    if (to === undefined) return
    const { expiration, ...kept } = message.properties
    const death = {
      reason: "expired",
      queue: from.name,
      ...(expiration === undefined ? {} : { "original-expiration": expiration }),
    }
    this.#push(to, message.body, { ...kept, headers: { ...kept.headers, "x-death": [death] } })
    this.#deliver(to)
  }
}

class EmbeddedPublishChannel<T> implements PublishChannel<T> {
  readonly #broker: EmbeddedBroker
  readonly #listener: PublishChannelListener<T>

  constructor(broker: EmbeddedBroker, listener: PublishChannelListener<T>) {
    this.#broker = broker
    this.#listener = listener
  }

  get state(): "open" | "closed" {
    return this.#broker.state.kind === "ready" ? "open" : "closed"
  }

  publish(message: OutgoingMessage, item: T): void {
    const result = this.#broker.store(message)
    queueMicrotask(() => this.#listener.settled(item, result))
  }
}
