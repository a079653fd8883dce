/**
 * A lane over AMQP: publishes on one channel with confirms, and tells for each message how it ended.
 *
 *   closed ──attach──► open ◄──unblock, block──► blocked       any ──detach──► closed
 *
 * Never retries. Bound: its publisher's window; the client pins `PUBLISH_FRAME_MAX` bytes for each
 * message that is not settled.
 */

import type { AMQPChannel } from "@cloudamqp/amqp-client"
import { AMQPView } from "@cloudamqp/amqp-client/amqp-view"
import {
  type Lane,
  type LaneListener,
  type LaneState,
  type MessageProperties,
  type OutgoingMessage,
  POST_ID_HEADER,
  type PublishResult,
} from "./broker.ts"

/** Each unconfirmed publish of the client pins a buffer of this size, so it is the least allowed. */
export const PUBLISH_FRAME_MAX = 8_192
/** What is left in a publish buffer for properties, beside the longest names and the frames' own. */
const MAX_PROPERTY_BYTES = PUBLISH_FRAME_MAX - 600

/** What a command's headers mean is decided by whoever reads them; here they are just carried. */
type ClientProperties = Parameters<AMQPChannel["basicPublish"]>[3]

export class AmqpLane implements Lane {
  readonly #listener: LaneListener
  #channel: AMQPChannel | null = null
  #blocked = false
  /** Ids of returned messages whose confirm, which follows the return, has not come yet. */
  readonly #returned = new Set<string>()

  constructor(listener: LaneListener) {
    this.#listener = listener
  }

  get state(): LaneState {
    if (this.#channel === null || this.#channel.closed) return "closed"
    return this.#blocked ? "blocked" : "open"
  }

  attach(channel: AMQPChannel, blocked: boolean): void {
    this.#channel = channel
    this.#blocked = blocked
    this.#returned.clear()
    channel.onReturn = (message) => this.#returned.add(idOf(message.properties))
    if (!blocked) this.#listener.opened()
  }

  detach(): void {
    this.#channel = null
  }

  block(): void {
    this.#blocked = true
  }

  unblock(): void {
    this.#blocked = false
    if (this.#channel !== null) this.#listener.opened()
  }

  publish(message: OutgoingMessage, settled: (result: PublishResult) => void): void {
    const channel = this.#channel
    if (channel === null) {
      queueMicrotask(() => settled("cut"))
      return
    }
    const { id, exchange, routingKey, body } = message
    const properties = message.properties as ClientProperties
    if (message.checked !== true && !(fitsFrame(properties) && fitsName(routingKey))) {
      queueMicrotask(() => settled("unencodable"))
      return
    }
    const { mandatory = true } = message
    channel.basicPublish(exchange, routingKey, body, properties, mandatory).then(
      () =>
        settled(this.#returned.size > 0 && this.#returned.delete(id) ? "returned" : "confirmed"),
      (error: unknown) => settled(failure(error)),
    )
  }
}

/** The client rejects with plain messages; only this one tells a nack apart. */
function failure(error: unknown): PublishResult {
  return error instanceof Error && error.message === "Message rejected" ? "nacked" : "cut"
}

const propertyBuffer = new AMQPView(new ArrayBuffer(MAX_PROPERTY_BYTES))

/**
 * Whether the properties can be encoded in one frame. Asked beforehand: the client's own buffers grow
 * with the bodies they carried, and the broker closes the connection at a header frame too large.
 */
function fitsFrame(properties: ClientProperties): boolean {
  try {
    propertyBuffer.setProperties(0, properties ?? {})
    return true
  } catch {
    return false
  }
}

/** A name that was no UTF-8 when it came in, such as a `reply_to`, has grown since. */
function fitsName(name: string): boolean {
  return Buffer.byteLength(name) <= 255
}

function idOf(properties: MessageProperties): string {
  return String(properties.headers?.[POST_ID_HEADER] ?? properties.messageId)
}
