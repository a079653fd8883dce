/**
 * Reads AMQP 0-9-1 frames from a socket. Deliveries, returned messages and confirms go to the
 * handlers of their channels, all other frames whole to the AMQP client.
 *
 *   push(chunk) ─► frame … frame ─┬─ ack, nack ───────────────────────────► confirmed
 *                                 ├─ deliver, return ► header ► body … ───► content
 *                                 └─ any other ───────────────────────────► other
 *
 * Why: the client makes a view for each frame, a message object, and a `Buffer` for each of some 15
 * texts of a delivery, and misreads some values (docs/PERFORMANCE.md). Pure. Bounds: the beginning
 * of one frame of `maxBytes`, and one message of `MAX_BODY_BYTES` for each channel.
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

/** In a nack RabbitMQ also sets 2, "requeue". */
const MULTIPLE = 1
/** The largest `max_message_size` of RabbitMQ. */
const MAX_BODY_BYTES = 536_870_912
const EMPTY = new Uint8Array(0)

/** A message that was delivered or, on a publish channel, returned. */
export interface InboundMessage {
  /** 0 for a returned message. */
  readonly tag: number
  readonly redelivered: boolean
  readonly properties: MessageProperties
  readonly body: Uint8Array
}

/** Handles messages and confirms of one channel in place of the client. */
export interface ChannelHandler {
  /** `body` is a copy. */
  readonly content?: (content: InboundMessage) => void
  /** A confirm of one publish, or with `multiple` of all up to it. */
  readonly confirmed?: (tag: number, multiple: boolean, nacked: boolean) => void
  /** The broker has cancelled a consumer. The client gets the frame too. */
  readonly cancelled?: () => void
}

export interface FrameHandler {
  /** The handler of a channel; undefined when the client handles it. */
  readonly handlerOf: (channel: number) => ChannelHandler | undefined
  /** Handles any other frame, which is valid until the call returns. */
  readonly other: (frame: Uint8Array) => void
}

/** The received part of a message. */
interface PartialMessage {
  readonly tag: number
  readonly redelivered: boolean
  properties: MessageProperties
  body: Uint8Array
  /** Bytes of the body according to the header. */
  size: number
  /** Received bytes of the body; -1 before the header. */
  bytes: number
}

export class FrameReader {
  readonly #maxBytes: number
  readonly #handler: FrameHandler
  /** The beginning of an incomplete frame. */
  #partial: Uint8Array | null = null
  readonly #coming = new Map<number, PartialMessage>()
  /** The state of the frame that is being read. */
  readonly #fields = new FieldReader()

  /** @param maxBytes of a frame, with its overhead. */
  constructor(maxBytes: number, handler: FrameHandler) {
    this.#maxBytes = maxBytes
    this.#handler = handler
  }

  /** @throws when the bytes are not valid frames. */
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

  /** False when the frame is for the client. */
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

  /** False when the method is for the client. */
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
        // The consumer tag; each channel has one consumer.
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
