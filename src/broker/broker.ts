/**
 * The broker port: what the gateway needs from a message broker, as publish channels and
 * subscriptions. `amqp/broker.ts` implements it with RabbitMQ, `embedded.ts` in memory. One test
 * suite checks both against this file.
 *
 * Publish channels and subscriptions outlive connections. A publish channel closes when the
 * connection is lost and opens again on the next one; a subscription continues on the next
 * connection.
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
  /** From AMQP 0-8; it has no meaning in AMQP 0-9-1. */
  clusterId?: string
}

/**
 * Header that identifies a message without a `message_id` from the gateway when the broker returns
 * it.
 */
export const PUBLISH_ID_HEADER = "owsla-publish-id"

export interface OutgoingMessage {
  /**
   * Unique among the unsettled messages of its publish channel. It is also the `message_id` or
   * `owsla-publish-id`.
   */
  readonly id: string
  /** "" is the default exchange, whose routing keys are names of queues. */
  readonly exchange: string
  readonly routingKey: string
  /** False: the broker does not return the message when no queue accepts it. */
  readonly mandatory?: false
  readonly body: Uint8Array
  readonly properties: MessageProperties
}

/** The result of one publish. */
export type PublishResult =
  /** The broker has the message, stored as its queue stores messages. */
  | "confirmed"
  /** No queue accepted the message. */
  | "returned"
  /** The broker refused the message, for example because its queue is full. */
  | "nacked"
  /** The connection was lost before a confirm: the broker may or may not have the message. */
  | "cut"
  /** The message cannot be encoded, so a retry would fail too. */
  | "unencodable"

export type PublishChannelState =
  | "closed"
  /**
   * No message may be published for now (an alarm, or a large body is being sent). Messages that
   * were published before may still be confirmed.
   */
  | "blocked"
  | "open"

/**
 * Publishes messages in order, with publisher confirms, and mandatory unless a message says
 * otherwise. `T` identifies a message for the listener.
 */
export interface PublishChannel<T> {
  readonly state: PublishChannelState
  /**
   * Publishes one message. To be called only while `state` is "open". `properties` are read before
   * the call returns; `body` must not change before the message is settled.
   *
   * @param item passed to the listener with the result.
   */
  publish(message: OutgoingMessage, item: T): void
}

export interface PublishChannelListener<T> {
  /** The publish channel has opened, or is no longer blocked. */
  opened(): void
  /**
   * Called once for each publish, never before `publish` returns, in any order between messages.
   */
  settled(item: T, result: PublishResult): void
  /**
   * The id of the message that was published with this item. Called only when messages were
   * returned.
   */
  idOf(item: T): string
}

export interface Delivery {
  readonly queue: string
  readonly body: Uint8Array
  readonly properties: MessageProperties
  readonly redelivered: boolean
  /**
   * True once its connection is lost or its subscription has ended: the delivery cannot be
   * acknowledged any more.
   */
  readonly lost: boolean
  /** Does nothing once the delivery is lost: the broker redelivers the message then. */
  acknowledge(): void
  /**
   * True once the broker has certainly processed the acknowledgement. Before that, a lost
   * connection or `unsubscribe` may have lost the acknowledgement too, and the broker redelivers
   * the message.
   */
  readonly settled: boolean
}

export interface Subscription {
  readonly queue: string
  /** Continues after `stopConsuming`, until the broker is closed. */
  readonly untilClose?: boolean
  /**
   * A message may come again after a lost connection. So many messages share an acknowledgement,
   * and `settled` of a delivery stays false.
   */
  readonly mayRepeat?: boolean
  /**
   * Fails, and is retried, while the queue has another consumer. A client that had the queue on an
   * earlier connection ignores one such consumer after some seconds, because it may be its own.
   */
  readonly exclusive?: boolean
  /** The limit of unacknowledged deliveries. */
  readonly prefetch: number
  /**
   * Must not throw.
   * @param prefetch the current limit of unacknowledged deliveries, lower than in the setup when
   * the broker allows less.
   */
  readonly deliver: (delivery: Delivery, prefetch: number) => void
  /**
   * Called once for each lost connection, and for `unsubscribe`, after its deliveries are `lost`
   * and before the first delivery of the next connection. Never called within another call to the
   * broker.
   */
  readonly lost?: () => void
}

export interface ExchangeDeclaration {
  readonly name: string
  readonly type: "fanout" | "topic" | "direct"
  /** The gateway works without it. When it cannot be declared, there is a warning. */
  readonly optional?: true
}

export interface Binding {
  readonly exchange: string
  /** "" for a fanout exchange. */
  readonly routingKey: string
  /** As in `ExchangeDeclaration`. */
  readonly optional?: true
}

export interface QueueDeclaration {
  readonly name: string
  readonly boundTo?: readonly Binding[]
  readonly durable: boolean
  /** Used by this connection only, and deleted with it. */
  readonly exclusive?: boolean
  /**
   * Used by the subscriptions of this client only, and deleted with the broker node that holds it.
   * Declared exclusive on brokers without such queues.
   */
  readonly transient?: boolean
  readonly arguments: Record<string, string | number | boolean>
}

export type BrokerState =
  /** Not connected: the first connection, or another one, is being made. */
  | { readonly kind: "away"; readonly reason: string }
  | { readonly kind: "blocked"; readonly reason: string }
  | { readonly kind: "ready" }
  | { readonly kind: "closed" }

export interface BrokerListener {
  stateChanged(state: BrokerState): void
  /** A warning for the operator. The connection is not lost. */
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
   * Connects, and reconnects until `close`. Exchanges and queues are declared on each connection.
   */
  start(setup: BrokerSetup, listener: BrokerListener): void
  /** A new publish channel. To be called before `start`. */
  publishChannel<T>(listener: PublishChannelListener<T>): PublishChannel<T>
  /**
   * Declares a queue and consumes it, now and on each later connection, until `unsubscribe`. May be
   * called in any state, also before `start`. When it fails, or the queue has another consumer and
   * the subscription is exclusive, it is retried every few seconds, with a warning. Neither affects
   * the state or other subscriptions.
   *
   * @param subscription for that queue. Another prefetch needs `unsubscribe` and `subscribe`.
   * @throws when the queue has a subscription of this kind.
   */
  subscribe(queue: QueueDeclaration, subscription: Subscription): void
  /**
   * Ends a subscription of `subscribe`. Its unacknowledged deliveries are lost and return to the
   * queue. No delivery follows. Without such a subscription the call does nothing.
   */
  unsubscribe(queueName: string): void
  /**
   * Whether the broker has this queue. Rejects when the connection is lost or the check fails
   * otherwise, for example because the queue is not available. Waits while the broker is blocked.
   */
  exists(queueName: string): Promise<boolean>
  /**
   * Declares a queue that is not exclusive to a connection, now and on each later connection.
   * Rejects when the connection is lost or the queue cannot be declared; then it is not declared
   * later. Waits while the broker is blocked.
   */
  declare(queue: QueueDeclaration): Promise<void>
  /** Declares all queues again, after a message was returned because its queue was deleted. */
  redeclare(): void
  /** Drops the current connection, for example one without publisher confirms, and reconnects. */
  reset(reason: string): void
  /**
   * Stops reading deliveries until `resumeConsuming`, because unacknowledged ones have reached
   * their bound.
   */
  pauseConsuming(): void
  resumeConsuming(): void
  /** Cancels the subscriptions. Deliveries can still be acknowledged. */
  stopConsuming(): Promise<void>
  /** Sends what was written and disconnects. Resolves when that is done, or after a time limit. */
  close(): Promise<void>
}
