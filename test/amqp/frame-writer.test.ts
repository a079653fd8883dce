/**
 * What the frame writer writes, read back by the AMQP client's own decoder and, where that reads
 * more than AMQP says, byte by byte; and that a publish that can't be written leaves no trace.
 */

import { describe, expect, test } from "bun:test"
import { AMQPView } from "@cloudamqp/amqp-client/amqp-view"
import fc from "fast-check"
import { FrameWriter, Unencodable } from "../../src/amqp/frame-writer.ts"
import type { HeaderValue, MessageProperties, OutgoingMessage } from "../../src/broker/broker.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

const CAPACITY = 65_536
const FRAME_MAX = 8_192
const METHOD = 1
const HEADER = 2
const BODY = 3
const FRAME_END = 0xce
/** In a publish without exchange and routing key. */
const PROPERTIES_AT = 36
const TWO_TO_63 = 2n ** 63n

/** A writer whose bytes are anything but 0, so that one that is left out shows. */
function writerOf(capacity = CAPACITY): FrameWriter {
  const writer = new FrameWriter(capacity)
  writer.bytes.fill(0xaa)
  return writer
}

function message(more: Partial<OutgoingMessage> = {}): OutgoingMessage {
  return { id: "", exchange: "", routingKey: "", body: new Uint8Array(0), properties: {}, ...more }
}

function withHeaders(headers: Record<string, HeaderValue>): OutgoingMessage {
  return message({ properties: { headers } })
}

function written(writer: FrameWriter): Buffer {
  return writer.bytes.subarray(0, writer.length)
}

function hex(bytes: Buffer): string {
  return bytes.toString("hex")
}

function published(given: OutgoingMessage, most = CAPACITY): Buffer {
  const writer = writerOf()
  writer.publish(1, given, most)
  return written(writer)
}

interface Frame {
  readonly type: number
  readonly channel: number
  readonly payload: AMQPView
}

/** Takes the bytes apart, to the last one. */
function framesIn(bytes: Buffer): Frame[] {
  const frames: Frame[] = []
  for (let at = 0; at < bytes.length; ) {
    const size = bytes.readUInt32BE(at + 3)
    const { buffer, byteOffset } = bytes
    const payload = new AMQPView(buffer, byteOffset + at + 7, size)
    frames.push({ type: bytes.readUInt8(at), channel: bytes.readUInt16BE(at + 1), payload })
    expect(bytes.readUInt8(at + 7 + size)).toBe(FRAME_END)
    at += 8 + size
  }
  return frames
}

/** What the two frames of a publish say. */
function readPublish(bytes: Buffer) {
  const [method, header, ...others] = framesIn(bytes)
  if (!method || !header) throw new Error("no two frames")
  expect([method.type, header.type, others]).toEqual([METHOD, HEADER, []])
  const [exchange, exchangeBytes] = method.payload.getShortString(6)
  const [routingKey, keyBytes] = method.payload.getShortString(6 + exchangeBytes)
  const bitsAt = 6 + exchangeBytes + keyBytes
  const [properties, propertyBytes] = header.payload.getProperties(12)
  expect(method.payload.byteLength).toBe(bitsAt + 1)
  expect(header.payload.byteLength).toBe(12 + propertyBytes)
  return {
    channels: [method.channel, header.channel],
    classes: [
      method.payload.getUint32(0),
      method.payload.getUint16(4),
      header.payload.getUint32(0),
    ],
    exchange,
    routingKey,
    bits: method.payload.getUint8(bitsAt),
    bodyBytes: header.payload.getBigUint64(4),
    properties,
  }
}

/** What must be read of a value that was written. */
function readAs(value: HeaderValue): HeaderValue {
  if (value === null || value === undefined) return null
  if (typeof value === "string") return value.toWellFormed()
  if (typeof value === "bigint") return Number(value)
  if (typeof value === "number") return value === 0 ? 0 : value
  if (value instanceof Date) return new Date(Math.floor(value.getTime() / 1000) * 1000)
  if (typeof value === "boolean" || value instanceof Uint8Array) return value
  if (Array.isArray(value)) return value.map(readAs)
  return tableReadAs(value as Record<string, HeaderValue>)
}

function tableReadAs(table: Record<string, HeaderValue>): Record<string, HeaderValue> {
  const said = Object.entries(table).filter(([, value]) => value !== undefined)
  return Object.fromEntries(said.map(([name, value]) => [name.toWellFormed(), readAs(value)]))
}

function propertiesReadAs(properties: MessageProperties): MessageProperties {
  return Object.fromEntries(
    Object.entries(properties).map(([name, value]) => [
      name,
      name === "headers" ? tableReadAs(value as Record<string, HeaderValue>) : readAs(value),
    ]),
  )
}

/** Of 1, 2, 3 and 4 bytes, and halves of pairs, which UTF-8 can't say. */
const character = fc.constantFrom(
  "a",
  "\u0000",
  "\u007f",
  "\u0080",
  "é",
  "€",
  "🔒",
  "\ud83d",
  "\udd12",
)
const shortText = fc.oneof(
  fc.string({ maxLength: 255 }),
  fc.array(character, { maxLength: 63, size: "max" }).map((characters) => characters.join("")),
)
/** The client's decoder takes `__proto__` for the prototype. */
const name = shortText.filter((text) => text !== "__proto__")

const BOUNDS = [31, 32, 52, 53, 62].flatMap((bits) => [2 ** bits - 1, 2 ** bits])
const integer = fc.oneof(
  fc.integer(),
  fc.maxSafeInteger(),
  fc.constantFrom(...BOUNDS, ...BOUNDS.map((bound) => -bound)),
  fc.bigInt(1n - TWO_TO_63, TWO_TO_63 - 1n).map(Number),
  fc.constantFrom(2 ** 63, -(2 ** 63), 2 ** 64, Number.MAX_VALUE),
)
const date = fc.date({ noInvalidDate: true })
const headers = fc.letrec<{ value: HeaderValue; table: Record<string, HeaderValue> }>((tie) => ({
  value: fc.oneof(
    { depthSize: "small", withCrossShrink: true },
    shortText,
    fc.string({ maxLength: 600, size: "max" }),
    integer,
    fc.double(),
    fc.bigInt(-TWO_TO_63, TWO_TO_63 - 1n),
    fc.constantFrom(true, false, null, undefined),
    date,
    fc.uint8Array(),
    fc.array(tie("value"), { maxLength: 4 }),
    tie("table"),
  ),
  table: fc.dictionary(name, tie("value"), { maxKeys: 5 }),
})).table

const byte = fc.nat(255)
const properties: fc.Arbitrary<MessageProperties> = fc.record(
  {
    contentType: shortText,
    contentEncoding: shortText,
    headers,
    deliveryMode: byte,
    priority: byte,
    correlationId: shortText,
    replyTo: shortText,
    expiration: shortText,
    messageId: shortText,
    timestamp: date,
    type: shortText,
    userId: shortText,
    appId: shortText,
  },
  { requiredKeys: [] },
)
const anyMessage: fc.Arbitrary<OutgoingMessage> = fc
  .record({
    exchange: shortText,
    routingKey: shortText,
    body: fc.nat(70_000).map((bytes) => new Uint8Array(bytes)),
    properties,
    optional: fc.boolean(),
  })
  .map(({ optional, ...said }) => message({ ...said, ...(optional ? { mandatory: false } : {}) }))
const channel = fc.integer({ min: 1, max: 65_535 })

/** Nothing is written of it, and what was there before stays. */
function expectRefused(given: OutgoingMessage, most: number, room = CAPACITY): void {
  const writer = writerOf(FrameWriter.ACK_BYTES + room)
  writer.acknowledge(1, 7)
  const before = Buffer.from(written(writer))
  expect(() => writer.publish(2, given, most)).toThrow(Unencodable)
  expect(writer.length).toBe(before.length)
  expect(written(writer)).toEqual(before)
}

describe("a publish", () => {
  test("any is read as it was meant", () => {
    check(
      fc.property(anyMessage, channel, (given, on) => {
        const writer = writerOf()
        writer.acknowledge(on, 1)
        writer.publish(on, given, CAPACITY - FrameWriter.ACK_BYTES)
        expect(readPublish(written(writer).subarray(FrameWriter.ACK_BYTES))).toEqual({
          channels: [on, on],
          classes: [(60 << 16) | 40, 0, 60 << 16],
          exchange: given.exchange.toWellFormed(),
          routingKey: given.routingKey.toWellFormed(),
          bits: given.mandatory === false ? 0 : 1,
          bodyBytes: BigInt(given.body.length),
          properties: propertiesReadAs(given.properties),
        })
      }),
      CHEAP_RUNS,
    )
  })

  test("any is written whole or not at all, by what it may take and by the room there is", () => {
    const share = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true })
    check(
      fc.property(anyMessage, share, (given, part) => {
        const whole = published(given)
        const less = Math.floor(whole.length * part)
        for (const most of [less, whole.length - 1]) {
          expectRefused(given, most)
          expectRefused(given, most, most)
        }
        const tight = writerOf(whole.length)
        tight.publish(1, given, whole.length)
        expect([tight.room, written(tight).equals(whole)]).toEqual([0, true])
      }),
    )
  })

  test("is a method frame, a header frame and frames of the body, to the byte", () => {
    const writer = writerOf()
    const body = Buffer.from("hello")
    writer.publish(258, message({ exchange: "ex", routingKey: "é", body }), CAPACITY)
    writer.body(258, body, 0, body.length)
    const expected =
      "01 0102 0000000d  003c 0028 0000  02 6578  02 c3a9  01  ce" +
      "02 0102 0000000e  003c 0000 0000000000000005  0000  ce" +
      "03 0102 00000005  68656c6c6f  ce"
    expect(hex(written(writer))).toBe(expected.replaceAll(" ", ""))
  })

  test("all properties follow each other in AMQP's order, to the byte", () => {
    const last = { appId: "M", userId: "L", type: "K", timestamp: new Date(1_999), messageId: "I" }
    const middle = { expiration: "H", replyTo: "G", correlationId: "F", priority: 5 }
    const first = { deliveryMode: 2, headers: { a: true }, contentEncoding: "B", contentType: "A" }
    const bytes = published(message({ properties: { ...last, ...middle, ...first } }))
    const expected =
      "fff8 0141 0142 00000004 0161 7401 02 05 0146 0147 0148 0149 0000000000000001 014b 014c 014d"
    expect(hex(bytes.subarray(PROPERTIES_AT, -1))).toBe(expected.replaceAll(" ", ""))
  })

  test("is mandatory, unless the message says that it is not", () => {
    expect(readPublish(published(message())).bits).toBe(1)
    expect(readPublish(published(message({ mandatory: false }))).bits).toBe(0)
  })

  test("properties that are undefined are left out, those that are empty or 0 are not", () => {
    const empty = { contentType: "", deliveryMode: 0, priority: 0, messageId: "", appId: "" }
    const properties = { ...empty, replyTo: undefined } as unknown as MessageProperties
    expect(readPublish(published(message({ properties }))).properties).toEqual(empty)
    expect(readPublish(published(withHeaders({}))).properties).toEqual({ headers: {} })
  })
})

describe("a header", () => {
  test.each<[HeaderValue, string]>([
    ["é", "53 00000002 c3a9"],
    ["", "53 00000000"],
    [1, "6c 0000000000000001"],
    [-1, "6c ffffffffffffffff"],
    [-0, "6c 0000000000000000"],
    [-(2 ** 32) - 1, "6c fffffffeffffffff"],
    [2 ** 53, "6c 0020000000000000"],
    [2 ** 63 - 1_024, "6c 7ffffffffffffc00"],
    [2 ** 63, "64 43e0000000000000"],
    [0.5, "64 3fe0000000000000"],
    [Number.NEGATIVE_INFINITY, "64 fff0000000000000"],
    [TWO_TO_63 - 1n, "6c 7fffffffffffffff"],
    [-TWO_TO_63, "6c 8000000000000000"],
    [true, "74 01"],
    [false, "74 00"],
    [null, "56"],
    [new Date(-1), "54 ffffffffffffffff"],
    [new Uint8Array([0, 255]), "78 00000002 00ff"],
    [[true, undefined], "41 00000003 7401 56"],
    [{ b: null, c: undefined }, "46 00000003 0162 56"],
  ])("%p has its type and bytes", (value, expected) => {
    const bytes = published(withHeaders({ a: value }))
    // After the flags, the table's size and the name.
    expect(hex(bytes.subarray(PROPERTIES_AT + 8, -1))).toBe(expected.replaceAll(" ", ""))
  })
})

function nested(around: (inner: HeaderValue) => HeaderValue): HeaderValue {
  let value: HeaderValue = []
  for (let depth = 0; depth < 50_000; depth += 1) value = around(value)
  return value
}

describe("is refused, and leaves no trace:", () => {
  const long = "x".repeat(256)
  const longAsUtf8 = "é".repeat(128)

  test.each<[string, Partial<OutgoingMessage>]>([
    ["an exchange of 256 bytes", { exchange: long }],
    ["a routing key of 256 bytes", { routingKey: long }],
    ["a routing key of 128 characters and 256 bytes", { routingKey: longAsUtf8 }],
    ["a property of 256 bytes", { properties: { appId: long } }],
    ["a header's name of 256 bytes", withHeaders({ [long]: 1 })],
    ["a nested name of 256 bytes", withHeaders({ a: [{ [longAsUtf8]: 1 }] })],
    ["a timestamp that is none", { properties: { timestamp: new Date(Number.NaN) } }],
    ["a header's time that is none", withHeaders({ a: [new Date(Number.NaN)] })],
    ["a text larger than the buffer", withHeaders({ a: "x".repeat(CAPACITY + 1) })],
    ["a text larger than the buffer in UTF-8", withHeaders({ a: "€".repeat(CAPACITY / 2) })],
    ["bytes larger than the buffer", withHeaders({ a: new Uint8Array(CAPACITY) })],
    ["an array larger than the buffer", withHeaders({ a: Array(CAPACITY).fill(null) })],
    ["an integer of over 64 bits", withHeaders({ a: 2n ** 63n })],
    ["a function", withHeaders({ a: (() => 1) as unknown as HeaderValue })],
  ])("%s", (_, more) => {
    expectRefused(message(more), CAPACITY)
  })

  test.each([
    ["arrays in arrays", nested((inner) => [inner])],
    ["tables in tables", nested((a) => ({ a }))],
  ])("%s, far deeper than a frame holds", (_, a) => {
    expectRefused(withHeaders({ a }), FRAME_MAX)
  })

  test("each kind of value in any room that is too little", () => {
    const objects = [null, new Date(0), new Uint8Array(1), [], {}]
    for (const value of ["a", "é", 1, 0.5, 1n, true, ...objects]) {
      const given = withHeaders({ a: value })
      const { length } = published(given)
      for (let room = 0; room < length; room += 1) expectRefused(given, room, room)
    }
  })

  test("what fails in another way", () => {
    const writer = writerOf()
    const properties = { messageId: "m", timestamp: 5 as unknown as Date }
    expect(() => writer.publish(1, message({ properties }), CAPACITY)).toThrow(TypeError)
    expect(writer.length).toBe(0)
  })
})

test.each(["x".repeat(255), "é".repeat(127)])(
  "a short string of up to 255 bytes is taken",
  (text) => {
    expect(readPublish(published(message({ routingKey: text }))).routingKey).toBe(text)
  },
)

test("a body goes into as many frames as are asked for", () => {
  const body = Buffer.from(Array.from({ length: 1_000 }, (_, i) => i))
  const writer = writerOf()
  for (const from of [0, 400, 800]) writer.body(3, body, from, Math.min(from + 400, body.length))
  const frames = framesIn(written(writer))
  expect(frames.map((frame) => [frame.type, frame.channel])).toEqual(Array(3).fill([BODY, 3]))
  expect(frames.map(({ payload }) => payload.byteLength)).toEqual([400, 400, 200])
  const parts = frames.map(
    ({ payload }) => new Uint8Array(payload.buffer, payload.byteOffset, payload.byteLength),
  )
  expect(Buffer.concat(parts)).toEqual(body)
})

test.each([
  [1, "0000000000000001"],
  [2 ** 32 + 5, "0000000100000005"],
  [Number.MAX_SAFE_INTEGER, "001fffffffffffff"],
])("the acknowledgement of delivery %d, to the byte", (tag, expected) => {
  const writer = writerOf(FrameWriter.ACK_BYTES)
  writer.acknowledge(0xabcd, tag)
  expect(hex(written(writer))).toBe(`01abcd0000000d003c0050${expected}00ce`)
  expect(writer.room).toBe(0)
})

test("frames that exist already are copied", () => {
  const writer = writerOf(10)
  const frames = Buffer.from([1, 2, 3])
  writer.append(frames)
  writer.append(frames.subarray(1))
  frames.fill(0)
  expect([...written(writer)]).toEqual([1, 2, 3, 2, 3])
  expect(writer.room).toBe(5)
})
