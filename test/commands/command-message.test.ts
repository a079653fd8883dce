/**
 * From a message's properties to a command: each field as the contract has it, then whatever else a
 * publisher may put there. Whatever it is, the answer is a command or a reason, never a throw.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import type { HeaderValue, MessageProperties } from "../../src/broker/broker.ts"
import {
  COMMAND_ID_HEADER,
  type CommandMessage,
  EXPIRES_AT_HEADER,
  HOPS_HEADER,
  type Refusal,
  readCommand,
  readDeath,
} from "../../src/commands/command-message.ts"
import { NO_OPTIONS } from "../../src/commands/command-options.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

const NOW_MS = 1_770_000_000_000
const FORMAT = { framing: "line", maxLineBytes: 20, maxReplyMs: 60_000, maxHoldMs: 1_000 } as const
const BODY = Buffer.from("line")
const TO_DEVICE = { device_id: "d" }

function read(properties: MessageProperties, body: Uint8Array = BODY): CommandMessage | Refusal {
  return readCommand(body, properties, NOW_MS, FORMAT)
}

function command(properties: MessageProperties): CommandMessage {
  const result = read(properties)
  if ("outcome" in result) throw new Error(`refused: ${result.detail}`)
  return result
}

function refusal(properties: MessageProperties, body?: Uint8Array): Refusal {
  const result = read(properties, body)
  if (!("outcome" in result)) throw new Error("not refused")
  return result
}

test("the least that makes a command", () => {
  expect(read({ headers: TO_DEVICE })).toEqual({
    target: { connectionId: null, deviceId: "d" },
    seq: null,
    messageId: null,
    expiresAtMs: Number.POSITIVE_INFINITY,
    hops: 0,
    commandId: null,
    redelivered: false,
    options: NO_OPTIONS,
    isHoldRequest: false,
    isHeld: false,
  })
})

test("everything a command can have", () => {
  const properties = {
    headers: {
      connection_id: "c",
      device_id: "d",
      to_device_seq: 7n,
      [HOPS_HEADER]: 2n,
      [COMMAND_ID_HEADER]: "gw1.0.x.7",
    },
    messageId: "m",
    expiration: "500",
    timestamp: new Date(NOW_MS - 2_000),
  }
  expect(read(properties)).toEqual({
    target: { connectionId: "c", deviceId: "d" },
    seq: 7,
    messageId: "m",
    // The message was sent within that second, so by its end at the latest.
    expiresAtMs: NOW_MS - 2_000 + 999 + 500,
    hops: 2,
    commandId: "gw1.0.x.7",
    redelivered: false,
    options: NO_OPTIONS,
    isHoldRequest: false,
    isHeld: false,
  })
})

describe("the target", () => {
  test.each([{}, { headers: {} }, { headers: { connection_id: null, device_id: undefined } }])(
    "none in %j: invalid",
    (properties) => {
      expect(refusal(properties).outcome).toBe("invalid")
    },
  )

  test("each id at its longest, and one character more", () => {
    const [connection, device] = ["x".repeat(64), "x".repeat(128)]
    expect(command({ headers: { connection_id: connection } }).target.connectionId).toBe(connection)
    expect(command({ headers: { device_id: device } }).target.deviceId).toBe(device)
    expect(refusal({ headers: { connection_id: `${connection}x` } }).outcome).toBe("invalid")
    expect(refusal({ headers: { device_id: `${device}x` } }).outcome).toBe("invalid")
  })

  const noIds: HeaderValue[] = [
    "",
    " ",
    "a b",
    "a\n",
    "é",
    "#",
    "a/b",
    1,
    0n,
    true,
    {},
    [],
    new Date(0),
  ]

  test.each(noIds.map((id) => ({ id })))("%p is no id", ({ id }) => {
    expect(refusal({ headers: { connection_id: id } }).outcome).toBe("invalid")
    expect(refusal({ headers: { device_id: id } }).outcome).toBe("invalid")
    expect(refusal({ headers: { connection_id: "c", device_id: id } }).outcome).toBe("invalid")
  })

  test("a colon is for devices only", () => {
    expect(command({ headers: { device_id: "a:b" } }).target.deviceId).toBe("a:b")
    expect(refusal({ headers: { connection_id: "a:b" } }).outcome).toBe("invalid")
  })
})

describe("to_device_seq", () => {
  test.each<[HeaderValue, number | null]>([
    [undefined, null],
    [null, null],
    [0, 0],
    [0n, 0],
    [2 ** 53 - 1, 2 ** 53 - 1],
    [2n ** 53n - 1n, 2 ** 53 - 1],
    ["0", 0],
    ["0012", 12],
    ["9007199254740991", 2 ** 53 - 1],
  ])("%p is %p", (value, seq) => {
    expect(command({ headers: { ...TO_DEVICE, to_device_seq: value } }).seq).toBe(seq)
  })

  const noNumbers: HeaderValue[] = [
    -1,
    -1n,
    0.5,
    Number.NaN,
    Number.POSITIVE_INFINITY,
    2 ** 53,
    2n ** 53n,
    2n ** 63n - 1n,
    "",
    " 1",
    "-1",
    "+1",
    "1.0",
    "1e3",
    "0x1",
    "9007199254740992",
    "9007199254740993",
    "99999999999999999",
    true,
    {},
    [1],
    new Date(5),
  ]

  test.each(noNumbers.map((to_device_seq) => ({ to_device_seq })))("%p is none", (header) => {
    const refused = refusal({ headers: { ...TO_DEVICE, ...header } })
    expect([refused.outcome, refused.detail.includes("to_device_seq")]).toEqual(["invalid", true])
  })
})

describe("expiration", () => {
  const expiresAtMs = (properties: MessageProperties) =>
    command({ headers: TO_DEVICE, ...properties }).expiresAtMs

  test("counts from the timestamp, else from the arrival", () => {
    expect(expiresAtMs({ expiration: "250" })).toBe(NOW_MS + 250)
    expect(expiresAtMs({ expiration: "250", timestamp: new Date(1_000) })).toBe(2_249)
    expect(expiresAtMs({ expiration: "0" })).toBe(NOW_MS)
    expect(expiresAtMs({ expiration: "000", timestamp: new Date(0) })).toBe(999)
  })

  test("of less than a second is not shortened by the second of the timestamp", () => {
    const timestamp = new Date(Math.floor(NOW_MS / 1_000) * 1_000)
    for (const expiration of ["1", "500", "999"]) {
      const atMs = Number(timestamp) + 700
      const read = readCommand(
        Buffer.from("x"),
        { headers: TO_DEVICE, expiration, timestamp },
        atMs,
        FORMAT,
      )
      expect(read).toMatchObject({ expiresAtMs: atMs + Number(expiration) })
    }
  })

  test("without one a timestamp means nothing", () => {
    expect(expiresAtMs({ timestamp: new Date(0) })).toBe(Number.POSITIVE_INFINITY)
  })

  test("what another worker carried along comes first", () => {
    const headers = { ...TO_DEVICE, [EXPIRES_AT_HEADER]: 5_000n }
    expect(command({ headers, expiration: "250" }).expiresAtMs).toBe(5_000)
    expect(command({ headers }).expiresAtMs).toBe(5_000)
  })

  test.each(["", "-1", "1.5", "1e3", " 1", "1 ", "0x1", "Infinity", "1".repeat(16)])(
    "%j is refused",
    (expiration) => {
      expect(refusal({ headers: TO_DEVICE, expiration }).outcome).toBe("invalid")
    },
  )

  test("a timestamp that no Date can hold makes no command that never expires", () => {
    // Such as one in microseconds; the client reads it as an Invalid Date.
    const result = read({ headers: TO_DEVICE, expiration: "250", timestamp: new Date(Number.NaN) })
    if ("outcome" in result) expect(result.outcome).toBe("invalid")
    else expect(result.expiresAtMs).toBe(NOW_MS + 250)
  })
})

describe("hops", () => {
  test.each<[HeaderValue, number]>([
    [undefined, 0],
    [3n, 3],
    ["2", 2],
    ["many", 0],
    [-1, 0],
    [{}, 0],
  ])("%p is %p: a strange one is no reason to refuse a command", (value, hops) => {
    expect(command({ headers: { ...TO_DEVICE, [HOPS_HEADER]: value } }).hops).toBe(hops)
  })
})

describe("the body", () => {
  const about = { headers: TO_DEVICE }

  test("at the bound, one more, and with an end of line in it", () => {
    expect(read(about, new Uint8Array(FORMAT.maxLineBytes))).not.toHaveProperty("outcome")
    expect(refusal(about, new Uint8Array(FORMAT.maxLineBytes + 1)).outcome).toBe("too_large")
    expect(refusal(about, Buffer.from("a\nb")).outcome).toBe("invalid")
    expect(refusal(about, Buffer.from("a\r")).outcome).toBe("invalid")
  })
})

/** Anything that an AMQP table can hold, as the client shows it. */
const headerValue = fc.oneof(
  fc.string(),
  fc.integer(),
  fc.double(),
  fc.bigInt({ min: -(2n ** 63n), max: 2n ** 64n }),
  fc.boolean(),
  fc.constantFrom(null, undefined),
  fc.date({ noInvalidDate: false }),
  fc.uint8Array(),
  fc.object(),
) as fc.Arbitrary<HeaderValue>
const plausible = fc.oneof(
  fc.constantFrom<HeaderValue>("c1", "d:1", "0", "17", 4n),
  fc.nat(),
) as fc.Arbitrary<HeaderValue>
const known = ["connection_id", "device_id", "to_device_seq", HOPS_HEADER, EXPIRES_AT_HEADER]
const headers = fc.dictionary(
  fc.oneof(fc.constantFrom(...known), fc.string()),
  fc.oneof(headerValue, plausible),
  { maxKeys: 8 },
)

test("whatever the properties hold, the answer is whole: a command in its ranges, or a refusal", () => {
  const properties = fc.record(
    {
      headers,
      messageId: fc.string(),
      expiration: fc.oneof(fc.string(), fc.nat().map(String)),
      timestamp: fc.date({ noInvalidDate: true }),
    },
    { requiredKeys: [] },
  )
  check(
    fc.property(properties, fc.uint8Array({ maxLength: 30 }), (properties, body) => {
      const result = read(properties, body)
      if ("outcome" in result) {
        expect(["invalid", "too_large"]).toContain(result.outcome)
        expect(result.detail).not.toBe("")
        return
      }
      const { target, seq, messageId, expiresAtMs, hops } = result
      expect(target.connectionId ?? target.deviceId).toMatch(/^[A-Za-z0-9._:-]+$/)
      if (seq !== null) expect(Number.isSafeInteger(seq) && seq >= 0).toBe(true)
      expect(messageId).toBe(properties.messageId || null)
      expect(expiresAtMs).not.toBeNaN()
      expect(Number.isSafeInteger(hops) && hops >= 0).toBe(true)
      expect(body.length).toBeLessThanOrEqual(FORMAT.maxLineBytes)
    }),
    CHEAP_RUNS,
  )
})

describe("readDeath", () => {
  test("the latest death, with the expiration that the broker took off", () => {
    const deaths = [
      { reason: "expired", queue: "to_device", "original-expiration": "500", count: 1 },
      { reason: "rejected", queue: "older" },
    ]
    expect(readDeath({ headers: { "x-death": deaths } })).toEqual({
      reason: "expired",
      queue: "to_device",
      expiration: "500",
    })
  })

  test("without an expiration", () => {
    const deaths = [{ reason: "rejected", queue: "q" }]
    expect(readDeath({ headers: { "x-death": deaths } })?.expiration).toBeNull()
  })

  test.each<[HeaderValue]>([[undefined], [null], ["x"], [7], [{}], [[]], [["x"]], [[null]]])(
    "%j is none",
    (deaths) => {
      expect(readDeath({ headers: { "x-death": deaths } })).toBeNull()
    },
  )

  test("no headers, none", () => {
    expect(readDeath({})).toBeNull()
  })

  test("whatever a publisher puts there, text comes out", () => {
    check(
      fc.property(fc.oneof(headerValue, fc.array(headerValue)), (deaths) => {
        const death = readDeath({ headers: { "x-death": deaths } })
        if (death === null) return
        expect([typeof death.reason, typeof death.queue]).toEqual(["string", "string"])
      }),
      CHEAP_RUNS,
    )
  })
})
