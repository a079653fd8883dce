/**
 * A publish channel over AMQP: publishes on one channel with confirms, and tells for each message how it ended.
 *
 *   closed ──attach──► open ◄──unblock, block──► blocked       any ──detach──► closed
 *
 * Never retries. Bound: its publisher's window.
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

interface Publish {
  readonly id: string
  readonly settled: (result: PublishResult) => void
}

export class AmqpPublishChannel implements PublishChannel {
  readonly #listener: PublishChannelListener
  #client: BatchingClient | null = null
  #channel: AMQPChannel | null = null
  #blocked = false
  /** Ids of returned messages whose confirm, which follows the return, has not come yet. */
  readonly #returned = new Set<string>()
  readonly #unconfirmed = new Unconfirmed<Publish>()

  constructor(listener: PublishChannelListener) {
    this.#listener = listener
  }

  get state(): PublishChannelState {
    if (this.#channel === null || this.#channel.closed) return "closed"
    return this.#blocked ? "blocked" : "open"
  }

  attach(client: BatchingClient, channel: AMQPChannel, blocked: boolean): void {
    this.#client = client
    this.#channel = channel
    this.#blocked = blocked
    this.#returned.clear()
    client.take(channel.id, {
      // A publish channel consumes nothing: what comes is what no queue took.
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
    // The connection may be lost in the middle of a publish.
    queueMicrotask(() => {
      for (const { settled } of cut) settled("cut")
    })
  }

  block(): void {
    this.#blocked = true
  }

  unblock(): void {
    this.#blocked = false
    if (this.#channel !== null) this.#listener.opened()
  }

  publish(message: OutgoingMessage, settled: (result: PublishResult) => void): void {
    const client = this.#client
    const channel = this.#channel
    if (client === null || channel === null) {
      queueMicrotask(() => settled("cut"))
      return
    }
    try {
      client.publish(channel.id, message)
    } catch (error) {
      if (!(error instanceof Unencodable)) throw error
      queueMicrotask(() => settled("unencodable"))
      return
    }
    // The write may have found the connection lost; its tags have ended with it.
    if (this.#client === client) this.#unconfirmed.add({ id: message.id, settled })
    else queueMicrotask(() => settled("cut"))
  }

  readonly #confirmed = ({ id, settled }: Publish): void =>
    settled(this.#returned.size > 0 && this.#returned.delete(id) ? "returned" : "confirmed")

  readonly #nacked = ({ id, settled }: Publish): void => {
    this.#returned.delete(id)
    settled("nacked")
  }
}

function idOf(properties: MessageProperties): string {
  return String(properties.headers?.[PUBLISH_ID_HEADER] ?? properties.messageId)
}
