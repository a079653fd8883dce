/**
 * A message broker in memory that does nothing by itself: the network between it and each of its
 * clients, its queues and its clocks are a list of steps that could happen next, and the test says
 * which does.
 *
 *   client ─ publish ─► on its way ─taken─► queues ─► confirm on its way ─► settled
 *   queue ─ dispatched ─► on its way ─► delivered ─► acknowledgement on its way ─taken─► gone
 *
 * Keeps what AMQP promises: a publish channel's order into the queues, a queue's order to one
 * consumer, what was sent on one channel in the order of sending. Keeps nothing else: of what was
 * on its way when a connection is cut the broker takes as much as the test lets it, and it may miss
 * the connection only after its successor is there; or the broker ends the connection first, and
 * the client learns of it later. Means what RabbitMQ means by default and fanout exchanges,
 * mandatory, confirms, prefetch, redelivery, expiration (at a queue's head), dead letters and
 * `x-expires`.
 */

import type {
  Broker,
  BrokerListener,
  BrokerSetup,
  BrokerState,
  Delivery,
  HeaderValue,
  MessageProperties,
  OutgoingMessage,
  PublishChannel,
  PublishChannelListener,
  PublishChannelState,
  PublishResult,
  QueueDeclaration,
  Subscription,
} from "../../src/broker/broker.ts"

/** Something that can happen next. */
export interface Step {
  /** For whoever reads what happened. */
  readonly what: () => string
  readonly run: () => void
}

interface PossibleStep extends Step {
  readonly possible: () => boolean
}

export interface StoredMessage {
  /** The order of arrival at the broker. */
  readonly number: number
  readonly body: Uint8Array
  readonly properties: MessageProperties
  readonly expiresAtMs: number
  readonly redelivered: boolean
  /** How often the message was returned because its consumer was lost. */
  readonly returns: number
}

/** Limits of a queue, as arguments (`x-…`) or policies set them. */
export interface Policy {
  readonly "delivery-limit"?: number
  readonly "max-length"?: number
}

type Message = { -readonly [K in keyof StoredMessage]: StoredMessage[K] }

export interface SimulatedBrokerOptions {
  /** False: messages for different queues may be confirmed in any order, as RabbitMQ does. */
  readonly confirmsInOrder?: boolean
  /** Told of each message that was on its way, or in hand, when a connection was lost. */
  readonly disturbed?: (
    message: Pick<StoredMessage, "body" | "properties">,
    how: Disturbance,
    queue: string,
  ) => void
  /** Called for each message that comes to a client. */
  readonly delivered?: (
    client: string,
    message: Pick<StoredMessage, "body" | "properties">,
    queue: string,
  ) => void
  /** Told of each message that a queue takes. */
  readonly stored?: (queue: string, message: StoredMessage) => void
}

export type Disturbance =
  /** In hand: it is handed out again. */
  | "requeued"
  /** Published and not confirmed: it is published again. */
  | "cut"
  /** Published and not confirmed, by one that was killed. */
  | "abandoned"

/**
 * Which of a client's two connections: that of its publish channels, or that of its subscriptions.
 */
export type Link = "publishing" | "consuming"

interface Queue {
  readonly name: string
  readonly arguments: QueueDeclaration["arguments"]
  readonly consumers: Set<ConsumerChannel>
  messages: Message[]
  unusedSinceMs: number
}

export class SimulatedBroker {
  nowMs: number
  readonly options: SimulatedBrokerOptions
  readonly #queues = new Map<string, Queue>()
  /** Of each exchange: the queues bound to it, with their routing keys. */
  readonly #bindings = new Map<string, Map<string, Set<string>>>()
  readonly #policies = new Map<string, Policy>()
  readonly #steps = new Set<PossibleStep>()
  #arrivals = 0
  /** Tells the connections apart in what is told of steps. */
  connections = 0

  constructor(nowMs = 1_750_000_000_000, options: SimulatedBrokerOptions = {}) {
    this.nowMs = nowMs
    this.options = options
  }

  /** @param enter everything that the client is told is told within a call of this. */
  client(name: string, enter: (act: () => void) => void = (act) => act()): SimulatedClient {
    return new SimulatedClient(this, name, enter)
  }

  /** What can happen next, the oldest possibilities first. */
  pending(): Step[] {
    const possible: Step[] = []
    for (const step of this.#steps) if (step.possible()) possible.push(step)
    return possible
  }

  run(index: number): void {
    const step = this.pending()[index]
    if (step === undefined) throw new Error(`no step ${index}`)
    step.run()
  }

  /** Lets everything happen that needs no time, in some order. Returns the number of steps. */
  settle(mostSteps = 100_000): number {
    let steps = 0
    for (let before = -1; before !== steps; ) {
      before = steps
      for (const step of this.#steps) {
        if (!step.possible()) continue
        step.run()
        steps += 1
        if (steps > mostSteps) throw new Error(`no end after ${steps} steps: ${step.what()}`)
      }
    }
    return steps
  }

  /** Publishes as a back-end that is next to the broker; false when there is no such queue. */
  publish(queue: string, body: Uint8Array | string, properties: MessageProperties = {}): boolean {
    const found = this.#queues.get(queue)
    if (found === undefined) return false
    this.#store(found, Buffer.from(body), encoded(properties))
    return true
  }

  hasQueue(name: string): boolean {
    return this.#queues.has(name)
  }

  /** What waits in a queue, from its head. */
  waiting(queue: string): readonly StoredMessage[] {
    return this.#queues.get(queue)?.messages ?? []
  }

  /** What was dispatched from a queue and is not acknowledged. */
  unacknowledged(queue: string): readonly StoredMessage[] {
    const consumers = [...(this.#queues.get(queue)?.consumers ?? [])]
    return consumers.flatMap(({ unacknowledged }) => [...unacknowledged])
  }

  queueNames(): string[] {
    return [...this.#queues.keys()]
  }

  /** When the next message at the head of a queue expires; `Infinity` when none ever does. */
  nextExpiryMs(): number {
    let nextMs = Number.POSITIVE_INFINITY
    for (const { messages } of this.#queues.values()) {
      nextMs = Math.min(nextMs, messages[0]?.expiresAtMs ?? Number.POSITIVE_INFINITY)
    }
    return nextMs
  }

  // What follows is for the classes of this file.

  addStep(what: () => string, possible: () => boolean, run: () => void): PossibleStep {
    const step = { what, run, possible: () => this.#steps.has(step) && possible() }
    this.#steps.add(step)
    return step
  }

  removeStep(step: PossibleStep): void {
    this.#steps.delete(step)
  }

  queue(name: string): Queue | undefined {
    return this.#queues.get(name)
  }

  declare({ exchanges, queues }: Pick<BrokerSetup, "exchanges" | "queues">): void {
    for (const { name } of exchanges) {
      if (!this.#bindings.has(name)) this.#bindings.set(name, new Map())
    }
    for (const { name, arguments: args, boundTo = [], exclusive = false } of queues) {
      if (exclusive) throw new Error("exclusive queues are not simulated")
      const known = this.#queues.get(name)
      if (known !== undefined) known.unusedSinceMs = this.nowMs
      else this.#addQueue(name, args)
      for (const { exchange, routingKey } of boundTo) {
        const bound = this.#bindings.get(exchange)
        bound?.set(name, new Set([...(bound.get(name) ?? []), routingKey]))
      }
    }
  }

  /** A binding key is one word, or "#" for all, as a topic exchange has it. */
  #boundBy(exchange: string, routingKey: string): string[] {
    const bound = [...(this.#bindings.get(exchange) ?? [])]
    return bound.flatMap(([name, keys]) => (keys.has(routingKey) || keys.has("#") ? [name] : []))
  }

  /** Takes one publish from a publish channel. */
  route({ exchange, routingKey, mandatory, body, properties }: OutgoingMessage): PublishResult {
    const names = exchange === "" ? [routingKey] : this.#boundBy(exchange, routingKey)
    const queues = names.flatMap((name) => this.#queues.get(name) ?? [])
    for (const queue of queues) this.#store(queue, body, properties)
    return queues.length === 0 && mandatory !== false ? "returned" : "confirmed"
  }

  /**
   * Returns the messages of a lost consumer to their places; one that was returned too often is
   * dead-lettered.
   */
  requeue(queue: Queue, messages: Iterable<Message>): void {
    const limit = this.#limit(queue, "delivery-limit")
    for (const message of messages) {
      message.redelivered = true
      message.returns += 1
      this.options.disturbed?.(message, "requeued", queue.name)
      if (message.returns > limit) this.#deadLetter(queue, message, "delivery_limit")
      else queue.messages.push(message)
    }
    queue.messages.sort((a, b) => a.number - b.number)
  }

  /** Sets a limit as a policy does: for a queue that is there. */
  setPolicy(queue: string, policy: Policy): void {
    this.#policies.set(queue, { ...this.#policies.get(queue), ...policy })
  }

  #limit(queue: Queue, limit: keyof Policy): number {
    const own = queue.arguments[`x-${limit}`]
    const policy = this.#policies.get(queue.name)?.[limit]
    return Math.min(
      typeof own === "number" ? own : Number.POSITIVE_INFINITY,
      policy ?? Number.POSITIVE_INFINITY,
    )
  }

  #addQueue(name: string, args: QueueDeclaration["arguments"]): void {
    const queue: Queue = {
      name,
      arguments: args,
      consumers: new Set(),
      messages: [],
      unusedSinceMs: this.nowMs,
    }
    this.#queues.set(name, queue)
    const expiring = this.addStep(
      () => `expire the head of ${name}`,
      () => (queue.messages[0]?.expiresAtMs ?? Number.POSITIVE_INFINITY) <= this.nowMs,
      () => this.#expireHead(queue),
    )
    const expiresMs = args["x-expires"]
    if (typeof expiresMs !== "number") return
    const step = this.addStep(
      () => `drop the unused queue ${name}`,
      () => queue.consumers.size === 0 && this.nowMs - queue.unusedSinceMs >= expiresMs,
      () => {
        this.#queues.delete(name)
        for (const bound of this.#bindings.values()) bound.delete(name)
        queue.messages = []
        this.removeStep(expiring)
        this.removeStep(step)
      },
    )
  }

  #store(queue: Queue, body: Uint8Array, properties: MessageProperties): void {
    const ttlMs = queue.arguments["x-message-ttl"]
    const { expiration } = properties
    const most = typeof ttlMs === "number" ? ttlMs : Number.POSITIVE_INFINITY
    const own = expiration === undefined ? Number.POSITIVE_INFINITY : Number(expiration)
    this.#arrivals += 1
    const message = {
      number: this.#arrivals,
      body,
      properties,
      expiresAtMs: this.nowMs + Math.min(most, own),
      redelivered: false,
      returns: 0,
    }
    queue.messages.push(message)
    this.options.stored?.(queue.name, message)
    while (queue.messages.length > this.#limit(queue, "max-length")) {
      const oldest = queue.messages.shift()
      if (oldest !== undefined) this.#deadLetter(queue, oldest, "maxlen")
    }
  }

  #expireHead(queue: Queue): void {
    const head = queue.messages.shift()
    if (head !== undefined) this.#deadLetter(queue, head, "expired")
  }

  #deadLetter(queue: Queue, { body, properties }: Message, reason: string): void {
    const deadLetters = this.#queues.get(String(queue.arguments["x-dead-letter-routing-key"]))
    if (deadLetters === undefined) return
    this.#store(deadLetters, body, bereaved(properties, queue.name, reason, this.nowMs))
  }
}

/** The properties as they come out at the other end. */
function encoded(properties: MessageProperties): MessageProperties {
  const { headers, timestamp, ...others } = properties
  const copy: MessageProperties = { ...others }
  if (headers !== undefined) {
    const carried: Record<string, HeaderValue> = {}
    for (const [name, value] of Object.entries(headers)) {
      // Our client reads 64-bit integers as numbers.
      carried[name] = typeof value === "bigint" ? Number(value) : structuredClone(value)
    }
    copy.headers = carried
  }
  if (timestamp !== undefined) {
    copy.timestamp = new Date(Math.floor(timestamp.getTime() / 1_000) * 1_000)
  }
  return copy
}

/** The properties of a dead letter. */
function bereaved(
  { expiration, ...properties }: MessageProperties,
  queue: string,
  reason: string,
  nowMs: number,
): MessageProperties {
  const deaths = (properties.headers?.["x-death"] ?? []) as Record<string, HeaderValue>[]
  const isSame = (death: Record<string, HeaderValue>) =>
    death["queue"] === queue && death["reason"] === reason
  const before = deaths.find(isSame)
  const death = {
    queue,
    reason,
    exchange: "",
    "routing-keys": [queue],
    time: new Date(nowMs),
    ...(expiration === undefined ? {} : { "original-expiration": expiration }),
    ...before,
    count: Number(before?.["count"] ?? 0) + 1,
  }
  const first = {
    "x-first-death-exchange": "",
    "x-first-death-queue": queue,
    "x-first-death-reason": reason,
  }
  return {
    ...properties,
    headers: {
      ...first,
      ...properties.headers,
      "x-death": [death, ...deaths.filter((each) => !isSame(each))],
    },
  }
}

/**
 * One connection. Once it is cut the broker may still read what was sent on it, until it misses it.
 */
class Session {
  readonly name: string
  readonly lanes: LaneChannel[] = []
  readonly consumers: ConsumerChannel[] = []
  /** The client has it. */
  attached = true
  /** The broker has ended it: it takes nothing more, and what it has sent may still arrive. */
  isEnded = false
  readonly #broker: SimulatedBroker
  readonly #missing: PossibleStep

  constructor(broker: SimulatedBroker, name: string) {
    broker.connections += 1
    this.name = `${name}#${broker.connections}`
    this.#broker = broker
    this.#missing = broker.addStep(
      () => `the broker misses ${this.name}`,
      () => !this.attached,
      () => this.end(),
    )
  }

  /** The broker ends it first; `noticed` is called in a step of its own. */
  endFirst(noticed: () => void): void {
    this.isEnded = true
    for (const consumer of this.consumers) consumer.leave()
    const step = this.#broker.addStep(
      () => `the client of ${this.name} learns that it is lost`,
      () => true,
      () => {
        this.#broker.removeStep(step)
        if (this.attached) noticed()
      },
    )
  }

  /** The broker takes all that was sent on it. */
  takeAll(): void {
    for (const lane of this.lanes) while (lane.takeOne());
    for (const consumer of this.consumers) while (consumer.takeOne());
  }

  end(): void {
    this.#broker.removeStep(this.#missing)
    for (const channel of [...this.lanes, ...this.consumers]) channel.end()
  }
}

interface Published {
  readonly message: OutgoingMessage
  readonly settled: (result: PublishResult) => void
  result: PublishResult | null
}

/** What one publish channel has on its way, on one connection. */
class LaneChannel {
  readonly #broker: SimulatedBroker
  readonly #client: SimulatedClient
  readonly #session: Session
  readonly #steps: PossibleStep[]
  /** Not taken yet. */
  #sent: Published[] = []
  /** Taken, and the confirm is on its way. */
  #taken: Published[] = []

  constructor(broker: SimulatedBroker, client: SimulatedClient, session: Session, lane: number) {
    this.#broker = broker
    this.#client = client
    this.#session = session
    const name = `lane ${lane} of ${session.name}`
    const steps = [
      broker.addStep(
        () => `take ${brief(this.#sent[0]?.message)} from ${name}`,
        () => this.#sent.length > 0 && !this.#session.isEnded,
        () => this.takeOne(),
      ),
      broker.addStep(
        () => `${this.#taken[0]?.result}: ${brief(this.#taken[0]?.message)} of ${name}`,
        () => this.#session.attached && this.#taken.length > 0,
        () => this.#confirm(0),
      ),
    ]
    if (broker.options.confirmsInOrder === false) {
      const other = () =>
        this.#taken.findIndex(
          ({ message }) => message.routingKey !== this.#taken[0]?.message.routingKey,
        )
      steps.push(
        broker.addStep(
          () => `first ${this.#taken[other()]?.result}: ${brief(this.#taken[other()]?.message)}`,
          () => this.#session.attached && this.#taken.length > 1 && other() !== -1,
          () => this.#confirm(other()),
        ),
      )
    }
    this.#steps = steps
  }

  publish(message: OutgoingMessage, settled: (result: PublishResult) => void): void {
    // The caller may fill the same objects anew for its next message.
    const copy = { ...message, properties: encoded(message.properties) }
    this.#sent.push({ message: copy, settled, result: null })
  }

  takeOne(): boolean {
    if (this.#session.isEnded) return false
    const first = this.#sent.shift()
    if (first === undefined) return false
    first.result = this.#broker.route(first.message)
    if (this.#session.attached) this.#taken.push(first)
    return true
  }

  /** The client has lost the connection: tells of every message that it was. */
  cut(): void {
    const unsettled = [...this.#taken, ...this.#sent]
    this.#taken = []
    for (const { message } of unsettled) this.#disturbed(message, "cut")
    this.#sent = this.#sent.map((published) => ({ ...published, settled: () => undefined }))
    queueMicrotask(() => {
      for (const { settled } of unsettled) settled("cut")
    })
  }

  /** The client is no more. */
  abandon(): void {
    for (const { message } of [...this.#taken, ...this.#sent]) {
      this.#disturbed(message, "abandoned")
    }
    this.#taken = []
    this.#sent = this.#sent.map((published) => ({ ...published, settled: () => undefined }))
  }

  end(): void {
    const unsettled = [...this.#taken, ...this.#sent]
    this.#taken = []
    this.#sent = []
    for (const step of this.#steps) this.#broker.removeStep(step)
    // Of a connection that was closed in order; of one that was cut all are settled.
    queueMicrotask(() => {
      for (const { settled } of unsettled) settled("cut")
    })
  }

  #disturbed(message: OutgoingMessage, how: Disturbance): void {
    this.#broker.options.disturbed?.(message, how, message.routingKey)
  }

  #confirm(at: number): void {
    const [published] = this.#taken.splice(at, 1)
    if (published?.result) {
      const { settled, result } = published
      this.#client.enter(() => settled(result))
    }
  }
}

type ToClient = { readonly delivery: Delivery } | { readonly cancelled: () => void }
type ToBroker =
  | { readonly acknowledged: Message }
  | { readonly cancel: () => void }
  | { readonly close: true }

/** What one subscription has on its way, on one connection. */
class ConsumerChannel {
  readonly subscription: Subscription
  readonly unacknowledged = new Set<Message>()
  readonly #broker: SimulatedBroker
  readonly #client: SimulatedClient
  readonly #session: Session
  readonly #queue: Queue
  readonly #steps: PossibleStep[]
  readonly #toClient: ToClient[] = []
  #toBroker: ToBroker[] = []
  #cancelled = false
  /** The client has closed it: its deliveries are lost, and no more come. */
  #isClosed = false
  /** Acknowledgements that were processed, and how many of them the client knows of. */
  #acknowledgements = 0
  #taken = 0
  #knownTaken = 0

  constructor(
    broker: SimulatedBroker,
    client: SimulatedClient,
    session: Session,
    subscription: Subscription,
    queue: Queue,
  ) {
    this.subscription = subscription
    this.#broker = broker
    this.#client = client
    this.#session = session
    this.#queue = queue
    queue.consumers.add(this)
    const where = `${queue.name} to ${session.name}`
    this.#steps = [
      broker.addStep(
        () => `dispatch ${brief(queue.messages[0])} from ${where}`,
        () => this.#mayHave(queue.messages[0]),
        () => this.#dispatch(),
      ),
      broker.addStep(
        () => `${brief(this.#nextDelivery())} comes from ${where}`,
        () => this.#toClient.length > 0 && session.attached && client.reading,
        () => this.#arrive(),
      ),
      broker.addStep(
        () => `take ${brief(this.#nextAcknowledged())} acknowledged, from ${where}`,
        () => this.#toBroker.length > 0 && !session.isEnded,
        () => this.takeOne(),
      ),
      broker.addStep(
        () => `answer the fence of ${where}`,
        () =>
          this.#knownTaken < this.#taken && session.attached && client.reading && !this.#isClosed,
        () => {
          this.#knownTaken = this.#taken
        },
      ),
    ]
  }

  /** Asks the broker to send no more; `done` is called once it sends no more. */
  cancel(done: () => void): void {
    this.#toBroker.push({ cancel: done })
  }

  get isClosed(): boolean {
    return this.#isClosed
  }

  /** The client closes the channel. The broker returns what it then has unacknowledged. */
  close(): void {
    this.#isClosed = true
    this.#toBroker.push({ close: true })
  }

  takeOne(): boolean {
    if (this.#session.isEnded) return false
    const first = this.#toBroker.shift()
    if (first === undefined) return false
    if ("acknowledged" in first) {
      this.unacknowledged.delete(first.acknowledged)
      this.#taken += 1
    } else if ("close" in first) {
      this.leave()
    } else {
      this.#cancelled = true
      this.#queue.consumers.delete(this)
      this.#queue.unusedSinceMs = this.#broker.nowMs
      this.#toClient.push({ cancelled: first.cancel })
    }
    return true
  }

  end(): void {
    if (!this.#session.isEnded) this.leave()
    for (const step of this.#steps) this.#broker.removeStep(step)
  }

  /** The broker returns what is not acknowledged, and dispatches nothing more. */
  leave(): void {
    this.#cancelled = true
    this.#queue.consumers.delete(this)
    this.#queue.unusedSinceMs = this.#broker.nowMs
    this.#toBroker = []
    this.#broker.requeue(this.#queue, this.unacknowledged)
    this.unacknowledged.clear()
  }

  #mayHave(message: Message | undefined): boolean {
    if (message === undefined || message.expiresAtMs <= this.#broker.nowMs) return false
    return !this.#cancelled && this.unacknowledged.size < this.subscription.prefetch
  }

  #dispatch(): void {
    const message = this.#queue.messages.shift()
    if (message === undefined) return
    this.unacknowledged.add(message)
    const session = this.#session
    const { body, redelivered } = message
    const properties = this.#counted(message)
    let number = 0
    const isLost = () => this.#isClosed || !session.attached
    const isSettled = () => number > 0 && number <= this.#knownTaken
    this.#toClient.push({
      delivery: {
        queue: this.#queue.name,
        body,
        properties,
        redelivered,
        get lost() {
          return isLost()
        },
        acknowledge: () => {
          if (isLost()) return
          if (number > 0) return
          this.#acknowledgements += 1
          number = this.#acknowledgements
          this.#toBroker.push({ acknowledged: message })
        },
        get settled() {
          return isSettled()
        },
      },
    })
  }

  /** A quorum queue adds how often a message was returned. */
  #counted({ properties, returns }: Message): MessageProperties {
    if (returns === 0 || this.#queue.arguments["x-queue-type"] !== "quorum") return properties
    return { ...properties, headers: { ...properties.headers, "x-delivery-count": returns } }
  }

  #arrive(): void {
    const first = this.#toClient.shift()
    if (first === undefined || ("delivery" in first && this.#isClosed)) return
    if ("delivery" in first) {
      this.#broker.options.delivered?.(this.#client.name, first.delivery, this.#queue.name)
    }
    this.#client.enter(() => {
      if ("delivery" in first) this.subscription.deliver(first.delivery, this.subscription.prefetch)
      else first.cancelled()
    })
  }

  #nextDelivery(): Delivery | undefined {
    const first = this.#toClient[0]
    return first !== undefined && "delivery" in first ? first.delivery : undefined
  }

  #nextAcknowledged(): Message | undefined {
    const first = this.#toBroker[0]
    return first !== undefined && "acknowledged" in first ? first.acknowledged : undefined
  }
}

interface RunTimeSubscription {
  readonly queue: QueueDeclaration
  readonly subscription: Subscription
  /** Null while it is not subscribed on the present connection. */
  channel: ConsumerChannel | null
}

/** A question to the broker that it has not answered yet. */
interface Question {
  readonly answer: () => void
  readonly reject: (error: Error) => void
}

class SimulatedPublishChannel<T> implements PublishChannel<T> {
  readonly listener: PublishChannelListener<T>
  channel: LaneChannel | null = null

  constructor(listener: PublishChannelListener<T>) {
    this.listener = listener
  }

  get state(): PublishChannelState {
    return this.channel === null ? "closed" : "open"
  }

  publish(message: OutgoingMessage, item: T): void {
    if (this.channel === null) throw new Error("published on a closed lane")
    this.channel.publish(message, (result) => this.listener.settled(item, result))
  }
}

/**
 * One worker's broker: two connections, as `AmqpBroker` has them, made anew by steps of their own.
 */
export class SimulatedClient implements Broker {
  readonly enter: (act: () => void) => void
  readonly #broker: SimulatedBroker
  readonly name: string
  readonly #lanes: SimulatedPublishChannel<unknown>[] = []
  #setup: BrokerSetup | null = null
  #listener: BrokerListener | null = null
  #publishing: Session | null = null
  #consuming: Session | null = null
  /** The other connection follows when the queues are declared. */
  #mayConsume = false
  #toSubscribe: Subscription[] = []
  #locked: Subscription[] = []
  readonly #atRunTime = new Map<string, RunTimeSubscription>()
  readonly #declared = new Map<string, QueueDeclaration>()
  #questions: Question[] = []
  #paused = false
  #missing = false
  #stopped = false
  #redeclaring = false
  #state: "open" | "closing" | "closed" | "dead" = "open"
  #lastLoss = "not connected yet"
  #cancelling: PromiseWithResolvers<void> | null = null
  readonly #closed = Promise.withResolvers<void>()
  readonly #steps: PossibleStep[] = []

  constructor(broker: SimulatedBroker, name: string, enter: (act: () => void) => void) {
    this.#broker = broker
    this.name = name
    this.enter = enter
    const add = (what: string, possible: () => boolean, act: () => void) => {
      const step = broker.addStep(
        () => `${name} ${what}`,
        possible,
        () => enter(act),
      )
      this.#steps.push(step)
    }
    const wanted = () => this.#state === "open" && this.#setup !== null
    add(
      "connects to publish",
      () => wanted() && this.#publishing === null,
      () => this.#connectPublishing(),
    )
    add(
      "connects to consume",
      () => wanted() && this.#mayConsume && this.#consuming === null,
      () => this.#connectConsuming(),
    )
    add(
      "subscribes",
      () => this.#toSubscribe.length > 0 && this.#consuming?.isEnded !== true,
      () => this.#subscribe(this.#toSubscribe.shift()),
    )
    add(
      "subscribes to a queue that was locked",
      () =>
        this.#locked.some((locked) => this.#isFree(locked)) &&
        this.#toSubscribe.length === 0 &&
        this.#consuming?.isEnded !== true,
      () => this.#subscribe(this.#takeFree()),
    )
    add(
      "subscribes at run time",
      () => this.#nextAtRunTime() !== undefined,
      () => this.#subscribeAtRunTime(),
    )
    add(
      "is answered",
      () => this.#questions.length > 0 && this.#publishing?.isEnded === false,
      () => this.#questions.shift()?.answer(),
    )
    add(
      "declares its queues again",
      () => this.#redeclaring && this.#publishing?.isEnded === false,
      () => this.#redeclare(),
    )
    add(
      "says goodbye",
      () => this.#state === "closing",
      () => this.#sayGoodbye(),
    )
  }

  get state(): BrokerState {
    if (this.#state !== "open") return { kind: "closed" }
    const subscribed = this.#consuming !== null && this.#toSubscribe.length === 0
    if (this.#publishing === null || !subscribed) return { kind: "away", reason: this.#lastLoss }
    const [locked] = this.#locked
    if (locked !== undefined) return { kind: "away", reason: `locked: ${locked.queue}` }
    return { kind: "ready" }
  }

  /** False while `pauseConsuming` holds. */
  get reading(): boolean {
    return !this.#paused
  }

  start(setup: BrokerSetup, listener: BrokerListener): void {
    this.#setup = setup
    this.#listener = listener
  }

  publishChannel<T>(listener: PublishChannelListener<T>): PublishChannel<T> {
    const lane = new SimulatedPublishChannel(listener)
    this.#lanes.push(lane as SimulatedPublishChannel<unknown>)
    return lane
  }

  subscribe(queue: QueueDeclaration, subscription: Subscription): void {
    if (this.#atRunTime.has(queue.name)) throw new Error(`${queue.name} has a subscription`)
    this.#atRunTime.set(queue.name, { queue, subscription, channel: null })
  }

  unsubscribe(queueName: string): void {
    const added = this.#atRunTime.get(queueName)
    this.#atRunTime.delete(queueName)
    const channel = added?.channel ?? null
    if (channel === null) return
    channel.close()
    queueMicrotask(() => channel.subscription.lost?.())
  }

  exists(queueName: string): Promise<boolean> {
    return this.#ask(() => this.#broker.hasQueue(queueName))
  }

  declare(queue: QueueDeclaration): Promise<void> {
    return this.#ask(() => {
      this.#broker.declare({ exchanges: [], queues: [queue] })
      this.#declared.set(queue.name, queue)
    })
  }

  redeclare(): void {
    this.#redeclaring = true
  }

  reset(reason: string): void {
    this.#lose("publishing", reason)
  }

  pauseConsuming(): void {
    this.#paused = true
  }

  resumeConsuming(): void {
    this.#paused = false
    // It was made while reading was paused, and has no subscriptions.
    if (this.#missing) this.#lose("consuming", "reading again")
  }

  stopConsuming(): Promise<void> {
    this.#paused = false
    this.#stopped = true
    const goesOn = ({ untilClose = false }: Subscription) => untilClose
    this.#toSubscribe = this.#toSubscribe.filter(goesOn)
    this.#locked = this.#locked.filter(goesOn)
    const consumers = this.#consuming?.consumers ?? []
    const cancelled = consumers
      .filter(({ subscription, isClosed }) => !goesOn(subscription) && !isClosed)
      .map((consumer) => new Promise<void>((done) => consumer.cancel(done)))
    this.#cancelling = Promise.withResolvers()
    // Whoever waits for an answer on a connection that is lost is told that it is.
    return Promise.race([Promise.all(cancelled), this.#cancelling.promise]).then(() => undefined)
  }

  close(): Promise<void> {
    if (this.#state === "open") this.#state = "closing"
    return this.#closed.promise
  }

  /** Loses one of the connections; the client knows at once, the broker when it misses it. */
  cut(link: Link, reason = "cut by the test"): void {
    this.enter(() => this.#lose(link, reason))
  }

  /** The broker ends one of the connections, and the client learns of it later. */
  cutByBroker(link: Link): void {
    const session = link === "publishing" ? this.#publishing : this.#consuming
    if (session === null || session.isEnded) return
    session.endFirst(() => this.cut(link, "ended by the broker"))
  }

  isUp(link: Link): boolean {
    return (link === "publishing" ? this.#publishing : this.#consuming) !== null
  }

  /**
   * The process of the client is no more: it is told nothing, and what it sent may still arrive.
   */
  kill(): void {
    this.#state = "dead"
    this.#toSubscribe = []
    this.#locked = []
    this.#atRunTime.clear()
    this.#questions = []
    for (const lane of this.#lanes) {
      lane.channel?.abandon()
      lane.channel = null
    }
    for (const session of [this.#publishing, this.#consuming]) {
      if (session !== null) session.attached = false
    }
    this.#publishing = null
    this.#consuming = null
    for (const step of this.#steps) this.#broker.removeStep(step)
  }

  #connectPublishing(): void {
    const setup = this.#setup
    if (setup === null) return
    this.#declareAll(setup)
    const session = new Session(this.#broker, `${this.name} publishing`)
    for (const [at] of this.#lanes.entries()) {
      session.lanes.push(new LaneChannel(this.#broker, this, session, at))
    }
    for (const [at, lane] of this.#lanes.entries()) {
      lane.channel = session.lanes[at] ?? null
      lane.listener.opened()
    }
    this.#publishing = session
    this.#mayConsume = true
    if (this.#consuming !== null) this.#changed()
  }

  #connectConsuming(): void {
    const setup = this.#setup
    if (setup === null) return
    this.#broker.declare(setup)
    this.#consuming = new Session(this.#broker, `${this.name} consuming`)
    this.#missing = this.#paused
    const wanted = this.#paused ? [] : setup.subscriptions
    this.#toSubscribe = wanted.filter(({ untilClose = false }) => untilClose || !this.#stopped)
    if (this.#toSubscribe.length === 0) this.#up()
  }

  #subscribe(subscription: Subscription | undefined): void {
    const session = this.#consuming
    if (session === null || subscription === undefined) return
    const queue = this.#broker.queue(subscription.queue)
    if (queue === undefined) {
      this.#lose("consuming", `no queue ${subscription.queue}`)
      return
    }
    if (subscription.exclusive === true && queue.consumers.size > 0) {
      this.#locked.push(subscription)
    } else {
      const channel = new ConsumerChannel(this.#broker, this, session, subscription, queue)
      session.consumers.push(channel)
    }
    if (this.#toSubscribe.length === 0) this.#up()
  }

  #isFree({ queue }: Pick<Subscription, "queue">): boolean {
    return (this.#broker.queue(queue)?.consumers.size ?? 0) === 0
  }

  #takeFree(): Subscription | undefined {
    const at = this.#locked.findIndex((locked) => this.#isFree(locked))
    return this.#locked.splice(at, 1)[0]
  }

  #nextAtRunTime(): RunTimeSubscription | undefined {
    const session = this.#consuming
    if (this.#state !== "open" || this.#missing) return undefined
    if (session === null || session.isEnded) return undefined
    for (const added of this.#atRunTime.values()) {
      const { channel, subscription } = added
      const { untilClose = false, exclusive = false } = subscription
      if (channel !== null || (this.#stopped && !untilClose)) continue
      if (!exclusive || this.#isFree(subscription)) return added
    }
    return undefined
  }

  #subscribeAtRunTime(): void {
    const added = this.#nextAtRunTime()
    const session = this.#consuming
    if (added === undefined || session === null) return
    this.#broker.declare({ exchanges: [], queues: [added.queue] })
    const queue = this.#broker.queue(added.queue.name)
    if (queue === undefined) return
    added.channel = new ConsumerChannel(this.#broker, this, session, added.subscription, queue)
    session.consumers.push(added.channel)
  }

  #ask<T>(answer: () => T): Promise<T> {
    const { promise, resolve, reject } = Promise.withResolvers<T>()
    if (this.#publishing === null) reject(new Error(`not connected: ${this.#lastLoss}`))
    else this.#questions.push({ answer: () => resolve(answer()), reject })
    return promise
  }

  #declareAll({ exchanges, queues }: BrokerSetup): void {
    const atRunTime = [...this.#atRunTime.values()].map(({ queue }) => queue)
    const all = [...queues, ...this.#declared.values(), ...atRunTime]
    this.#broker.declare({ exchanges, queues: all })
  }

  #up(): void {
    if (this.#publishing !== null) this.#changed()
  }

  #lose(link: Link, reason: string): void {
    const session = link === "publishing" ? this.#publishing : this.#consuming
    if (session === null || this.#state === "closed") return
    this.#lastLoss = reason
    session.attached = false
    if (link === "publishing") {
      this.#publishing = null
      for (const lane of this.#lanes) lane.channel = null
      for (const channel of session.lanes) channel.cut()
      this.#rejectQuestions()
    } else {
      this.#consuming = null
      this.#toSubscribe = []
      this.#locked = []
      for (const added of this.#atRunTime.values()) added.channel = null
      this.#cancelling?.resolve()
      const lost = session.consumers.filter(({ isClosed }) => !isClosed)
      queueMicrotask(() => {
        for (const { subscription } of lost) subscription.lost?.()
      })
    }
    this.#changed()
  }

  #redeclare(): void {
    this.#redeclaring = false
    if (this.#setup !== null) this.#declareAll(this.#setup)
  }

  #rejectQuestions(): void {
    for (const { reject } of this.#questions) reject(new Error(`not connected: ${this.#lastLoss}`))
    this.#questions = []
  }

  #sayGoodbye(): void {
    this.#state = "closed"
    for (const session of [this.#publishing, this.#consuming]) {
      session?.takeAll()
      if (session !== null) session.attached = false
      session?.end()
    }
    for (const lane of this.#lanes) lane.channel = null
    this.#publishing = null
    this.#consuming = null
    this.#rejectQuestions()
    for (const step of this.#steps) this.#broker.removeStep(step)
    this.#changed()
    this.#closed.resolve()
  }

  #changed(): void {
    this.#listener?.stateChanged(this.state)
  }
}

function brief(message: Pick<StoredMessage, "body" | "properties"> | undefined): string {
  if (message === undefined) return "(cancelled)"
  const { redelivered } = message as Partial<StoredMessage>
  const text = Buffer.from(message.body).toString()
  return `${redelivered === true ? "again " : ""}"${text.slice(0, 160)}"`
}
