/**
 * What the frame reader makes of frames, however they are cut: messages as whoever wrote them meant
 * them, confirms, and all else handed on whole; and that bytes that are no frames, or can't be
 * read, end in an error.
 */

import { describe, expect, test } from "bun:test"
import { AMQPView } from "@cloudamqp/amqp-client/amqp-view"
import fc from "fast-check"
import { FrameReader } from "../../src/amqp/frame-reader.ts"
import { FrameWriter } from "../../src/amqp/frame-writer.ts"
import type { HeaderValue, MessageProperties } from "../../src/broker/broker.ts"
import { RECEIVED } from "../../src/broker/republishing.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

const CAPACITY = 1_048_576
const METHOD = 1
const HEADER = 2
const BODY = 3
/** The channel that is left to the client. */
const CLIENTS = 0xffff
const TWO_TO_63 = 2n ** 63n

/** Bytes, or such in hexadecimal digits. */
type Part = string | Uint8Array

function bytesOf(...parts: readonly Part[]): Buffer {
  const bytes = (part: Part) =>
    typeof part === "string" ? Buffer.from(part.replaceAll(" ", ""), "hex") : part
  return Buffer.concat(parts.map(bytes))
}

const uint = (bytes: number, value: number | bigint) => value.toString(16).padStart(2 * bytes, "0")

/** Behind its size, which takes this many bytes. */
function sized(sizeBytes: number, ...parts: readonly Part[]): Buffer {
  const bytes = bytesOf(...parts)
  return bytesOf(uint(sizeBytes, bytes.length), bytes)
}

const short = (text: string) => sized(1, Buffer.from(text))
/** Properties that are a table of headers alone. */
const table = (...headers: readonly Part[]) => bytesOf("2000", sized(4, ...headers))

const frame = (type: number, on: number, ...payload: readonly Part[]) =>
  bytesOf(uint(1, type), uint(2, on), sized(4, ...payload), "ce")
const NAMES = bytesOf(short("an-exchange"), short("a-key"))
const deliver = (on: number, tag: number, redelivered = "00") =>
  frame(METHOD, on, "003c 003c", short("a-consumer"), uint(8, tag), redelivered, NAMES)
const returned = (on: number) => frame(METHOD, on, "003c 0032 0138", short("NO_ROUTE"), NAMES)
const header = (on: number, bodyBytes: number | bigint, ...properties: readonly Part[]) =>
  frame(HEADER, on, "003c 0000", uint(8, bodyBytes), ...properties)

/** The body in frames of `most` bytes. */
function bodies(on: number, body: Uint8Array, most: number): Buffer[] {
  const part = (_: unknown, at: number) => body.subarray(at * most, (at + 1) * most)
  const parts = Array.from({ length: Math.ceil(body.length / most) }, part)
  return parts.map((bytes) => frame(BODY, on, bytes))
}

interface Told {
  readonly channel: number
  readonly content?: readonly [number, boolean, MessageProperties, Uint8Array]
  readonly confirmed?: readonly [number, boolean, boolean]
  readonly cancelled?: true
  readonly other?: string
}

function content(on: number, tag: number, properties: MessageProperties, body: Part = ""): Told {
  return { channel: on, content: [tag, false, properties, new Uint8Array(bytesOf(body))] }
}

function other(frame: Buffer): Told {
  return { channel: frame.readUInt16BE(1), other: frame.toString("hex") }
}

/** The values only; `received-entries.test.ts` tests the bytes they came in. */
function valuesAlone(properties: MessageProperties): MessageProperties {
  if (properties.headers !== undefined) Reflect.deleteProperty(properties.headers, RECEIVED)
  return properties
}

/** Each chunk is overwritten when it has been read, so that what is no copy shows. */
function readUntilError(chunks: readonly Uint8Array[], mostBytes = CAPACITY) {
  const told: Told[] = []
  const reader = new FrameReader(mostBytes, {
    handlerOf: (channel) => {
      if (channel === CLIENTS) return undefined
      return {
        content: ({ tag, redelivered, properties, body }) =>
          told.push({ channel, content: [tag, redelivered, valuesAlone(properties), body] }),
        confirmed: (...confirmed) => told.push({ channel, confirmed }),
        cancelled: () => told.push({ channel, cancelled: true }),
      }
    },
    other: (frame) => told.push(other(Buffer.from(frame))),
  })
  for (const chunk of chunks) {
    const given = Buffer.from(chunk)
    try {
      reader.push(given)
    } catch (error) {
      return { told, error }
    }
    given.fill(0xaa)
  }
  return { told, error: null }
}

function read(chunks: readonly Uint8Array[], mostBytes = CAPACITY): Told[] {
  const { told, error } = readUntilError(chunks, mostBytes)
  if (error !== null) throw error
  return told
}

/** What is read of a message without a body. */
function propertiesIn(...properties: readonly Part[]): MessageProperties | undefined {
  return read([deliver(1, 1), header(1, 0, ...properties)])[0]?.content?.[2]
}

function cut(bytes: Buffer, places: readonly number[]): Buffer[] {
  const ends = [...places.map((place) => place % bytes.length), bytes.length].sort((a, b) => a - b)
  return ends.map((end, at) => bytes.subarray(ends[at - 1] ?? 0, end))
}

function encodedByWriter(properties: MessageProperties): Uint8Array {
  const writer = new FrameWriter(CAPACITY)
  const said = { id: "", exchange: "", routingKey: "", body: new Uint8Array(0), properties }
  writer.publish(1, said, CAPACITY)
  // Behind the whole method frame and, in the header frame, class, weight and size.
  return writer.bytes.subarray(writer.bytes.readUInt32BE(3) + 8 + 19, writer.length - 1)
}

function encodedByClient(properties: MessageProperties): Uint8Array {
  const view = new AMQPView(new ArrayBuffer(CAPACITY))
  return new Uint8Array(view.buffer, 0, view.setProperties(0, properties as never))
}

/** It writes 32 bits where it should write 64. */
function asClientSays(value: number): number {
  const small = Math.abs(value) < 2 ** 32
  if (!Number.isInteger(value)) return small ? Math.fround(value) : value
  return small ? value | 0 : Number(BigInt.asIntN(64, BigInt(value)))
}

/**
 * What must be read of a value: UTF-8, whole seconds and 64 bits are not all that a value may hold.
 */
function readAs(value: HeaderValue, number: (value: number) => number): HeaderValue {
  if (value === null || value === undefined) return null
  if (typeof value === "string") return value.toWellFormed()
  if (typeof value === "bigint") return Number(value)
  if (typeof value === "number") return number(value)
  if (value instanceof Date) return new Date(Math.floor(value.getTime() / 1000) * 1000)
  if (typeof value === "boolean" || value instanceof Uint8Array) return value
  if (Array.isArray(value)) return value.map((each) => readAs(each, number))
  const said = Object.entries(value).filter(([, each]) => each !== undefined)
  return Object.fromEntries(said.map(([name, each]) => [name.toWellFormed(), readAs(each, number)]))
}

const character = fc.constantFrom(..."a\0\x7f\x80é€\ufeff🔒", "\ud83d", "\udd12")
const shortText = fc.oneof(
  fc.string({ maxLength: 255 }),
  fc.array(character, { maxLength: 63, size: "max" }).map((characters) => characters.join("")),
)
const longText = fc.string({ maxLength: 600, size: "max" })
const BOUNDS = [31, 32, 52, 53, 62, 63].flatMap((bits) => [2 ** bits - 1, 2 ** bits])
const bound = fc.constantFrom(...BOUNDS, ...BOUNDS.map((bound) => -bound), Number.MAX_VALUE)
const integer = fc.oneof(fc.integer(), fc.maxSafeInteger(), fc.bigInt(-TWO_TO_63, TWO_TO_63 - 1n))
const number = fc.oneof(bound, integer, fc.double())
const date = fc.date({ noInvalidDate: true })
const constant = fc.constantFrom(true, false, null, undefined)
const plain = fc.oneof(shortText, longText, number, date, constant, fc.uint8Array())
type Headers = Record<string, HeaderValue>
const { headers } = fc.letrec<{ value: HeaderValue; headers: Headers }>((tie) => ({
  value: fc.oneof({ depthSize: "small" }, plain, fc.array(tie("value")), tie("headers")),
  headers: fc.dictionary(shortText, tie("value"), { maxKeys: 5 }),
}))
const TEXTS = ["contentType", "contentEncoding", "correlationId", "replyTo", "expiration"]
const MORE_TEXTS = ["messageId", "type", "userId", "appId"]
const texts = [...TEXTS, ...MORE_TEXTS].map((name) => [name, shortText])
const byte = fc.nat(255)
const anyProperties: fc.Arbitrary<MessageProperties> = fc.record(
  { ...Object.fromEntries(texts), headers, deliveryMode: byte, priority: byte, timestamp: date },
  { requiredKeys: [] },
)
const places = fc.array(fc.nat())

/** With all properties, and headers of every kind. */
const FULL = encodedByWriter({
  ...Object.fromEntries(texts.map(([name]) => [name, `the ${name}`])),
  ...{ deliveryMode: 2, priority: 5, timestamp: new Date(0) },
  headers: { s: "é", i: 1, f: 0.5, t: true, T: new Date(0), x: new Uint8Array(3), F: { A: [[1]] } },
})

describe("a message", () => {
  const all = () => true
  test.each<[string, typeof encodedByWriter, typeof asClientSays, (value: unknown) => boolean]>([
    // It knows no -0.
    ["frame writer", encodedByWriter, (value) => value + 0, all],
    // It leaves out properties that are empty or 0.
    ["AMQP client", encodedByClient, asClientSays, Boolean],
  ])("has the properties that the %s gave it", (_, encoded, number, isWritten) => {
    check(
      fc.property(anyProperties, (given) => {
        const said = Object.entries(given).filter(([, value]) => isWritten(value))
        const properties = readAs(Object.fromEntries(said), number) as MessageProperties
        const frames = [deliver(1, 7), header(1, 0, encoded(given))]
        expect(read(frames)).toStrictEqual([content(1, 7, properties)])
      }),
      CHEAP_RUNS,
    )
  })

  test("has properties that are there but empty", () => {
    const empty = { contentType: "", headers: {}, deliveryMode: 0, timestamp: new Date(0) }
    expect(propertiesIn("b040 00 00000000 00 0000000000000000")).toStrictEqual(empty)
  })

  test.each<[string, HeaderValue]>([
    ["53 00000002 c3a9", "é"],
    ["62 80", -128],
    ["42 ff", 255],
    ["73 8000", -32_768],
    ["75 ffff", 65_535],
    ["49 80000000", -(2 ** 31)],
    ["69 ffffffff", 2 ** 32 - 1],
    ["6c 8000000000000000", -(2 ** 63)],
    ["6c 0020000000000001", 2 ** 53],
    ["4c ffffffffffffffff", 2 ** 64],
    ["66 bfc00000", -1.5],
    ["64 3ff8000000000000", 1.5],
    ["74 01", true],
    ["54 ffffffffffffffff", new Date(-1_000)],
    ["56", null],
    ["44 02 0000007d", 1.25],
    ["78 00000003 0001ff", Uint8Array.of(0, 1, 255)],
    ["41 00000008 56 41 00000002 4207", [null, [7]]],
    ["46 0000000c 0162 46 00000002 00 56 0163 56", { b: { "": null }, c: null }],
  ])("has the header %s", (field, value) => {
    const frames = table(short("a"), field, short("z"), "56")
    expect(propertiesIn(frames)).toStrictEqual({ headers: { a: value, z: null } })
  })

  test("may have a header of the name __proto__, which is one like others", () => {
    const { headers = {} } = propertiesIn(table(short("__proto__"), "46 00000003 0162 56")) ?? {}
    expect(Object.entries(headers)).toEqual([["__proto__", { b: null }]])
    expect([Object.getPrototypeOf(headers), headers["b"]]).toEqual([Object.prototype, undefined])
  })

  test.each([
    ["arrays", "41", ""],
    ["tables", "46", "0161"],
  ])("is right but for %s that are nested deeper than 100 levels", (_, type, name) => {
    const level = bytesOf(type, "00000000", name)
    const all = Buffer.concat(Array<Buffer>(30_000).fill(level))
    const nested = all.subarray(0, all.length - name.length / 2)
    for (let at = 1; at < nested.length; at += level.length) {
      nested.writeUInt32BE(nested.length - at - 4, at)
    }
    const headers = sized(4, short("a"), nested, short("z"), "4207")
    const body = Buffer.from("the body")
    const frames = [deliver(1, 7), header(1, body.length, "2800", headers, "05")]
    const [told] = read([...frames, ...bodies(1, body, 3)])
    const properties = told?.content?.[2]
    let depth = 0
    let value: unknown = properties?.headers?.["a"]
    for (; value !== undefined; depth += 1) value = Object.values(value as object)[0]
    expect([depth, properties?.headers?.["z"], properties?.priority]).toEqual([100, 7, 5])
    expect(Buffer.from(told?.content?.[3] ?? [])).toEqual(body)
  })

  test.each([0, 3, 4, 5, 12])("has its body of %d bytes, in frames of up to 4", (bytes) => {
    const body = Uint8Array.from({ length: bytes }, (_, at) => at + 1)
    const frames = [deliver(2, 7), header(2, bytes, "0000"), ...bodies(2, body, 4)]
    expect(read([Buffer.concat(frames)])).toStrictEqual([content(2, 7, {}, body)])
  })

  test("says whether it was delivered before; one that was returned has no tag", () => {
    const delivered = [deliver(1, 2 ** 32 + 5, "01"), header(1, 0, "0000")]
    const again = { channel: 1, content: [2 ** 32 + 5, true, {}, new Uint8Array(0)] } as const
    expect(read(delivered)).toEqual([again])
    const message = [returned(2), header(2, 1, "0000"), frame(BODY, 2, "2a")]
    expect(read(message)).toEqual([content(2, 0, {}, "2a")])
  })
})

test.each<[string, [number, boolean, boolean]]>([
  ["0050 0000000000000001 00", [1, false, false]],
  ["0050 0000000100000005 01", [2 ** 32 + 5, true, false]],
  ["0078 0000000000000001 01", [1, true, true]],
  ["0078 0000000000000001 02", [1, false, true]],
  ["0078 0000000000000001 03", [1, true, true]],
])("the confirm %s is told", (method, confirmed) => {
  expect(read([frame(METHOD, 3, "003c", method)])).toEqual([{ channel: 3, confirmed }])
})

test.each<[string, Buffer]>([
  ["a heartbeat", frame(8, 0)],
  ["connection.blocked", frame(METHOD, 0, "000a 003c", short("memory"))],
  ["channel.close", frame(METHOD, 1, "0014 0028 0194", short("NOT_FOUND"), "003c 0028")],
  ["queue.declare-ok", frame(METHOD, 1, "0032 000b", short("a-queue"), "00000001 00000002")],
  ["basic.consume-ok", frame(METHOD, 1, "003c 0015", short("a-consumer"))],
  ["a method too short to be one", frame(METHOD, 1, "003c50")],
  ["a header where no message has begun", header(1, 5, "0000")],
  ["a body where no message has begun", frame(BODY, 1, "ffff")],
  ["a frame of an unknown type", frame(4, 1, "003c 0050")],
  ["a delivery for the client", deliver(CLIENTS, 1)],
  ["a confirm for the client", frame(METHOD, CLIENTS, "003c 0050 0000000000000001 00")],
])("%s is handed on whole", (_, given) => {
  expect(read([given])).toEqual([other(given)])
  const around = [deliver(2, 7), header(2, 1, "0000"), given, frame(BODY, 2, "2a")]
  expect(read([Buffer.concat(around)])).toEqual([other(given), content(2, 7, {}, "2a")])
})

test("a cancelled consumer is told of, and the client too", () => {
  const cancel = frame(METHOD, 2, "003c 001e", short("a-consumer"), "00")
  expect(read([cancel])).toEqual([{ channel: 2, cancelled: true }, other(cancel)])
})

test("a body before its header, and a header behind a whole message, are handed on", () => {
  const early = frame(BODY, 1, "ff")
  const header1 = header(1, 1, "0000")
  const frames = [deliver(1, 7), early, header1, frame(BODY, 1, "2a"), header1]
  expect(read(frames)).toEqual([other(early), content(1, 7, {}, "2a"), other(header1)])
})

/** What may come on one channel, in order. */
function oneOfEach(on: number, body: Uint8Array, most: number): Buffer[] {
  const message = [header(on, body.length, FULL), ...bodies(on, body, most)]
  const between = [frame(METHOD, on, "003c 0078 0000000000000009 03"), frame(8, on)]
  return [deliver(on, 7, "01"), ...message, ...between, returned(on), ...message]
}

describe("frames", () => {
  const stream = Buffer.concat(oneOfEach(1, Buffer.from("a body"), 4))

  test("are the same when they are cut at any byte, or at all", () => {
    const whole = read([stream])
    const kinds = whole.map((told) => Object.keys(told)[1])
    expect(kinds).toEqual(["content", "confirmed", "other", "content"])
    for (const at of stream.keys()) expect(read(cut(stream, [at]))).toStrictEqual(whole)
    expect(read(cut(stream, [...stream.keys()]))).toStrictEqual(whole)
  })

  test("of several channels are told apart in any order, wherever they are cut", () => {
    const channel = fc.tuple(fc.uint8Array({ maxLength: 50 }), fc.integer({ min: 1, max: 60 }))
    const channels = fc.array(channel, { minLength: 1, maxLength: 4 })
    check(
      fc.property(channels, fc.infiniteStream(fc.nat()), places, (given, picks, at) => {
        const each = given.map(([body, most], on) => oneOfEach(on + 1, body, most))
        const alone = each.map((frames) => read(frames))
        const mixed: Buffer[] = []
        for (let left = each; left.length > 0; left = left.filter(({ length }) => length > 0)) {
          mixed.push(left[(picks.next().value ?? 0) % left.length]?.shift() as Buffer)
        }
        const told = read(cut(Buffer.concat(mixed), at))
        for (const [on, expected] of alone.entries()) {
          expect(told.filter(({ channel }) => channel === on + 1)).toStrictEqual(expected)
        }
      }),
    )
  })

  test("may be as large as is allowed, and not larger", () => {
    const given = frame(BODY, 1, new Uint8Array(92))
    expect(read([given], 100)).toEqual([other(given)])
    expect(() => read([given.subarray(0, 7)], 99)).toThrow("a frame of 100 bytes, at most 99")
  })

  test("are refused wherever what they hold ends too early", () => {
    for (const at of FULL.keys()) {
      const early = [deliver(1, 1), header(1, 0, FULL.subarray(0, at))]
      expect(() => read(early)).toThrow(/ends before|longer than its frame/)
    }
  })

  test.each<[string, Buffer, string]>([
    ["without their end", bytesOf(frame(8, 0).subarray(0, -1), "00"), "not end where it should"],
    ["with a table longer than they", header(1, 0, "2000 00000004 0161 56"), "table longer"],
    ["with a table cut short", header(1, 0, "2000 00000003 0161 49 00000001"), "should"],
    ["with an array cut short", header(1, 0, table("0161 41 00000001 4207")), "should"],
    ["with a table beyond its own", header(1, 0, "2000 00000008 0161 46 00000002 0056"), "should"],
    ["with a short text beyond them", header(1, 0, "8000 02 61"), "ends before"],
    ["with a name beyond them", header(1, 0, table("02 61")), "ends before"],
    ["with a long text beyond them", header(1, 0, table("0161 53 00000002 61")), "ends before"],
    ["with bytes beyond them", header(1, 0, table("0161 78 ffffffff 61")), "ends before"],
    ["with a number beyond them", header(1, 0, table("0161 64 3ff80000")), "ends before"],
    ["with a header of no known type", header(1, 0, table("0161 5a")), "unknown type 90"],
    ["of a header too short for one", frame(HEADER, 1, "003c 0000 0000"), "ends before"],
    ["of too long a body", bytesOf(header(1, 1, "0000"), frame(BODY, 1, "2a2b")), "than announced"],
    ["of a body that no memory holds", header(1, TWO_TO_63, "0000"), ""],
    ["of a confirm cut short", frame(METHOD, 1, "003c 0050 00000000000000"), "ends before"],
    ["of a delivery cut short", frame(METHOD, 1, "003c 003c 0a 6161"), "ends before"],
  ])("%s are refused", (_, given, message) => {
    expect(() => read([deliver(1, 1), given])).toThrow(message)
  })

  test("with any bytes changed are read or refused, the same wherever they are cut", () => {
    const telling = fc.constantFrom(...Buffer.from("AFSx\0\x01\xff", "latin1"))
    const change = fc.tuple(fc.nat(), fc.oneof(byte, telling))
    const changes = fc.array(change, { minLength: 1, maxLength: 8 })
    // A size of a body that is changed only asks for much memory.
    const sizes = [stream.indexOf(FULL), stream.lastIndexOf(FULL)].map((end) => end - 8)
    check(
      fc.property(changes, places, (given, at) => {
        const changed = Buffer.from(stream)
        for (const [place, value] of given) changed[place % stream.length] = value
        for (const size of sizes) stream.copy(changed, size, size, size + 8)
        const { told, error } = readUntilError([changed])
        expect(String(error)).toMatch(/^(null$|Error: .|RangeError: (Out of memory|length larger))/)
        for (const { other } of told) {
          if (other !== undefined) expect(other.slice(6, 14)).toBe(uint(4, other.length / 2 - 8))
        }
        const again = readUntilError(cut(changed, at))
        // As text, since a time that is none equals no other.
        expect(JSON.stringify(again.told)).toBe(JSON.stringify(told))
        expect(String(again.error)).toBe(String(error))
      }),
      CHEAP_RUNS,
    )
  })
})
