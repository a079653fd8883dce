/**
 * Headers and properties are passed on byte for byte: headers of every AMQP type in any order, and
 * texts that are not UTF-8, are read from frames, prepared for publishing again, given headers of
 * the gateway, and written.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { escapeBytes, unescapeBytes } from "../../src/amqp/escaped-text.ts"
import { FrameReader } from "../../src/amqp/frame-reader.ts"
import { FrameWriter } from "../../src/amqp/frame-writer.ts"
import type { MessageProperties } from "../../src/broker/broker.ts"
import { OutOfRangeDate, pickedHeaders, republishable } from "../../src/broker/republishing.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

const CAPACITY = 262_144
/** Bytes of class, weight and body size before the properties in a header frame. */
const PROPERTIES_AT = 12

function sized(sizeBytes: 1 | 4, bytes: Uint8Array): Buffer {
  const size = Buffer.alloc(sizeBytes)
  size.writeUIntBE(bytes.length, 0, sizeBytes)
  return Buffer.concat([size, bytes])
}

function frame(type: number, ...payload: Uint8Array[]): Buffer {
  return Buffer.concat([
    Buffer.from([type, 0, 1]),
    sized(4, Buffer.concat(payload)),
    Buffer.from([0xce]),
  ])
}

function hex(text: string): Buffer {
  return Buffer.from(text.replaceAll(" ", ""), "hex")
}

/** The properties as a delivery brings them. */
function read(properties: Uint8Array): MessageProperties {
  const came: MessageProperties[] = []
  const reader = new FrameReader(CAPACITY, {
    handlerOf: () => ({ content: ({ properties }) => came.push(properties) }),
    other: () => undefined,
  })
  const deliver = frame(1, hex("003c 003c 01 61 0000000000000001 00 00 0161"))
  const header = frame(2, hex("003c 0000 0000000000000000"), properties)
  const bytes = Buffer.concat([deliver, header])
  reader.push(bytes)
  // What is kept must be a copy, since the buffer is reused.
  bytes.fill(0xaa)
  if (came[0] === undefined) throw new Error("no message came")
  return came[0]
}

function written(properties: MessageProperties): Buffer {
  const writer = new FrameWriter(CAPACITY)
  const message = { id: "", exchange: "", routingKey: "", body: new Uint8Array(0), properties }
  writer.publish(1, message, CAPACITY)
  const methodBytes = writer.bytes.readUInt32BE(3) + 8
  return writer.bytes.subarray(methodBytes + 7 + PROPERTIES_AT, writer.length - 1)
}

/** Properties that are a table of headers alone. */
function table(...entries: Uint8Array[]): Buffer {
  return Buffer.concat([hex("2000"), sized(4, Buffer.concat(entries))])
}

function entry(name: string | Uint8Array, value: Uint8Array): Buffer {
  return Buffer.concat([sized(1, Buffer.from(name)), value])
}

const type = (letter: string, ...bytes: Uint8Array[]) =>
  Buffer.concat([Buffer.from(letter), ...bytes])
const fixed = (letter: string, length: number) =>
  fc.uint8Array({ minLength: length, maxLength: length }).map((bytes) => type(letter, bytes))
const long = (letter: string) => fc.uint8Array().map((bytes) => type(letter, sized(4, bytes)))
/** Arbitrary bytes, and names that are special in JavaScript objects. */
const anyName = fc.oneof(
  fc.uint8Array({ maxLength: 255 }),
  fc
    .constantFrom("__proto__", "constructor", "toString", "1", "07", "é", "", "a", "b")
    .map((s) => Uint8Array.from(Buffer.from(s))),
)
const { entries } = fc.letrec<{ value: Buffer; entries: Buffer }>((tie) => ({
  value: fc.oneof(
    { depthSize: "small" },
    ...["t", "b", "B"].map((letter) => fixed(letter, 1)),
    ...["s", "u"].map((letter) => fixed(letter, 2)),
    ...["I", "i", "f"].map((letter) => fixed(letter, 4)),
    ...["l", "L", "d", "T"].map((letter) => fixed(letter, 8)),
    fixed("D", 5),
    fixed("V", 0),
    ...["S", "x"].map(long),
    tie("entries").map((entries) => type("F", sized(4, entries))),
    fc.array(tie("value")).map((values) => type("A", sized(4, Buffer.concat(values)))),
  ),
  entries: fc
    .array(fc.tuple(anyName, tie("value")), { maxLength: 6 })
    .map((given) => Buffer.concat(given.map(([name, value]) => entry(name, value)))),
}))
const shortText = fc.uint8Array({ maxLength: 255 }).map((bytes) => sized(1, bytes))

/** No header that the gateway renames or leaves out. */
const passedOn = entries.filter((bytes) => !/CC|x-|owsla/.test(bytes.toString("latin1")))

describe("headers that are passed on are, byte for byte, what came:", () => {
  test("any table of any types", () => {
    check(
      fc.property(passedOn, (given) => {
        const came = table(given)
        expect(written(republishable(read(came))).toString("hex")).toBe(came.toString("hex"))
      }),
      CHEAP_RUNS,
    )
  })

  test("any table, and after it what the gateway adds", () => {
    const added = { "owsla-outcome": "offline", "owsla-hops": 1 }
    const addedBytes = Buffer.concat([
      entry("owsla-outcome", type("S", sized(4, Buffer.from("offline")))),
      entry("owsla-hops", hex("6c 0000000000000001")),
    ])
    check(
      fc.property(passedOn, (given) => {
        const again = republishable(read(table(given)))
        const copy = { ...again, headers: { ...again.headers, ...added } }
        expect(written(copy).toString("hex")).toBe(table(given, addedBytes).toString("hex"))
        Object.assign(again.headers, added)
        expect(written(again).toString("hex")).toBe(table(given, addedBytes).toString("hex"))
      }),
    )
  })

  test.each([
    ["-3 of 32 bits", "49 fffffffd", -3],
    ["-3 of 64 bits", "6c fffffffffffffffd", -3],
    ["an integer beyond 2^53", "6c 0020000000000001", 2 ** 53],
    ["a decimal", "44 02 0000007d", 1.25],
    ["an integral double", "64 3ff0000000000000", 1],
    ["minus zero", "64 8000000000000000", -0],
    ["a string that is not UTF-8", "53 00000002 ff41", "\udcffA"],
  ])("%s", (_, bytes, value) => {
    const came = table(entry("a", hex(bytes)))
    const again = republishable(read(came))
    expect(again.headers["a"]).toEqual(value)
    expect(written(again).toString("hex")).toBe(came.toString("hex"))
  })

  test("a value that the gateway has changed is written as it is now", () => {
    const hops = entry("owsla-hops", hex("49 00000005"))
    const other = entry("a", hex("49 00000001"))
    const again = republishable(read(table(hops, other)))
    again.headers["owsla-hops"] = 6
    const expected = table(other, entry("owsla-hops", hex("6c 0000000000000006")))
    expect(written(again).toString("hex")).toBe(expected.toString("hex"))
  })

  test("CC and BCC keep their values under their other names; what the broker adds goes", () => {
    const values = type("A", sized(4, hex("53 00000001 ff 42 01")))
    const came = table(entry("CC", values), entry("x-death", hex("4207")), entry("BCC", values))
    const expected = table(entry("owsla-cc", values), entry("owsla-bcc", values))
    expect(written(republishable(read(came))).toString("hex")).toBe(expected.toString("hex"))
  })

  test("those that are picked", () => {
    const seq = entry("to_device_seq", hex("49 00000007"))
    const { headers = {} } = read(table(entry("a", hex("49 00000001")), seq))
    const picked = pickedHeaders(headers, ["to_device_seq", "device_id"], (each) => each === 7)
    expect(written({ headers: picked }).toString("hex")).toBe(table(seq).toString("hex"))
  })
})

describe("properties that are passed on are, byte for byte, what came:", () => {
  test("any texts, empty ones and such that are not UTF-8 too", () => {
    // All but headers, expiration, timestamp and user_id; delivery mode and priority have a byte.
    const texts = fc.array(shortText, { minLength: 8, maxLength: 8 })
    check(
      fc.property(texts, fc.uint8Array({ minLength: 2, maxLength: 2 }), (given, numbers) => {
        const [contentType, encoding, ...others] = given as Buffer[]
        const bytes = [contentType as Buffer, encoding as Buffer, numbers, ...others]
        const came = Buffer.concat([hex("deac"), ...bytes])
        const { headers: _, ...again } = republishable(read(came))
        expect(written(again).toString("hex")).toBe(came.toString("hex"))
      }),
      CHEAP_RUNS,
    )
  })

  test("any time", () => {
    check(
      fc.property(fc.uint8Array({ minLength: 8, maxLength: 8 }), (seconds) => {
        const came = Buffer.concat([hex("0040"), seconds])
        const { headers: _, ...again } = republishable(read(came))
        expect(written(again).toString("hex")).toBe(came.toString("hex"))
      }),
      CHEAP_RUNS,
    )
    const far = read(hex("0040 7fffffffffffffff")).timestamp
    expect([far instanceof OutOfRangeDate, far?.getTime()]).toEqual([true, Number.NaN])
  })
})

describe("bytes in a text", () => {
  test("are the same again, and different ones stay different", () => {
    check(
      fc.property(fc.uint8Array(), (bytes) => {
        expect(unescapeBytes(escapeBytes(bytes))).toEqual(Buffer.from(bytes))
      }),
      CHEAP_RUNS,
    )
    expect(escapeBytes(Uint8Array.of(0xff))).not.toBe(escapeBytes(Uint8Array.of(0xfe)))
  })

  test("that are UTF-8 are what they say", () => {
    const text = fc.string({ unit: "binary" })
    check(
      fc.property(text, (text) => {
        expect(escapeBytes(Buffer.from(text))).toBe(text)
      }),
      CHEAP_RUNS,
    )
  })

  test.each([
    ["an overlong form", "c0af", "\udcc0\udcaf"],
    ["a surrogate", "eda080", "\udced\udca0\udc80"],
    ["beyond U+10FFFF", "f4908080", "\udcf4\udc90\udc80\udc80"],
    ["a sequence cut short", "61e282", "a\udce2\udc82"],
    ["a real replacement character beside one that is none", "efbfbdff", "\ufffd\udcff"],
  ])("%s are escaped one by one", (_, bytes, text) => {
    expect(escapeBytes(hex(bytes))).toBe(text)
  })
})
