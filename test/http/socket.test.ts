/**
 * The HTTP API behind its real server, for tests that `app.request()` cannot do: bodies and event
 * streams on a socket, requests written by hand, clients that close their connection. The port is
 * 0; the options are those of `worker.ts`.
 */

import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test"
import type { Tap } from "../../src/broker/embedded.ts"
import type { SendRequest } from "../../src/commands/http-sender.ts"
import { Counters } from "../../src/counters.ts"
import { app, maxBodyBytes } from "../../src/http/app.ts"
import { type HttpServer, serve } from "../../src/http/server.ts"
import { countedErrors } from "../support/counted-errors.ts"
import { NO_PAGE } from "../support/local-app.ts"
import { RawHttp } from "../support/raw-http.ts"
import { until } from "../support/wait.ts"
import { SERVING } from "./app-harness.ts"
import { NO_HELD } from "./no-held.ts"
import { NO_LOG } from "./no-log.ts"
import { NO_RULES } from "./no-rules.ts"

const MAX_LINE_BYTES = 1_024
const LIMIT = maxBodyBytes(MAX_LINE_BYTES)

let server: HttpServer
let counters: Counters
const taps = new Set<Tap>()
const sent: SendRequest[] = []
const faults: Error[] = []
/** Requests that the gateway has not answered, and whether their clients have hung up. */
let unanswered: AbortSignal[] | null = null
const neverAnswered = (caller: AbortSignal | undefined) => {
  if (caller !== undefined) unanswered?.push(caller)
  return new Promise<never>((_, reject) => {
    caller?.addEventListener("abort", () => reject(new Error("hung up")))
  })
}

beforeAll(async () => {
  counters = new Counters()
  const routes = app({
    tokens: [],
    readTokens: [],
    framing: "line",
    maxLineBytes: MAX_LINE_BYTES,
    maxReplyMs: 60_000,
    version: "1",
    startedAtMs: 0,
    nowMs: () => 0,
    counters,
    report: () => SERVING,
    reports: async () => [],
    fleetQuery: {
      list: async (_, caller) => (unanswered === null ? "unreachable" : neverAnswered(caller)),
      describe: async (_, caller) => (unanswered === null ? "unreachable" : neverAnswered(caller)),
      kick: async (_, caller) => (unanswered === null ? "unreachable" : neverAnswered(caller)),
    },
    metricsText: async () => "",
    messages: {
      tap: (tap) => {
        taps.add(tap)
        return () => taps.delete(tap)
      },
    },
    ...NO_LOG,
    ...NO_RULES,
    ...NO_HELD,
    ...NO_PAGE,
    empty: () => undefined,
    send: async (request, caller) => {
      if (unanswered !== null) return neverAnswered(caller)
      sent.push(request)
      return { outcome: "written", device_id: "d", connection_id: "c", epoch: 1, at: 1, detail: "" }
    },
    fault: (error) => faults.push(error),
  })
  server = await serve(
    routes,
    {
      host: "127.0.0.1",
      sendTimeoutMs: 5_000,
      maxReplyMs: 60_000,
      maxConnections: 64,
      closed: () => undefined,
      fault: (error) => faults.push(error),
    },
    0,
  )
})

afterAll(() => server.stop())

beforeEach(() => {
  sent.length = 0
  faults.length = 0
  counters.httpErrors.clear()
})

async function withClient(use: (client: RawHttp) => Promise<void>): Promise<void> {
  const client = new RawHttp(server.port)
  try {
    await use(client)
  } finally {
    client.socket.destroy()
  }
}

const head = (lines: string[], path = "/devices/d/send") =>
  `${[`POST ${path} HTTP/1.1`, "Host: localhost", "Content-Type: text/plain", ...lines].join("\r\n")}\r\n\r\n`

const asChunk = (data: string) => `${Buffer.byteLength(data).toString(16)}\r\n${data}\r\n`

describe("a body", () => {
  test("of the longest line, with Content-Length", () =>
    withClient(async (client) => {
      client.write(head([`Content-Length: ${MAX_LINE_BYTES}`]) + "x".repeat(MAX_LINE_BYTES))
      expect((await client.answer()).status).toBe(200)
      expect(sent[0]?.body.length).toBe(MAX_LINE_BYTES)
    }))

  test("the same in chunks", () =>
    withClient(async (client) => {
      const quarter = asChunk("x".repeat(MAX_LINE_BYTES / 4))
      client.write(`${head(["Transfer-Encoding: chunked"])}${quarter.repeat(4)}0\r\n\r\n`)
      expect((await client.answer()).status).toBe(200)
      expect(sent[0]?.body.length).toBe(MAX_LINE_BYTES)
    }))

  test.each([
    ["a byte more than a line", MAX_LINE_BYTES + 1],
    ["a byte more than the limit", LIMIT + 1],
    ["the most that the server lets through", LIMIT * 2],
    ["a byte more than that", LIMIT * 2 + 1],
    ["ten times as much", LIMIT * 10],
  ])("413 as JSON: %s, with Content-Length", (_, length) =>
    withClient(async (client) => {
      client.write(head([`Content-Length: ${length}`]) + "x".repeat(length))
      await expectTooLarge(client)
    }),
  )

  test.each([
    ["a byte more than a line", MAX_LINE_BYTES + 1],
    ["a byte more than the limit", LIMIT + 1],
    ["ten times as much", LIMIT * 10],
  ])("413 as JSON: %s, in chunks", (_, length) =>
    withClient(async (client) => {
      const chunks = asChunk("x".repeat(1_000)).repeat(Math.floor(length / 1_000))
      const rest = length % 1_000 === 0 ? "" : asChunk("x".repeat(length % 1_000))
      client.write(`${head(["Transfer-Encoding: chunked"])}${chunks}${rest}0\r\n\r\n`)
      await expectTooLarge(client)
    }),
  )

  test("that is cut off is neither a command nor counted as a fault", async () => {
    for (const lines of [["Content-Length: 100"], ["Transfer-Encoding: chunked"]]) {
      const client = new RawHttp(server.port)
      const part = lines[0]?.startsWith("Transfer") ? asChunk("half a li") : "half a li"
      client.write(head(lines) + part)
      await until(() => server.busyCount === 1, { what: "the request to have begun" })
      client.socket.destroy()
      await until(() => client.closed, { what: "the socket to close" })
    }
    await until(() => server.busyCount === 0, { what: "no request to be pending" })
    expect(sent).toEqual([])
    expect(faults).toEqual([])
  })
})

async function expectTooLarge(client: RawHttp): Promise<void> {
  const { status, contentType, body } = await client.answer()
  expect({ status, contentType, body }).toEqual({
    status: 413,
    contentType: expect.stringMatching(/^application\/json/),
    body: expect.stringMatching(/^\{"error":\{"code":"too_large","message":".+"\}\}$/),
  })
  expect(countedErrors(counters)).toEqual({ too_large: 1 })
  expect(sent).toEqual([])
}

describe("a path", () => {
  test.each(["%00", "%0a", "%0D%0A", "%2F", "a%2Fb", "%23", "a%20b", "%ff", "%", "%zz"])(
    "400 invalid: the id %s",
    (id) =>
      withClient(async (client) => {
        client.write(`${head(["Content-Length: 1"], `/devices/${id}/send`)}x`)
        const { status, body } = await client.answer()
        expect({ status, code: JSON.parse(body).error.code }).toEqual({
          status: 400,
          code: "invalid",
        })
        expect(sent).toEqual([])
      }),
  )
})

describe("a client that closes its connection", () => {
  test.each([
    ["GET /devices", ""],
    ["GET /devices/lock:1", ""],
    ["DELETE /devices/lock:1/connection", ""],
    ["POST /devices/lock:1/send", "open"],
  ])("aborts its request: %s", async (request, body) => {
    const asked: AbortSignal[] = []
    unanswered = asked
    try {
      const client = new RawHttp(server.port)
      const lines = [
        "Host: localhost",
        "Content-Type: text/plain",
        `Content-Length: ${body.length}`,
      ]
      client.write(`${[`${request} HTTP/1.1`, ...lines].join("\r\n")}\r\n\r\n${body}`)
      await until(() => asked.length === 1, { what: "the request to be asked" })
      expect(asked[0]?.aborted).toBe(false)
      client.socket.destroy()
      await until(() => asked[0]?.aborted === true, { what: "the gateway to notice" })
    } finally {
      unanswered = null
    }
  })
})

describe("an event stream", () => {
  test("sends lines, and its follower is removed when the socket closes", async () => {
    const client = new RawHttp(server.port)
    client.write("GET /messages HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await until(() => client.received.includes("\n\n"), { what: "the stream to begin" })
    expect(client.received).toMatch(/^HTTP\/1\.1 200/)
    expect(client.received).toMatch(/content-type: text\/event-stream/i)
    expect(taps.size).toBe(1)
    for (const tap of taps) tap(Buffer.from("hello"), { headers: { device_id: "d" } })
    await until(() => client.received.includes('"line":"hello"'), { what: "the event" })
    client.socket.destroy()
    await until(() => taps.size === 0, { what: "the follower to be removed" })
  })

  test("whose reader has stopped reading is removed too", async () => {
    const client = new RawHttp(server.port)
    client.write("GET /messages HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await until(() => taps.size === 1, { what: "the follower" })
    client.socket.pause()
    const line = Buffer.alloc(65_536, "x")
    for (let i = 0; i < 200; i += 1) for (const tap of taps) tap(line, {})
    client.socket.destroy()
    await until(() => taps.size === 0, { what: "the follower to be removed" })
  })

  test("is refused to the 17th client until one of 16 has closed", async () => {
    const clients = Array.from({ length: 16 }, () => new RawHttp(server.port))
    for (const client of clients) client.write("GET /messages HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await until(() => taps.size === 16, { what: "16 followers" })
    expect((await fetch(`http://127.0.0.1:${server.port}/messages`)).status).toBe(503)
    for (const client of clients) client.socket.destroy()
    await until(() => taps.size === 0, { what: "all followers to be removed" })
  })
})
