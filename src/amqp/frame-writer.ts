/**
 * Writes AMQP 0-9-1 frames of publishes and acknowledgements into one buffer. All other frames are
 * the client's.
 *
 * Why: for each publish the client makes five promises, two views and a buffer of `frameMax`, which
 * was more than half of the cost of a line (docs/PERFORMANCE.md). Pure. Bound: the buffer; `room`
 * is the free part of it.
 */

import type { HeaderValue, MessageProperties, OutgoingMessage } from "../broker/broker.ts"
import { OutOfRangeDate, type ReceivedHeaders, receivedHeaders } from "../broker/republishing.ts"
import { unescapeBytes } from "./escaped-text.ts"
import { isWrittenAsInteger } from "./field-reader.ts"
import {
  APP_ID,
  ARRAY,
  BASIC,
  BASIC_ACK,
  BASIC_PUBLISH,
  BODY,
  BOOLEAN,
  BYTES,
  CLUSTER_ID,
  CONTENT_ENCODING,
  CONTENT_TYPE,
  CORRELATION_ID,
  DELIVERY_MODE,
  EXPIRATION,
  FLOAT_64,
  FRAME_END,
  FRAME_OVERHEAD,
  HEADER,
  HEADERS,
  INT_64,
  MESSAGE_ID,
  METHOD,
  PRIORITY,
  REPLY_TO,
  STRING,
  TABLE,
  TIME,
  TIMESTAMP,
  TYPE,
  USER_ID,
  VOID,
} from "./protocol.ts"
import { receivedEntries } from "./received-entries.ts"

const ACK_BYTES = 21
const MANDATORY = 1
const MAX_SHORT_STRING = 255
const TWO_TO_32 = 2 ** 32

/** A message cannot be encoded; the text says why. */
export class Unencodable extends Error {
  override readonly name = "Unencodable"
}

export class FrameWriter {
  readonly bytes: Buffer
  readonly #view: DataView
  /** The limit for the method and header frames of the current publish. */
  #limit = 0
  /** Bytes written. */
  length = 0

  constructor(capacity: number) {
    this.bytes = Buffer.allocUnsafeSlow(capacity)
    this.#view = new DataView(this.bytes.buffer, this.bytes.byteOffset, capacity)
  }

  /** Bytes that can still be written. */
  get room(): number {
    return this.bytes.length - this.length
  }

  /** Copies whole frames. There must be room. */
  append(frames: Uint8Array): void {
    this.bytes.set(frames, this.length)
    this.length += frames.length
  }

  /**
   * The method and header frames of a publish; frames of the body follow. Writes all or nothing.
   * @param max the limit in bytes for both.
   * @throws Unencodable when they exceed `max` or the room, or have a value that AMQP cannot
   * encode.
   */
  publish(channel: number, message: OutgoingMessage, max: number): void {
    const start = this.length
    this.#limit = Math.min(start + max, this.bytes.length)
    try {
      this.#begin(METHOD, channel)
      this.#method(BASIC_PUBLISH)
      this.#uint16(0)
      this.#shortString(message.exchange)
      this.#shortString(message.routingKey)
      this.#uint8(message.mandatory === false ? 0 : MANDATORY)
      this.#end(start)
      const header = this.length
      this.#begin(HEADER, channel)
      this.#uint16(BASIC)
      this.#uint16(0)
      this.#int64(message.body.length)
      this.#properties(message.properties)
      this.#end(header)
      this.#needs(0)
    } catch (error) {
      this.length = start
      throw error
    }
  }

  /** One body frame. There must be room. */
  body(channel: number, body: Uint8Array, from: number, to: number): void {
    const start = this.length
    this.#begin(BODY, channel)
    if (from === 0 && to === body.length) this.append(body)
    else this.append(body.subarray(from, to))
    this.#end(start)
  }

  /** Acknowledges one delivery. There must be room for `ACK_BYTES`. */
  acknowledge(channel: number, deliveryTag: number): void {
    const start = this.length
    this.#begin(METHOD, channel)
    this.#method(BASIC_ACK)
    this.#int64(deliveryTag)
    this.#uint8(0)
    this.#end(start)
  }

  static readonly ACK_BYTES = ACK_BYTES

  #begin(type: number, channel: number): void {
    this.#uint8(type)
    this.#uint16(channel)
    this.length += 4
  }

  #method(classAndMethod: number): void {
    this.#uint16(classAndMethod >>> 16)
    this.#uint16(classAndMethod & 0xffff)
  }

  #end(start: number): void {
    this.#uint8(FRAME_END)
    this.#sizeAt(start + 3, this.length - start - FRAME_OVERHEAD)
  }

  /** Properties that are undefined are left out. */
  #properties(p: MessageProperties): void {
    const flagsAt = this.length
    let flags = 0
    this.length += 2
    if (p.contentType !== undefined) {
      flags |= CONTENT_TYPE
      this.#shortString(p.contentType)
    }
    if (p.contentEncoding !== undefined) {
      flags |= CONTENT_ENCODING
      this.#shortString(p.contentEncoding)
    }
    if (p.headers !== undefined) {
      flags |= HEADERS
      const received = receivedHeaders(p.headers)
      if (received === undefined) this.#table(p.headers)
      else this.#receivedTable(p.headers, received)
    }
    if (p.deliveryMode !== undefined) {
      flags |= DELIVERY_MODE
      this.#uint8(p.deliveryMode)
    }
    if (p.priority !== undefined) {
      flags |= PRIORITY
      this.#uint8(p.priority)
    }
    if (p.correlationId !== undefined) {
      flags |= CORRELATION_ID
      this.#shortString(p.correlationId)
    }
    if (p.replyTo !== undefined) {
      flags |= REPLY_TO
      this.#shortString(p.replyTo)
    }
    if (p.expiration !== undefined) {
      flags |= EXPIRATION
      this.#shortString(p.expiration)
    }
    if (p.messageId !== undefined) {
      flags |= MESSAGE_ID
      this.#shortString(p.messageId)
    }
    if (p.timestamp !== undefined) {
      flags |= TIMESTAMP
      this.#seconds(p.timestamp)
    }
    if (p.type !== undefined) {
      flags |= TYPE
      this.#shortString(p.type)
    }
    if (p.userId !== undefined) {
      flags |= USER_ID
      this.#shortString(p.userId)
    }
    if (p.appId !== undefined) {
      flags |= APP_ID
      this.#shortString(p.appId)
    }
    if (p.clusterId !== undefined) {
      flags |= CLUSTER_ID
      this.#shortString(p.clusterId)
    }
    this.bytes[flagsAt] = flags >>> 8
    this.bytes[flagsAt + 1] = flags
  }

  /** Entries with unchanged values are copied in their received order; the others follow. */
  #receivedTable(headers: Record<string, HeaderValue>, received: ReceivedHeaders): void {
    const sizeAt = this.length
    this.#needs(4)
    this.length += 4
    const { copied, changed } = receivedEntries(headers, received)
    for (const { name, bytes } of copied) {
      this.#shortString(name)
      this.#needs(bytes.length)
      this.append(bytes)
    }
    for (const name of changed) {
      this.#shortString(name)
      this.#field(headers[name])
    }
    this.#sizeAt(sizeAt, this.length - sizeAt - 4)
  }

  #table(table: object): void {
    const sizeAt = this.length
    // Checked first, since the values may be tables again.
    this.#needs(4)
    this.length += 4
    for (const name in table) {
      const value = (table as Record<string, HeaderValue>)[name]
      if (value === undefined || !Object.hasOwn(table, name)) continue
      this.#shortString(name)
      this.#field(value)
    }
    this.#sizeAt(sizeAt, this.length - sizeAt - 4)
  }

  #array(values: readonly HeaderValue[]): void {
    const sizeAt = this.length
    this.#needs(4)
    this.length += 4
    for (const value of values) this.#field(value)
    this.#sizeAt(sizeAt, this.length - sizeAt - 4)
  }

  #field(value: HeaderValue): void {
    switch (typeof value) {
      case "string":
        this.#uint8(STRING)
        this.#longString(value)
        break
      case "number":
        if (isWrittenAsInteger(value)) {
          this.#uint8(INT_64)
          this.#int64(value)
        } else {
          this.#uint8(FLOAT_64)
          this.#needs(8)
          this.#view.setFloat64(this.length, value)
          this.length += 8
        }
        break
      case "bigint":
        if (BigInt.asIntN(64, value) !== value) throw new Unencodable("an integer of over 64 bits")
        this.#uint8(INT_64)
        this.#needs(8)
        this.#view.setBigInt64(this.length, value)
        this.length += 8
        break
      case "boolean":
        this.#uint8(BOOLEAN)
        this.#uint8(value ? 1 : 0)
        break
      case "object":
      case "undefined":
        this.#object(value)
        break
      default:
        throw new Unencodable(`a ${typeof value}`)
    }
  }

  #object(value: object | null | undefined): void {
    if (value === null || value === undefined) this.#uint8(VOID)
    else if (Array.isArray(value)) {
      this.#uint8(ARRAY)
      this.#array(value)
    } else if (value instanceof Date) {
      this.#uint8(TIME)
      this.#seconds(value)
    } else if (value instanceof Uint8Array) {
      this.#uint8(BYTES)
      this.#needs(4 + value.length)
      this.#sizeAt(this.length, value.length)
      this.length += 4
      this.append(value)
    } else {
      this.#uint8(TABLE)
      this.#table(value)
    }
  }

  #seconds(date: Date): void {
    const seconds = Math.floor(date.getTime() / 1000)
    if (!Number.isNaN(seconds)) this.#int64(seconds)
    else if (date instanceof OutOfRangeDate) {
      this.#needs(8)
      this.#view.setBigInt64(this.length, date.seconds)
      this.length += 8
    } else throw new Unencodable("an invalid time")
  }

  #shortString(text: string): void {
    const start = this.length
    this.length += 1
    const bytes = this.#text(text, MAX_SHORT_STRING)
    this.bytes[start] = bytes
  }

  #longString(text: string): void {
    const start = this.length
    this.length += 4
    this.#sizeAt(start, this.#text(text, this.bytes.length))
  }

  /** Writes UTF-8, with a fast path for ASCII. Returns the number of bytes. */
  #text(text: string, max: number): number {
    const { bytes, length: start } = this
    const { length } = text
    if (length > max) throw new Unencodable(`a text of ${length} characters or more`)
    this.#needs(length)
    for (let i = 0; i < length; i += 1) {
      const code = text.charCodeAt(i)
      if (code > 127) return this.#otherText(text, max)
      bytes[start + i] = code
    }
    this.length += length
    return length
  }

  #otherText(text: string, max: number): number {
    if (!text.isWellFormed()) return this.#escapedText(text, max)
    const size = Buffer.byteLength(text)
    if (size > max) throw new Unencodable(`a text of ${size} bytes`)
    this.#needs(size)
    this.bytes.write(text, this.length)
    this.length += size
    return size
  }

  #escapedText(text: string, max: number): number {
    const bytes = unescapeBytes(text)
    if (bytes.length > max) throw new Unencodable(`a text of ${bytes.length} bytes`)
    this.#needs(bytes.length)
    this.append(bytes)
    return bytes.length
  }

  #needs(bytes: number): void {
    if (this.length + bytes > this.#limit) throw new Unencodable("more than a frame holds")
  }

  #uint8(value: number): void {
    this.bytes[this.length] = value
    this.length += 1
  }

  #uint16(value: number): void {
    this.bytes[this.length] = value >>> 8
    this.bytes[this.length + 1] = value
    this.length += 2
  }

  #sizeAt(at: number, value: number): void {
    const { bytes } = this
    bytes[at] = value >>> 24
    bytes[at + 1] = value >>> 16
    bytes[at + 2] = value >>> 8
    bytes[at + 3] = value
  }

  /** An integer of less than 63 bits, or its sign. */
  #int64(value: number): void {
    this.#sizeAt(this.length, Math.floor(value / TWO_TO_32))
    this.#sizeAt(this.length + 4, value)
    this.length += 8
  }
}
