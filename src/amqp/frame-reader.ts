/**
 * Reads AMQP 0-9-1 frames as they come from the socket, and takes what comes in numbers: deliveries, returned messages
 * and confirms, of the channels for which they are wanted. All other frames are handed on whole, for the AMQP client.
 *
 *   push(chunk) ─► frame … frame ─┬─ ack, nack ───────────────────────────► confirmed
 *                                 ├─ deliver, return ► header ► body … ───► content
 *                                 └─ any other ───────────────────────────► other
 *
 * Why: the client makes a view for each frame, a promise-ready message object and a `Buffer` for each of some 15
 * texts of a delivery, and misreads some of it (docs/PERFORMANCE.md). Pure. Bounds: a frame of `maxBytes`, of which
 * the beginning of one is kept; one message a channel, of `MAX_BODY_BYTES`.
 */

import type { MessageProperties } from "../broker/broker.ts"
import { byteAt, FieldReader, uint32, viewOf } from "./field-reader.ts"
import {
  BASIC_ACK,
  BASIC_CANCEL,
  BASIC_DELIVER,
  BASIC_NACK,
  BASIC_RETURN,
  BODY,
  FRAME_END,
  FRAME_HEAD,
  FRAME_OVERHEAD,
  HEADER,
  METHOD,
} from "./protocol.ts"

/** Of a nack RabbitMQ sets 2, "requeue", too. */
const MULTIPLE = 1
/** The most that RabbitMQ can be told to take. */
const MAX_BODY_BYTES = 536_870_912
const EMPTY = new Uint8Array(0)

/** A message that was delivered or, on a channel that publishes, returned. */
export interface InboundMessage {
  /** 0 for one that was returned. */
  readonly tag: number
  readonly redelivered: boolean
  readonly properties: MessageProperties
  readonly body: Uint8Array
}

/** Takes what comes on one channel past the client. */
export interface ChannelHandler {
  /** `body` is a copy; texts and numbers are anyway. */
  readonly content?: (content: InboundMessage) => void
  /** What the broker says of publishes: of one, or of all up to it. */
  readonly confirmed?: (tag: number, multiple: boolean, nacked: boolean) => void
  /** The broker has ended a consumer; the client gets the frame too. */
  readonly cancelled?: () => void
}

export interface FrameHandler {
  /** Who takes the messages and confirms of a channel; undefined leaves them to the client. */
  readonly handlerOf: (channel: number) => ChannelHandler | undefined
  /** Takes any other frame, whole; valid until the call returns. */
  readonly other: (frame: Uint8Array) => void
}

/** What has come of a message. */
interface PartialMessage {
  readonly tag: number
  readonly redelivered: boolean
  properties: MessageProperties
  body: Uint8Array
  /** Bytes of the body, as its header says. */
  size: number
  /** Those that have come; -1 before the header. */
  bytes: number
}

export class FrameReader {
  readonly #maxBytes: number
  readonly #handler: FrameHandler
  /** The beginning of a frame whose end has not come. */
  #partial: Uint8Array | null = null
  readonly #coming = new Map<number, PartialMessage>()
  /** The state of the frame that is being read. */
  readonly #fields = new FieldReader()

  /** @param mostBytes of a frame, its overhead included. */
  constructor(maxBytes: number, handler: FrameHandler) {
    this.#maxBytes = maxBytes
    this.#handler = handler
  }

  /** @throws when these are no frames, or frames that can't be read. */
  push(chunk: Uint8Array): void {
    const came = viewOf(chunk)
    const bytes = this.#partial === null ? came : viewOf(Buffer.concat([this.#partial, came]))
    this.#partial = null
    let start = 0
    while (bytes.length - start >= FRAME_HEAD) {
      const frameBytes = uint32(bytes, start + 3) + FRAME_OVERHEAD
      if (frameBytes > this.#maxBytes) {
        throw new Error(`a frame of ${frameBytes} bytes, at most ${this.#maxBytes}`)
      }
      const end = start + frameBytes
      if (end > bytes.length) break
      if (bytes[end - 1] !== FRAME_END) throw new Error("a frame that does not end where it should")
      this.#frame(bytes, start, end)
      start = end
    }
    if (start < bytes.length) this.#partial = bytes.slice(start)
  }

  #frame(bytes: Uint8Array, start: number, end: number): void {
    const channel = (byteAt(bytes, start + 1) << 8) | byteAt(bytes, start + 2)
    this.#fields.begin(bytes, start + FRAME_HEAD, end - 1)
    const handler = this.#handler.handlerOf(channel)
    if (handler === undefined || !this.#taken(channel, byteAt(bytes, start), handler)) {
      this.#handler.other(bytes.subarray(start, end))
    }
  }

  /** False when the frame is not for us. */
  #taken(channel: number, type: number, handler: ChannelHandler): boolean {
    const coming = this.#coming.get(channel)
    switch (type) {
      case METHOD:
        return this.#fields.end - this.#fields.at >= 4 && this.#method(channel, handler)
      case HEADER:
        if (coming === undefined) return false
        this.#header(coming)
        if (coming.size === 0) this.#complete(channel, coming, handler)
        return true
      case BODY:
        if (coming === undefined || coming.bytes < 0) return false
        this.#body(coming)
        if (coming.bytes === coming.size) this.#complete(channel, coming, handler)
        return true
      default:
        return false
    }
  }

  /** False when the method is not for us. */
  #method(channel: number, handler: ChannelHandler): boolean {
    const method = this.#fields.uint32()
    switch (method) {
      case BASIC_ACK:
      case BASIC_NACK: {
        const tag = this.#fields.uint64()
        const multiple = (this.#fields.uint8() & MULTIPLE) !== 0
        handler.confirmed?.(tag, multiple, method === BASIC_NACK)
        return true
      }
      case BASIC_DELIVER: {
        // The consumer's tag: there is one consumer a channel.
        this.#fields.skip(this.#fields.uint8())
        const tag = this.#fields.uint64()
        this.#begin(channel, tag, this.#fields.uint8() === 1)
        return true
      }
      case BASIC_RETURN:
        this.#begin(channel, 0, false)
        return true
      case BASIC_CANCEL:
        handler.cancelled?.()
        return false
      default:
        return false
    }
  }

  #begin(channel: number, tag: number, redelivered: boolean): void {
    this.#coming.set(channel, { tag, redelivered, properties: {}, body: EMPTY, size: 0, bytes: -1 })
  }

  #header(coming: PartialMessage): void {
    // The class and a weight that is always 0.
    this.#fields.skip(4)
    const bodyBytes = this.#fields.uint64()
    if (bodyBytes > MAX_BODY_BYTES) throw new Error(`a message of ${bodyBytes} bytes`)
    coming.properties = this.#fields.properties()
    coming.size = bodyBytes
    coming.bytes = 0
  }

  #body(coming: PartialMessage): void {
    const { bytes, at, end } = this.#fields
    const length = end - at
    if (coming.bytes + length > coming.size) throw new Error("a body longer than announced")
    if (length === coming.size) coming.body = bytes.slice(at, end)
    else {
      if (coming.bytes === 0) coming.body = new Uint8Array(coming.size)
      coming.body.set(bytes.subarray(at, end), coming.bytes)
    }
    coming.bytes += length
  }

  #complete(channel: number, content: PartialMessage, handler: ChannelHandler): void {
    this.#coming.delete(channel)
    handler.content?.(content)
  }
}
