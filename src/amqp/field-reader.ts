/**
 * Reads the contents of AMQP 0-9-1 frames: numbers, texts, tables and the properties of a message.
 *
 * A JavaScript value does not keep its AMQP type and bytes. Headers with a value that would be
 * written as other bytes carry the table they were read from (`republishing.ts`). Most headers have
 * no such value and need no copy. Pure. Bounds: `MAX_DEPTH` for nested tables, and the frame.
 */

import type { HeaderValue, MessageProperties } from "../broker/broker.ts"
import { OutOfRangeDate, RECEIVED, setHeader } from "../broker/republishing.ts"
import {
  APP_ID,
  ARRAY,
  BOOLEAN,
  BYTES,
  CLUSTER_ID,
  CONTENT_ENCODING,
  CONTENT_TYPE,
  CORRELATION_ID,
  DECIMAL,
  DELIVERY_MODE,
  EXPIRATION,
  FLOAT_32,
  FLOAT_64,
  HEADERS,
  INT_8,
  INT_16,
  INT_32,
  INT_64,
  MESSAGE_ID,
  PRIORITY,
  REPLY_TO,
  STRING,
  TABLE,
  TIME,
  TIMESTAMP,
  TYPE,
  UINT_8,
  UINT_16,
  UINT_32,
  UINT_64,
  USER_ID,
  VOID,
} from "./protocol.ts"
import { StringCache } from "./string-cache.ts"

const TWO_TO_32 = 2 ** 32
const TWO_TO_63 = 2 ** 63
const DIGIT_0 = 0x30
const DIGIT_9 = 0x39
/**
 * More than any real message has. Without a bound a message could exhaust the stack at each
 * delivery.
 */
const MAX_DEPTH = 100

/** An entry of a table, with the position of its value in the bytes of the table. */
export interface TableEntry {
  readonly name: string
  /** From the type of the value to its end. */
  readonly from: number
  readonly to: number
}

/** Shared by all readers, since the texts are the same on every connection. */
const stringCache = new StringCache()

export class FieldReader {
  /** The bytes that are read; a plain `Uint8Array`, not a subclass. */
  bytes: Uint8Array = new Uint8Array(0)
  /** Index of the next byte, and of the end. */
  at = 0
  end = 0
  /** The state of the table or array that is being read. */
  #depth = 0
  /** Whether the frame writer would write the values read so far as the same bytes. */
  #exact = true

  begin(bytes: Uint8Array, at: number, end: number): void {
    this.bytes = bytes
    this.at = at
    this.end = end
    this.#depth = 0
  }

  /** The entries of a table without its size field. */
  entries(table: Uint8Array): TableEntry[] {
    const entries: TableEntry[] = []
    this.begin(viewOf(table), 0, table.length)
    while (this.at < table.length) {
      const name = this.#shortText()
      const from = this.at
      this.#field()
      entries.push({ name, from, to: this.at })
    }
    return entries
  }

  properties(): MessageProperties {
    stringCache.beginMessage()
    const flags = (this.uint8() << 8) | this.uint8()
    const properties: MessageProperties = {}
    if (flags & CONTENT_TYPE) properties.contentType = this.#shortText()
    if (flags & CONTENT_ENCODING) properties.contentEncoding = this.#shortText()
    if (flags & HEADERS) properties.headers = this.#headers()
    if (flags & DELIVERY_MODE) properties.deliveryMode = this.uint8()
    if (flags & PRIORITY) properties.priority = this.uint8()
    if (flags & CORRELATION_ID) properties.correlationId = this.#shortText()
    if (flags & REPLY_TO) properties.replyTo = this.#shortText()
    if (flags & EXPIRATION) properties.expiration = this.#shortText()
    if (flags & MESSAGE_ID) properties.messageId = this.#shortText()
    if (flags & TIMESTAMP) properties.timestamp = this.#time()
    if (flags & TYPE) properties.type = this.#shortText()
    if (flags & USER_ID) properties.userId = this.#shortText()
    if (flags & APP_ID) properties.appId = this.#shortText()
    if (flags & CLUSTER_ID) properties.clusterId = this.#shortText()
    return properties
  }

  /** With the received bytes, when the values would be written as other bytes. */
  #headers(): Record<string, HeaderValue> {
    const at = this.at
    this.#exact = true
    const values: Record<string, HeaderValue> & { [RECEIVED]?: Uint8Array } = this.table()
    if (!this.#exact) values[RECEIVED] = this.bytes.slice(at + 4, this.at)
    return values
  }

  table(): Record<string, HeaderValue> {
    const table: Record<string, HeaderValue> = {}
    const end = this.#inside()
    while (this.at < end) {
      const name = this.#shortText()
      const value = this.#field()
      // An object keeps one value for each name, and orders names that are numbers first.
      const first = name.charCodeAt(0)
      if ((first >= DIGIT_0 && first <= DIGIT_9) || table[name] !== undefined) this.#exact = false
      setHeader(table, name, value)
    }
    this.#outside(end)
    return table
  }

  #array(): HeaderValue[] {
    const values: HeaderValue[] = []
    const end = this.#inside()
    while (this.at < end) values.push(this.#field())
    this.#outside(end)
    return values
  }

  /** The end of the table or array that starts here. One that is nested too deep is skipped. */
  #inside(): number {
    const size = this.uint32()
    const end = this.at + size
    if (end > this.end) throw new Error("a table longer than its frame")
    this.#depth += 1
    if (this.#depth > MAX_DEPTH && this.at < end) {
      this.at = end
      this.#exact = false
    }
    return end
  }

  #outside(end: number): void {
    this.#depth -= 1
    if (this.at !== end) throw new Error("a table that does not end where it should")
  }

  #field(): HeaderValue {
    const type = this.uint8()
    switch (type) {
      case STRING:
        return this.#text(this.uint32())
      case INT_64: {
        const value = this.#int64()
        if (!Number.isSafeInteger(value)) this.#exact = false
        return value
      }
      case BOOLEAN: {
        const value = this.uint8()
        if (value > 1) this.#exact = false
        return value === 1
      }
      case TABLE:
        return this.table()
      case ARRAY:
        return this.#array()
      case TIME:
        return this.#time()
      case VOID:
        return null
      case BYTES:
        return this.#take(this.uint32()).slice()
      case FLOAT_64: {
        // NaN has several encodings.
        const value = this.#view(8).getFloat64(0)
        if (Number.isNaN(value) || isWrittenAsInteger(value)) this.#exact = false
        return value
      }
      default:
        this.#exact = false
        return this.#otherNumber(type)
    }
  }

  /** A value of a type that the frame writer never uses. */
  #otherNumber(type: number): number {
    switch (type) {
      case INT_32:
        return this.uint32() | 0
      case INT_8:
        return (this.uint8() << 24) >> 24
      case UINT_8:
        return this.uint8()
      case INT_16:
        return (this.#uint16() << 16) >> 16
      case UINT_16:
        return this.#uint16()
      case UINT_32:
        return this.uint32()
      case UINT_64:
        return this.uint64()
      case FLOAT_32:
        return this.#view(4).getFloat32(0)
      case DECIMAL: {
        const scale = this.uint8()
        return this.uint32() / 10 ** scale
      }
      default:
        throw new Error(`a header of the unknown type ${type}`)
    }
  }

  #time(): Date {
    const at = this.at
    const time = new Date(this.#int64() * 1000)
    if (!Number.isNaN(time.getTime())) return time
    const { buffer, byteOffset } = this.bytes
    return new OutOfRangeDate(new DataView(buffer, byteOffset + at).getBigInt64(0))
  }

  #shortText(): string {
    return this.#text(this.uint8())
  }

  #text(bytes: number): string {
    const at = this.at
    this.skip(bytes)
    return stringCache.read(this.bytes, at, bytes)
  }

  #view(bytes: number): DataView {
    const { buffer, byteOffset } = this.#take(bytes)
    return new DataView(buffer, byteOffset)
  }

  #take(bytes: number): Uint8Array {
    const at = this.at
    this.skip(bytes)
    return this.bytes.subarray(at, at + bytes)
  }

  skip(bytes: number): void {
    this.at += bytes
    if (this.at > this.end) throw new Error("a frame that ends before what is in it")
  }

  uint8(): number {
    const at = this.at
    this.skip(1)
    return byteAt(this.bytes, at)
  }

  #uint16(): number {
    const at = this.at
    this.skip(2)
    return (byteAt(this.bytes, at) << 8) | byteAt(this.bytes, at + 1)
  }

  uint32(): number {
    const at = this.at
    this.skip(4)
    return uint32(this.bytes, at)
  }

  uint64(): number {
    return this.uint32() * TWO_TO_32 + this.uint32()
  }

  #int64(): number {
    return (this.uint32() | 0) * TWO_TO_32 + this.uint32()
  }
}

/** See `FieldReader.entries`. @throws when the bytes are not those of a table. */
export function tableEntries(table: Uint8Array): TableEntry[] {
  return new FieldReader().entries(table)
}

/** The rule by which the frame writer distinguishes integers from fractions. */
export function isWrittenAsInteger(value: number): boolean {
  return Number.isInteger(value) && Math.abs(value) < TWO_TO_63
}

/** A plain `Uint8Array`, whose `slice` copies; the `slice` of a `Buffer` is a view. */
export function viewOf({ buffer, byteOffset, length }: Uint8Array): Uint8Array {
  return new Uint8Array(buffer, byteOffset, length)
}

export function byteAt(bytes: Uint8Array, at: number): number {
  return bytes[at] as number
}

export function uint32(bytes: Uint8Array, at: number): number {
  return (
    byteAt(bytes, at) * 0x1000000 +
    ((byteAt(bytes, at + 1) << 16) | (byteAt(bytes, at + 2) << 8) | byteAt(bytes, at + 3))
  )
}
