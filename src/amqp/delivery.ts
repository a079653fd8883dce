/**
 * A delivery over AMQP, and the acknowledgements of its channel.
 *
 * An acknowledgement of a lost delivery does nothing. Bound: the prefetch of the channel.
 */

import type { AMQPChannel } from "@cloudamqp/amqp-client"
import type { Delivery, MessageProperties } from "../broker/broker.ts"
import type { BatchingClient } from "./client.ts"
import type { InboundMessage } from "./frame-reader.ts"

/** The interval of fences while acknowledgements are sent; see `Acknowledgements`. */
const FENCE_MS = 250
/**
 * With few commands a tick, a write in each tick for their acknowledgements would be a seventh of
 * their cost.
 */
const SOON_MS = 1
/** Of messages that may repeat. A write for each would be a third of their cost. */
const LATE_MS = 50
/** So many of the prefetch may be acknowledged late. */
const LATE_PART = 4

/**
 * The acknowledgements on one channel, and which of them the broker has processed.
 *
 * AMQP does not confirm acknowledgements. But a channel processes methods in order, so the answer
 * to a later method (the fence: a `basic.qos` that changes nothing) proves that they were read. A
 * quorum queue processes them a little later, so only acknowledgements before the last but one
 * answered fence count as processed.
 */
export class Acknowledgements {
  readonly #client: BatchingClient
  readonly #channel: AMQPChannel
  readonly #prefetch: number
  readonly #mayRepeat: boolean
  #sent = 0
  #read = 0
  #processed = 0
  #fenceDue = false

  constructor(client: BatchingClient, channel: AMQPChannel, prefetch: number, mayRepeat: boolean) {
    this.#client = client
    this.#channel = channel
    this.#prefetch = prefetch
    this.#mayRepeat = mayRepeat
  }

  get closed(): boolean {
    return this.#channel.closed
  }

  /** Returns the number of the acknowledgement. */
  send(tag: number): number {
    this.#sent += 1
    if (this.#mayRepeat) {
      const isEnough = this.#sent % Math.ceil(this.#prefetch / LATE_PART) === 0
      this.#client.acknowledge(this.#channel.id, tag, isEnough ? SOON_MS : LATE_MS)
      return this.#sent
    }
    this.#client.acknowledge(this.#channel.id, tag, SOON_MS)
    this.#fenceSoon()
    return this.#sent
  }

  isProcessed(number: number): boolean {
    return number <= this.#processed
  }

  #fenceSoon(): void {
    if (this.#fenceDue) return
    this.#fenceDue = true
    setTimeout(() => this.#fence(), FENCE_MS).unref()
  }

  #fence(): void {
    if (this.#channel.closed) return
    const sent = this.#sent
    this.#channel.basicQos(this.#prefetch).then(
      () => {
        this.#processed = this.#read
        this.#read = sent
        this.#fenceDue = false
        if (this.#processed < this.#sent) this.#fenceSoon()
      },
      // The channel is closed. Deliveries whose acknowledgements were not processed are
      // redelivered.
      () => undefined,
    )
  }
}

export class AmqpDelivery implements Delivery {
  readonly queue: string
  readonly body: Uint8Array
  readonly properties: MessageProperties
  readonly redelivered: boolean
  readonly #acknowledgements: Acknowledgements
  readonly #tag: number
  /** The number of the acknowledgement; 0 before it. */
  #acknowledged = 0

  constructor(queue: string, acknowledgements: Acknowledgements, content: InboundMessage) {
    this.queue = queue
    this.body = content.body
    this.properties = content.properties
    this.redelivered = content.redelivered
    this.#acknowledgements = acknowledgements
    this.#tag = content.tag
  }

  get lost(): boolean {
    return this.#acknowledgements.closed
  }

  get settled(): boolean {
    return this.#acknowledged > 0 && this.#acknowledgements.isProcessed(this.#acknowledged)
  }

  acknowledge(): void {
    // A second acknowledgement of a delivery would close the channel.
    if (this.#acknowledged > 0 || this.#acknowledgements.closed) return
    this.#acknowledged = this.#acknowledgements.send(this.#tag)
  }
}
