/**
 * What the gateway asks of a message broker: publish channels to publish on, subscriptions to consume from.
 * `amqp/broker.ts` does it with RabbitMQ, `embedded.ts` in memory; one test suite holds both to this file.
 *
 * Publish channels and subscriptions outlive connections: a publish channel closes when the broker is lost and opens again
 * when it is back; a subscription goes on delivering by itself.
 */

export type HeaderValue = string | number | bigint | boolean | null | undefined | Date | object

export interface MessageProperties {
  contentType?: string
  contentEncoding?: string
  headers?: Record<string, HeaderValue>
  /** 2 is persistent. */
  deliveryMode?: number
  priority?: number
  correlationId?: string
  replyTo?: string
  /** Milliseconds, in decimal digits. */
  expiration?: string
  messageId?: string
  /** Whole seconds on the wire. */
  timestamp?: Date
  type?: string
  userId?: string
  appId?: string
  /** From AMQP 0-8; without meaning in AMQP 0-9-1. */
  clusterId?: string
}

/** Header that identifies a message without a `message_id` from the gateway when the broker returns it. */
export const PUBLISH_ID_HEADER = "owsla-publish-id"

export interface OutgoingMessage {
  /** Unique among the unsettled messages of its publish channel; stands in `message_id` or `owsla-publish-id`. */
  readonly id: string
  /** "" is the default exchange: the routing key is a queue's name. */
  readonly exchange: string
  readonly routingKey: string
  /** False: it may reach no queue, and the broker does not report whether it did. */
  readonly mandatory?: false
  readonly body: Uint8Array
  readonly properties: MessageProperties
}

/** How one publish ended. */
export type PublishResult =
  /** The broker has it: stored, as far as its queue stores. */
  | "confirmed"
  /** No queue took it. */
  | "returned"
  /** The broker refused it, for example because its queue is full. */
  | "nacked"
  /** The connection was lost first: the broker may or may not have it. */
  | "cut"
  /** It can't be encoded, so no retry will help. */
  | "unencodable"

export type PublishChannelState =
  | "closed"
  /** Nothing is taken for now (an alarm, or a large body on its way); what was published before may still be confirmed. */
  | "blocked"
  | "open"

/**
 * An ordered, confirmed and, unless a message says otherwise, mandatory way of publishing. `T` is what its listener
 * knows a message by.
 */
export interface PublishChannel<T> {
  readonly state: PublishChannelState
  /**
   * Publishes one message; `properties` are read before the call returns, and `body` is not changed until it is settled.
   * To be called only while `state` is "open".
   *
   * @param item handed to the listener with the result.
   */
  publish(message: OutgoingMessage, item: T): void
}

export interface PublishChannelListener<T> {
  /** The publish channel has just opened, or takes messages again. */
  opened(): void
  /** Called once for each publish, never before `publish` returns, in any order between messages. */
  settled(item: T, result: PublishResult): void
  /** The id of the message that was published with this item; asked when one was returned. */
  idOf(item: T): string
}

export interface Delivery {
  readonly queue: string
  readonly body: Uint8Array
  readonly properties: MessageProperties
  readonly redelivered: boolean
  /** True once the connection it came on is lost: it can't be acknowledged any more. */
  readonly lost: boolean
  /** Does nothing once the connection it came on is lost: the broker then delivers it again. */
  acknowledge(): void
  /**
   * True once the broker is known to have processed the acknowledgement. Until then a lost connection may have
   * lost the acknowledgement too, and the broker delivers the message again.
   */
  readonly settled: boolean
}

export interface Subscription {
  readonly queue: string
  /** Goes on when the others are stopped, until the broker is closed. */
  readonly untilClose?: boolean
  /** Refused, and tried again, while anybody else consumes the queue. */
  readonly exclusive?: boolean
  /** How many deliveries may be unacknowledged. */
  readonly prefetch: number
  /**
   * Must not throw.
   * @param prefetch how many may be unacknowledged now; less than the setup asks for where the broker allows less.
   */
  readonly deliver: (delivery: Delivery, prefetch: number) => void
  /**
   * Called once for each connection that was lost, after the deliveries that came on it are `lost` and before
   * the next connection delivers anything; never within another call to the broker.
   */
  readonly lost?: () => void
}

export interface ExchangeDeclaration {
  readonly name: string
  readonly type: "fanout" | "topic" | "direct"
  /** The gateway works without it: when it cannot be made there is a warning. */
  readonly optional?: true
}

export interface Binding {
  readonly exchange: string
  /** "" for a fanout exchange. */
  readonly routingKey: string
  /** As for an exchange. */
  readonly optional?: true
}

export interface QueueDeclaration {
  readonly name: string
  readonly boundTo?: readonly Binding[]
  readonly durable: boolean
  /** Used by this connection alone and gone with it. */
  readonly exclusive?: boolean
  /**
   * Used by the subscriptions of this client alone, and deleted with the broker node that holds it. It is declared
   * exclusive on brokers that do not support such queues.
   */
  readonly transient?: boolean
  readonly arguments: Record<string, string | number>
}

export type BrokerState =
  /** Not there: being connected to, for the first time or again. */
  | { readonly kind: "away"; readonly reason: string }
  | { readonly kind: "blocked"; readonly reason: string }
  | { readonly kind: "ready" }
  | { readonly kind: "closed" }

export interface BrokerListener {
  stateChanged(state: BrokerState): void
  /** A warning for the operator; the broker is not lost. */
  warning(message: string): void
}

export interface BrokerSetup {
  /** Durable. */
  readonly exchanges: readonly ExchangeDeclaration[]
  readonly queues: readonly QueueDeclaration[]
  readonly subscriptions: readonly Subscription[]
}

export interface Broker {
  readonly state: BrokerState
  /**
   * Begins to connect, and keeps at it until `close`. Exchanges and queues are declared on each
   * connection.
   */
  start(setup: BrokerSetup, listener: BrokerListener): void
  /** A publish channel of its own; to be asked for before `start`. */
  publishChannel<T>(listener: PublishChannelListener<T>): PublishChannel<T>
  /** Declares the queues again, after a message was returned because one is gone. */
  redeclare(): void
  /** Gives up the present connection, for example because the broker confirms nothing, and reconnects. */
  reset(reason: string): void
  /** Reads no more deliveries for now: for when those that are held fill their bound. */
  pauseConsuming(): void
  resumeConsuming(): void
  /** Cancels the subscriptions; what was delivered can still be acknowledged. */
  stopConsuming(): Promise<void>
  /** Hands over what was written and disconnects. Resolves when that is done, or after a bound. */
  close(): Promise<void>
}
