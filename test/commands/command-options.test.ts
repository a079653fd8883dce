/** The optional fields of a command: what each may be, and that they survive a forward. */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import type { HeaderValue } from "../../src/broker/broker.ts"
import {
  type CommandOptions,
  MAX_OPTION_BYTES,
  MAX_TRACE_BYTES,
  NO_OPTIONS,
  optionHeaders,
  readOptions,
} from "../../src/commands/command-options.ts"
import { CHEAP_RUNS, check } from "../support/property.ts"

const LIMITS = { maxReplyMs: 60_000, maxHoldMs: 1_000_000 }
type Headers = Record<string, HeaderValue>

function read(headers: Headers): CommandOptions {
  const options = readOptions(headers, LIMITS)
  if (typeof options === "string") throw new Error(options)
  return options
}

const bytes = (text: string) => new TextEncoder().encode(text)

test("a command without any has none", () => {
  expect(read({ device_id: "d", other: 1 })).toBe(NO_OPTIONS)
  expect(read({ supersede_key: null, reply_token: null, reply_next: null })).toBe(NO_OPTIONS)
})

test("a supersede key", () => {
  expect(read({ supersede_key: "temperature" }).supersedeKey).toBe("temperature")
  const longest = "é".repeat(MAX_OPTION_BYTES / 2)
  expect(read({ supersede_key: longest }).supersedeKey).toBe(longest)
})

describe("a reply", () => {
  test.each<[string, Headers, object]>([
    ["to a token", { reply_token: "r-7" }, { kind: "token", token: bytes("r-7") }],
    ["by a prefix", { reply_prefix: "OK " }, { kind: "prefix", prefix: bytes("OK ") }],
    ["in the next line", { reply_next: true }, { kind: "next" }],
    ["in the next line, as text", { reply_next: "true" }, { kind: "next" }],
    ["not in the next line", { reply_next: false, reply_token: "a" }, { kind: "token" }],
  ])("%s waits 5 seconds by default", (_, headers, condition) => {
    expect(read(headers).reply).toMatchObject({ condition, timeoutMs: 5_000 })
  })

  test.each<[HeaderValue, number]>([
    [1, 1],
    [60_000, 60_000],
    [250n, 250],
    ["250", 250],
  ])("with the time %p", (reply_timeout_ms, timeoutMs) => {
    expect(read({ reply_next: true, reply_timeout_ms }).reply?.timeoutMs).toBe(timeoutMs)
  })

  test("waits no longer than MAX_REPLY_MS by default", () => {
    const limits = { ...LIMITS, maxReplyMs: 2_000 }
    expect(readOptions({ reply_next: true }, limits)).toMatchObject({ reply: { timeoutMs: 2_000 } })
  })
})

const TOO_LONG = "x".repeat(MAX_OPTION_BYTES + 1)

test.each<[string, Headers]>([
  ["supersede_key", { supersede_key: "" }],
  ["supersede_key", { supersede_key: 7 }],
  ["supersede_key", { supersede_key: TOO_LONG }],
  ["supersede_key", { supersede_key: `${"é".repeat(MAX_OPTION_BYTES / 2)}x` }],
  // As a text of other bytes than UTF-8 is read.
  ["supersede_key", { supersede_key: "\udcff" }],
  ["reply_token", { reply_token: "" }],
  ["reply_token", { reply_token: "two words" }],
  ["reply_token", { reply_token: "tab\tbed" }],
  ["reply_token", { reply_token: TOO_LONG }],
  ["reply_prefix", { reply_prefix: "" }],
  ["reply_prefix", { reply_prefix: true }],
  ["reply_prefix", { reply_prefix: TOO_LONG }],
  ["reply_next", { reply_next: 1 }],
  ["reply_next", { reply_next: "yes" }],
  ["exactly one", { reply_token: "a", reply_prefix: "a" }],
  ["exactly one", { reply_token: "a", reply_next: true }],
  ["exactly one", { reply_prefix: "a", reply_next: true }],
  ["needs one of reply_token", { reply_timeout_ms: 100 }],
  ["reply_timeout_ms", { reply_next: true, reply_timeout_ms: 0 }],
  ["reply_timeout_ms", { reply_next: true, reply_timeout_ms: -1 }],
  ["reply_timeout_ms", { reply_next: true, reply_timeout_ms: 1.5 }],
  ["reply_timeout_ms", { reply_next: true, reply_timeout_ms: 60_001 }],
  ["reply_timeout_ms", { reply_next: true, reply_timeout_ms: "1e3" }],
  ["reply_timeout_ms", { reply_next: true, reply_timeout_ms: true }],
])("%s is refused: %p", (named, headers) => {
  const fault = readOptions(headers, LIMITS)
  expect(fault).toBeString()
  expect(fault).toContain(named)
})

describe("a trace context", () => {
  const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

  test("is carried unchanged, valid or not", () => {
    expect(read({ traceparent, tracestate: "a=1" }).trace).toEqual({
      traceparent,
      tracestate: "a=1",
    })
    expect(read({ traceparent: "anything" }).trace).toEqual({ traceparent: "anything" })
    expect(read({ tracestate: "a=1" }).trace).toEqual({ tracestate: "a=1" })
  })

  test("without a usable value there is none, which is no fault", () => {
    const tooLong = "x".repeat(MAX_TRACE_BYTES + 1)
    expect(read({ traceparent: 7, tracestate: tooLong })).toBe(NO_OPTIONS)
    expect(read({ traceparent, tracestate: tooLong }).trace).toEqual({ traceparent })
    expect(read({ traceparent, tracestate: "é".repeat(MAX_TRACE_BYTES) }).trace).toEqual({
      traceparent,
    })
    const longest = "x".repeat(MAX_TRACE_BYTES)
    expect(read({ traceparent, tracestate: longest }).trace?.tracestate).toBe(longest)
  })
})

const text = fc
  .string({ unit: "grapheme", minLength: 1, maxLength: 10 })
  .filter((each) => bytes(each).length <= MAX_OPTION_BYTES)
const condition = fc.oneof(
  text
    .filter((token) => !/[ \t]/.test(token))
    .map((token) => ({ kind: "token" as const, token: bytes(token) })),
  text.map((prefix) => ({ kind: "prefix" as const, prefix: bytes(prefix) })),
  fc.constant({ kind: "next" as const }),
)
const trace = fc.oneof(
  fc.record({ traceparent: text, tracestate: text }),
  fc.record({ traceparent: text }),
)

test("the headers of any options are read as the same options", () => {
  const options: fc.Arbitrary<CommandOptions> = fc.record({
    holdMs: fc.option(fc.integer({ min: 1, max: 1_000_000 })),
    supersedeKey: fc.option(text),
    reply: fc.option(fc.record({ condition, timeoutMs: fc.integer({ min: 1, max: 60_000 }) })),
    trace: fc.option(trace),
  })
  check(
    fc.property(options, (each) => expect(read({ ...optionHeaders(each) })).toEqual(each)),
    CHEAP_RUNS,
  )
})

test("whatever the headers are, there are options or a reason", () => {
  const names = ["supersede_key", "reply_token", "reply_prefix", "reply_next", "reply_timeout_ms"]
  const headers = fc.dictionary(
    fc.constantFrom(...names, "hold_ms", "traceparent", "tracestate"),
    fc.anything({ withBigInt: true, withDate: true }) as fc.Arbitrary<HeaderValue>,
  )
  check(
    fc.property(headers, (each) => {
      const options = readOptions(each, LIMITS)
      if (typeof options === "string") expect(options).not.toBe("")
      else expect(readOptions({ ...optionHeaders(options) }, LIMITS)).toEqual(options)
    }),
    CHEAP_RUNS,
  )
})
