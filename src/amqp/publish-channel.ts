/**
 * A publish channel over AMQP: publishes on one channel with confirms, and reports the result of
 * each message.
 *
 *   closed ──attach──► open ◄──unblock, block──► blocked       any ──detach──► closed
 *
 * It is also blocked while a large body is being sent. It retries nothing. Bound: the window of its
 * publisher.
 */

import type { AMQPChannel } from "@cloudamqp/amqp-client"
import {
  type MessageProperties,
  type OutgoingMessage,
  PUBLISH_ID_HEADER,
  type PublishChannel,
  type PublishChannelListener,
  type PublishChannelState,
  type PublishResult,
} from "../broker/broker.ts"
import type { BatchingClient } from "./client.ts"
import { Unencodable } from "./frame-writer.ts"
import { Unconfirmed } from "./unconfirmed.ts"

export class AmqpPublishChannel<T> implements PublishChannel<T> {
  readonly #listener: PublishChannelListener<T>
  #client: BatchingClient | null = null
  #channel: AMQPChannel | null = null
  #blocked = false
  /** A large body is being sent. */
  #sending = false
  /** Ids of returned messages whose confirm, which follows the return, has not arrived yet. */
  readonly #returned = new Set<string>()
  readonly #unconfirmed = new Unconfirmed<T>()

  constructor(listener: PublishChannelListener<T>) {
    this.#listener = listener
  }

  get state(): PublishChannelState {
    if (this.#channel === null || this.#channel.closed) return "closed"
    return this.#blocked || this.#sending ? "blocked" : "open"
  }

  attach(client: BatchingClient, channel: AMQPChannel, blocked: boolean): void {
    this.#client = client
    this.#channel = channel
    this.#blocked = blocked
    this.#sending = false
    this.#returned.clear()
    client.take(channel.id, {
      // A publish channel has no consumers, so messages that arrive were returned.
      content: ({ properties }) => this.#returned.add(idOf(properties)),
      confirmed: (tag, multiple, nacked) => {
        if (this.#client !== client) return
        this.#unconfirmed.settle(tag, multiple, nacked ? this.#nacked : this.#confirmed)
      },
    })
    if (!blocked) this.#listener.opened()
  }

  detach(): void {
    this.#client = null
    this.#channel = null
    const cut = this.#unconfirmed.clear()
    // Later, because the connection may be lost during a call of `publish`.
    queueMicrotask(() => {
      for (const item of cut) this.#listener.settled(item, "cut")
    })
  }

  block(): void {
    this.#blocked = true
  }

  unblock(): void {
    this.#blocked = false
    this.#takesAgain()
  }

  publish(message: OutgoingMessage, item: T): void {
    const client = this.#client
    const channel = this.#channel
    if (client === null || channel === null) {
      this.#settleLater(item, "cut")
      return
    }
    try {
      const isSent = client.publish(channel.id, message, () => {
        if (this.#client !== client) return
        this.#sending = false
        this.#takesAgain()
      })
      this.#sending = !isSent
    } catch (error) {
      if (!(error instanceof Unencodable)) throw error
      this.#settleLater(item, "unencodable")
      return
    }
    // The write may have detected the loss of the connection, which ends its tags.
    if (this.#client === client) this.#unconfirmed.add(item)
    else this.#settleLater(item, "cut")
  }

  #takesAgain(): void {
    if (this.state === "open") this.#listener.opened()
  }

  #settleLater(item: T, result: PublishResult): void {
    queueMicrotask(() => this.#listener.settled(item, result))
  }

  readonly #confirmed = (item: T): void => {
    const isReturned = this.#returned.size > 0 && this.#returned.delete(this.#listener.idOf(item))
    this.#listener.settled(item, isReturned ? "returned" : "confirmed")
  }

  readonly #nacked = (item: T): void => {
    if (this.#returned.size > 0) this.#returned.delete(this.#listener.idOf(item))
    this.#listener.settled(item, "nacked")
  }
}

function idOf(properties: MessageProperties): string {
  return String(properties.headers?.[PUBLISH_ID_HEADER] ?? properties.messageId)
}
