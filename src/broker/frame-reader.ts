/**
 * Reads AMQP 0-9-1 frames as they come from the socket, and takes what comes in numbers: deliveries, returned messages
 * and confirms, of the channels for which they are wanted. All other frames are handed on whole, for the AMQP client.
 *
 *   push(chunk) ─► frame … frame ─┬─ ack, nack ───────────────────────────► confirmed
 *                                 ├─ deliver, return ► header ► body … ───► content
 *                                 └─ any other ───────────────────────────► other
 *
 * Why: the client makes a view for each frame, a promise-ready message object and a `Buffer` for each of some 15
 * texts of a delivery, and misreads some of it (docs/PERFORMANCE.md). Pure. Bounds: a frame of `mostBytes`, of which
 * the beginning of one is kept; one message a channel, of `MOST_BODY_BYTES`.
 */

import type { HeaderValue, MessageProperties } from "./broker.ts"
import { KnownTexts } from "./known-texts.ts"

const METHOD = 1
const HEADER = 2
const BODY = 3
const FRAME_END = 0xce
/** Type, channel and size; and the end. */
const HEAD_BYTES = 7
const OVERHEAD_BYTES = 8
const DELIVER = (60 << 16) | 60
const RETURN = (60 << 16) | 50
const CANCEL = (60 << 16) | 30
const ACK = (60 << 16) | 80
const NACK = (60 << 16) | 120
/** Of a nack RabbitMQ sets 2, "requeue", too. */
const MULTIPLE = 1
const TWO_TO_32 = 2 ** 32
/** Far more than anybody means; without a bound a message could use up the stack, again each time it is delivered. */
const MOST_DEPTH = 100
/** The most that RabbitMQ can be told to take. */
const MOST_BODY_BYTES = 536_870_912
const EMPTY = new Uint8Array(0)

/** A message that was delivered or, on a channel that publishes, returned. */
export interface Content {
  /** 0 for one that was returned. */
  readonly tag: number
  readonly redelivered: boolean
  readonly properties: MessageProperties
  readonly body: Uint8Array
}

export interface FrameTaker {
  /** Whether messages and confirms of a channel are taken here. */
  readonly takes: (channel: number) => boolean
  /** `body` is a copy; texts and numbers are anyway. */
  readonly content: (channel: number, content: Content) => void
  readonly confirmed: (channel: number, tag: number, multiple: boolean, nacked: boolean) => void
  /** A consumer of a channel has been cancelled; the frame goes to `other` all the same. */
  readonly cancelled: (channel: number) => void
  /** A whole frame, valid until the call returns. */
  readonly other: (frame: Uint8Array) => void
}

/** What has come of a message. */
interface Coming {
  readonly tag: number
  readonly redelivered: boolean
  properties: MessageProperties
  body: Uint8Array
  /** Bytes of the body, as its header says. */
  size: number
  /** Those that have come; -1 before the header. */
  bytes: number
}

/** One for all: texts are the same on every connection. */
const knownTexts = new KnownTexts()

export class FrameReader {
  readonly #mostBytes: number
  readonly #taker: FrameTaker
  /** The beginning of a frame whose end has not come. */
  #partial: Uint8Array | null = null
  readonly #coming = new Map<number, Coming>()
  // The frame that is being read.
  #bytes: Uint8Array = EMPTY
  #at = 0
  #end = 0
  /** Of the table or array that is being read. */
  #depth = 0

  /** @param mostBytes of a frame, its overhead included. */
  constructor(mostBytes: number, taker: FrameTaker) {
    this.#mostBytes = mostBytes
    this.#taker = taker
  }

  /** @throws when these are no frames, or frames that can't be read. */
  push(chunk: Uint8Array): void {
    const came = viewOf(chunk)
    const bytes = this.#partial === null ? came : viewOf(Buffer.concat([this.#partial, came]))
    this.#partial = null
    let start = 0
    while (bytes.length - start >= HEAD_BYTES) {
      const frameBytes = uint32(bytes, start + 3) + OVERHEAD_BYTES
      if (frameBytes > this.#mostBytes) {
        throw new Error(`a frame of ${frameBytes} bytes, at most ${this.#mostBytes}`)
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
    this.#bytes = bytes
    this.#at = start + HEAD_BYTES
    this.#end = end - 1
    this.#depth = 0
    if (!this.#taker.takes(channel) || !this.#taken(channel, byteAt(bytes, start))) {
      this.#taker.other(bytes.subarray(start, end))
    }
  }

  /** False when the frame is not for us. */
  #taken(channel: number, type: number): boolean {
    const coming = this.#coming.get(channel)
    switch (type) {
      case METHOD:
        return this.#end - this.#at >= 4 && this.#method(channel)
      case HEADER:
        if (coming === undefined) return false
        this.#header(coming)
        if (coming.size === 0) this.#complete(channel, coming)
        return true
      case BODY:
        if (coming === undefined || coming.bytes < 0) return false
        this.#body(coming)
        if (coming.bytes === coming.size) this.#complete(channel, coming)
        return true
      default:
        return false
    }
  }

  /** False when the method is not for us. */
  #method(channel: number): boolean {
    const method = uint32(this.#bytes, this.#at)
    this.#at += 4
    switch (method) {
      case ACK:
      case NACK: {
        const tag = this.#uint64()
        const multiple = (this.#uint8() & MULTIPLE) !== 0
        this.#taker.confirmed(channel, tag, multiple, method === NACK)
        return true
      }
      case DELIVER: {
        // The consumer's tag: there is one consumer a channel.
        this.#skip(this.#uint8())
        const tag = this.#uint64()
        this.#begin(channel, tag, this.#uint8() === 1)
        return true
      }
      case RETURN:
        this.#begin(channel, 0, false)
        return true
      case CANCEL:
        this.#taker.cancelled(channel)
        return false
      default:
        return false
    }
  }

  #begin(channel: number, tag: number, redelivered: boolean): void {
    this.#coming.set(channel, { tag, redelivered, properties: {}, body: EMPTY, size: 0, bytes: -1 })
  }

  #header(coming: Coming): void {
    // The class and a weight that is always 0.
    this.#skip(4)
    const bodyBytes = this.#uint64()
    if (bodyBytes > MOST_BODY_BYTES) throw new Error(`a message of ${bodyBytes} bytes`)
    coming.properties = this.#properties()
    coming.size = bodyBytes
    coming.bytes = 0
  }

  #body(coming: Coming): void {
    const bytes = this.#end - this.#at
    if (coming.bytes + bytes > coming.size) throw new Error("a body longer than announced")
    if (bytes === coming.size) coming.body = this.#bytes.slice(this.#at, this.#end)
    else {
      if (coming.bytes === 0) coming.body = new Uint8Array(coming.size)
      coming.body.set(this.#bytes.subarray(this.#at, this.#end), coming.bytes)
    }
    coming.bytes += bytes
  }

  #complete(channel: number, content: Coming): void {
    this.#coming.delete(channel)
    this.#taker.content(channel, content)
  }

  #properties(): MessageProperties {
    const flags = (this.#uint8() << 8) | this.#uint8()
    const properties: MessageProperties = {}
    if (flags & 0x8000) properties.contentType = this.#shortText()
    if (flags & 0x4000) properties.contentEncoding = this.#shortText()
    if (flags & 0x2000) properties.headers = this.#table()
    if (flags & 0x1000) properties.deliveryMode = this.#uint8()
    if (flags & 0x0800) properties.priority = this.#uint8()
    if (flags & 0x0400) properties.correlationId = this.#shortText()
    if (flags & 0x0200) properties.replyTo = this.#shortText()
    if (flags & 0x0100) properties.expiration = this.#shortText()
    if (flags & 0x0080) properties.messageId = this.#shortText()
    if (flags & 0x0040) properties.timestamp = this.#time()
    if (flags & 0x0020) properties.type = this.#shortText()
    if (flags & 0x0010) properties.userId = this.#shortText()
    if (flags & 0x0008) properties.appId = this.#shortText()
    return properties
  }

  #table(): Record<string, HeaderValue> {
    const table: Record<string, HeaderValue> = {}
    const end = this.#inside()
    while (this.#at < end) {
      const name = this.#shortText()
      const value = this.#field()
      if (name !== "__proto__") table[name] = value
      else Object.defineProperty(table, name, { value, enumerable: true, writable: true })
    }
    this.#outside(end)
    return table
  }

  #array(): HeaderValue[] {
    const values: HeaderValue[] = []
    const end = this.#inside()
    while (this.#at < end) values.push(this.#field())
    this.#outside(end)
    return values
  }

  /** Where the table or array ends that begins here; what is nested too deep is passed over. */
  #inside(): number {
    const size = this.#uint32()
    const end = this.#at + size
    if (end > this.#end) throw new Error("a table longer than its frame")
    this.#depth += 1
    if (this.#depth > MOST_DEPTH) this.#at = end
    return end
  }

  #outside(end: number): void {
    this.#depth -= 1
    if (this.#at !== end) throw new Error("a table that does not end where it should")
  }

  #field(): HeaderValue {
    const type = this.#uint8()
    switch (type) {
      case 0x53: // S
        return this.#text(this.#uint32())
      case 0x6c: // l
        return this.#int64()
      case 0x49: // I
        return this.#uint32() | 0
      case 0x74: // t
        return this.#uint8() === 1
      case 0x46: // F
        return this.#table()
      case 0x41: // A
        return this.#array()
      case 0x54: // T
        return this.#time()
      case 0x56: // V
        return null
      case 0x78: // x
        return this.#take(this.#uint32()).slice()
      case 0x62: // b
        return (this.#uint8() << 24) >> 24
      case 0x42: // B
        return this.#uint8()
      case 0x73: // s
        return (this.#uint16() << 16) >> 16
      case 0x75: // u
        return this.#uint16()
      case 0x69: // i
        return this.#uint32()
      case 0x4c: // L, which RabbitMQ passes on
        return this.#uint64()
      case 0x66: // f
        return this.#view(4).getFloat32(0)
      case 0x64: // d
        return this.#view(8).getFloat64(0)
      case 0x44: {
        // D
        const scale = this.#uint8()
        return this.#uint32() / 10 ** scale
      }
      default:
        throw new Error(`a header of the unknown type ${type}`)
    }
  }

  #time(): Date {
    return new Date(this.#int64() * 1000)
  }

  #shortText(): string {
    return this.#text(this.#uint8())
  }

  #text(bytes: number): string {
    const at = this.#at
    this.#skip(bytes)
    return knownTexts.read(this.#bytes, at, bytes)
  }

  #view(bytes: number): DataView {
    const { buffer, byteOffset } = this.#take(bytes)
    return new DataView(buffer, byteOffset)
  }

  #take(bytes: number): Uint8Array {
    const at = this.#at
    this.#skip(bytes)
    return this.#bytes.subarray(at, at + bytes)
  }

  #skip(bytes: number): void {
    this.#at += bytes
    if (this.#at > this.#end) throw new Error("a frame that ends before what is in it")
  }

  #uint8(): number {
    const at = this.#at
    this.#skip(1)
    return byteAt(this.#bytes, at)
  }

  #uint16(): number {
    const at = this.#at
    this.#skip(2)
    return (byteAt(this.#bytes, at) << 8) | byteAt(this.#bytes, at + 1)
  }

  #uint32(): number {
    const at = this.#at
    this.#skip(4)
    return uint32(this.#bytes, at)
  }

  #uint64(): number {
    return this.#uint32() * TWO_TO_32 + this.#uint32()
  }

  #int64(): number {
    return (this.#uint32() | 0) * TWO_TO_32 + this.#uint32()
  }
}

/** A Buffer's slice is a view; what is kept must be a copy. */
function viewOf({ buffer, byteOffset, length }: Uint8Array): Uint8Array {
  return new Uint8Array(buffer, byteOffset, length)
}

function byteAt(bytes: Uint8Array, at: number): number {
  return bytes[at] as number
}

function uint32(bytes: Uint8Array, at: number): number {
  return (
    byteAt(bytes, at) * 0x1000000 +
    ((byteAt(bytes, at + 1) << 16) | (byteAt(bytes, at + 2) << 8) | byteAt(bytes, at + 3))
  )
}
