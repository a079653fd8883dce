/** Which lines begin a trace, the ids that they get, and the spans of those that are confirmed. */

import { describe, expect, test } from "bun:test"
import { LineTraces, type Span, type TracedLine } from "../../src/lines/traces.ts"
import { testCommand } from "../support/commands.ts"

const READ_AT_MS = 1_750_000_000_123
const RECEIVED_AT_MS = 1_000
const CONFIRMED_AT_MS = 1_007.5

function traces(share: number) {
  const spans: Span[] = []
  const subject = new LineTraces({
    share,
    queueOf: ({ deviceId }) => `queue of ${deviceId}`,
    steadyMs: () => CONFIRMED_AT_MS,
    ended: (span) => spans.push(span),
  })
  return { spans, subject }
}

function line(seq = 0, answered: TracedLine["answered"] = null): TracedLine {
  const recipient = { connectionId: "gw1.0.a.1", deviceId: "lock:1", epoch: 1 }
  const connection = { endpoint: { recipient } }
  const body = Buffer.from("a line")
  return { connection, seq, body, readAtMs: READ_AT_MS, receivedAtMs: RECEIVED_AT_MS, answered }
}

describe("a sampled line", () => {
  test("has one trace context for all its publishes, and a span from receipt to confirm", () => {
    const { spans, subject } = traces(1)
    const sampled = line(7)
    subject.begin(sampled)
    const headers = subject.headersOf(sampled)
    expect(headers?.traceparent).toMatch(/^00-[0-9a-f]{32}-[0-9a-f]{16}-01$/)
    expect(subject.headersOf(sampled)).toEqual(headers)
    expect(spans).toEqual([])
    subject.end(sampled)
    const [, traceId = "", spanId = ""] = headers?.traceparent.split("-") ?? []
    expect(spans).toEqual([
      {
        ...{ traceId, spanId, startMs: READ_AT_MS, endMs: READ_AT_MS + 7.5 },
        ...{ queue: "queue of lock:1", messageId: "gw1.0.a.1:7", deviceId: "lock:1" },
        ...{ connectionId: "gw1.0.a.1", seq: 7, bytes: 6 },
      },
    ])
    // Nothing of it is kept.
    expect(subject.headersOf(sampled)).toBeNull()
    subject.end(sampled)
    expect(spans.length).toBe(1)
  })

  test("shares its ids with no other", () => {
    const { subject } = traces(1)
    const ids = Array.from({ length: 1_000 }, (_, seq) => {
      const sampled = line(seq)
      subject.begin(sampled)
      return subject.headersOf(sampled)?.traceparent.split("-").slice(1, 3) ?? []
    })
    expect(new Set(ids.flat()).size).toBe(2_000)
  })
})

test("a line that is not sampled has no header and no span", () => {
  const { spans, subject } = traces(0)
  const other = line()
  subject.begin(other)
  expect(subject.headersOf(other)).toBeNull()
  subject.end(other)
  expect(spans).toEqual([])
})

test("about the wanted share is sampled", () => {
  const { spans, subject } = traces(0.25)
  for (let seq = 0; seq < 10_000; seq += 1) {
    const each = line(seq)
    subject.begin(each)
    subject.end(each)
  }
  // More than ten standard deviations on both sides.
  expect(spans.length).toBeGreaterThan(2_000)
  expect(spans.length).toBeLessThan(3_000)
})

test("a line that answers a command with a trace context begins no trace", () => {
  const { spans, subject } = traces(1)
  const trace = { traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01" }
  const answer = line(0, testCommand({ body: Buffer.from("get"), trace }))
  subject.begin(answer)
  expect(subject.headersOf(answer)).toBeNull()
  subject.end(answer)
  expect(spans).toEqual([])
  const other = line(1, testCommand({ body: Buffer.from("get") }))
  subject.begin(other)
  expect(subject.headersOf(other)).not.toBeNull()
})
