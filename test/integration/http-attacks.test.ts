/**
 * HTTP requests that are made to confuse: two lengths, a request inside a body, lines that end in
 * odd ways, headers and bodies without measure, and paths that mean another one. Each has an end,
 * nothing inside a body is carried out, and no path leads past the tokens.
 */

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test"
import { gzipSync } from "node:zlib"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { RawHttp } from "../support/raw-http.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 60_000
const TOKEN = "a-token-of-these-tests-0123456789"
const AUTHORIZATION = `Authorization: Bearer ${TOKEN}`

let gateway: TestGateway
const clients: RawHttp[] = []

beforeAll(async () => {
  gateway = await startGateway({ HTTP_TOKENS: TOKEN })
}, LIMIT_MS)

afterEach(() => {
  for (const client of clients.splice(0)) client.socket.destroy()
})

afterAll(async () => {
  await gateway?.stop()
}, LIMIT_MS)

const withToken = (path: string) =>
  gateway.fetch(path, { headers: { authorization: `Bearer ${TOKEN}` } })

/** Everything that the gateway answers to these bytes until it closes the connection. */
async function exchange(bytes: string | Uint8Array): Promise<string> {
  const client = new RawHttp(gateway.httpPort)
  clients.push(client)
  client.write(bytes)
  await until(() => client.received !== "" || client.closed, { what: "an answer or a close" })
  client.socket.end()
  await until(() => client.closed, { what: "the connection to close" })
  return client.received
}

const statusesOf = (received: string) =>
  [...received.matchAll(/^HTTP\/1\.1 (\d{3})/gm)].map(([, status]) => Number(status))

/** The gate is closed if this is carried out. */
const INNER_BODY = '{"open":false}'
const INNER = [
  "PUT /gate HTTP/1.1",
  "Host: localhost",
  AUTHORIZATION,
  "Content-Type: application/json",
  `Content-Length: ${INNER_BODY.length}`,
  "",
  INNER_BODY,
].join("\r\n")

/** A request whose body, however it is measured, holds the inner one. */
function outer(
  headers: readonly string[],
  body: string,
  line = "POST /devices/lock:1/send HTTP/1.1",
) {
  const text = "Content-Type: text/plain"
  return [line, "Host: localhost", AUTHORIZATION, text, ...headers, "", body].join("\r\n")
}

const chunked = (text: string) => `${Buffer.byteLength(text).toString(16)}\r\n${text}\r\n0\r\n\r\n`
const LONG = "x".repeat(20)

describe("a request inside another one is not carried out", () => {
  const length = `Content-Length: ${INNER.length}`
  const TE = "Transfer-Encoding: chunked"

  test.each<[string, string]>([
    ["a body with a length", outer([length], INNER)],
    ["a body of GET", outer([length], INNER, "GET /health HTTP/1.1")],
    ["a body of DELETE", outer([length], INNER, "DELETE /bans/lock:1 HTTP/1.1")],
    ["a body in chunks", outer([TE], chunked(INNER))],
    ["a length that ends before chunks", outer(["Content-Length: 4", TE], `0\r\n\r\n${INNER}`)],
    ["chunks that end before the length", outer([TE, length], `0\r\n\r\n${INNER}`)],
    ["two lengths", outer(["Content-Length: 0", length], INNER)],
    ["two lengths in one header", outer([`Content-Length: 0, ${INNER.length}`], INNER)],
    ["a signed length", outer(["Content-Length: +0"], INNER)],
    ["a negative length", outer(["Content-Length: -1"], INNER)],
    ["a hexadecimal length", outer(["Content-Length: 0x0"], INNER)],
    ["a length with a space", outer(["Content-Length : 0"], INNER)],
    ["an endless length", outer([`Content-Length: ${"9".repeat(40)}`], INNER)],
    ["another coding", outer(["Transfer-Encoding: xchunked"], chunked(INNER))],
    [
      "chunked and then another",
      outer(["Transfer-Encoding: chunked, identity"], `0\r\n\r\n${INNER}`),
    ],
    ["chunked twice", outer([TE, TE], `0\r\n\r\n${INNER}`)],
    ["a tab before chunked", outer(["Transfer-Encoding:\tchunked", length], `0\r\n\r\n${INNER}`)],
    ["a coding with a space", outer(["Transfer-Encoding : chunked", length], `0\r\n\r\n${INNER}`)],
    ["a folded header", outer(["X-Folded: a", ` ${TE}`, length], `0\r\n\r\n${INNER}`)],
    ["a bare CR", outer([`X-Bare: a\r${TE}`, length], `0\r\n\r\n${INNER}`)],
    ["a bare LF", outer([`X-Bare: a\n${TE}`, length], `0\r\n\r\n${INNER}`)],
    ["a zero byte", outer([`X-Zero: a\0${TE}`, length], `0\r\n\r\n${INNER}`)],
    ["a chunk size too large", outer([TE], `FFFFFFFFFFFFFFFFFF\r\n${INNER}`)],
    ["a chunk size of minus one", outer([TE], `-1\r\n${INNER}`)],
    ["a chunk that ends too late", outer([TE], `4\r\n${LONG}\r\n0\r\n\r\n${INNER}`)],
    ["a long chunk extension", outer([TE], `0;${"x".repeat(100_000)}\r\n\r\n${INNER}`)],
    ["a trailer", outer([TE], `0\r\n${INNER}`)],
    ["no version", outer([length], INNER, "GET /health")],
    ["another version", outer([length], INNER, "GET /health HTTP/3.0")],
    ["an upgrade", outer(["Connection: Upgrade", "Upgrade: h2c", length], INNER)],
  ])(
    "%s",
    async (_name, bytes) => {
      const statuses = statusesOf(await exchange(bytes))
      const gate = (await (await withToken("/gate")).json()) as { open: boolean }
      expect(gate.open).toBe(true)
      // One answer, or none when the connection was closed at once.
      expect(statuses.length).toBeLessThanOrEqual(1)
      expect((await withToken("/health")).status).toBe(200)
    },
    LIMIT_MS,
  )

  test("the inner request itself would be", async () => {
    const received = await exchange(INNER)
    expect(statusesOf(received)).toEqual([200])
    const open = { method: "PUT", body: '{"open":true}' }
    const headers = { authorization: `Bearer ${TOKEN}` }
    expect((await gateway.fetch("/gate", { ...open, headers })).status).toBe(200)
  })
})

describe("without measure", () => {
  const MEGABYTE = 1_048_576
  const status = async (bytes: string | Uint8Array) => statusesOf(await exchange(bytes))[0] ?? null

  test.each<[string, () => string, readonly (number | null)[]]>([
    ["a header", () => outer([`X-Long: ${"x".repeat(MEGABYTE)}`], ""), [431, 400, null]],
    [
      "very many headers",
      () =>
        outer(
          Array.from({ length: 50_000 }, (_, n) => `X-${n}: x`),
          "",
        ),
      [431, 400, null],
    ],
    ["a path", () => outer([], "", `GET /${"x".repeat(MEGABYTE)} HTTP/1.1`), [414, 431, 400, null]],
    [
      "a body with its length",
      () => outer([`Content-Length: ${MEGABYTE}`], "x".repeat(MEGABYTE)),
      [413],
    ],
    [
      "a body in chunks",
      () => outer(["Transfer-Encoding: chunked"], chunked("x".repeat(MEGABYTE))),
      [413],
    ],
  ])(
    "%s is refused",
    async (_name, bytes, expected) => {
      expect(expected).toContain(await status(bytes()))
      expect((await withToken("/health")).status).toBe(200)
    },
    LIMIT_MS,
  )

  test("a compressed body is refused before it is unpacked", async () => {
    const packed = gzipSync(Buffer.alloc(64 * MEGABYTE))
    for (const coding of ["gzip", "deflate", "br", "gzip, gzip"]) {
      const head = outer([`Content-Encoding: ${coding}`, `Content-Length: ${packed.length}`], "")
      expect(await status(Buffer.concat([Buffer.from(head), packed]))).toBe(415)
    }
  })
})

test.each([
  ...["/metrics", "//metrics", "/./metrics", "/health/../metrics", "/health/..%2fmetrics"],
  ...["/%2e%2e/metrics", "/health%2f..%2fmetrics", "/%6detrics", "/metrics%00", "/metrics%20"],
  ...[
    "/METRICS",
    "/metrics/",
    "/metrics;x",
    "/metrics?x",
    "/nothing?/../metrics",
    "/ready/%2e./metrics",
  ],
  ...[
    "\\metrics",
    "/\\metrics",
    "http://localhost/metrics",
    "http://metrics/",
    "//localhost/metrics",
  ],
  ...["*", "/devices/..%2f..%2fmetrics", "/devices/%2e%2e%2f%2e%2e%2fmetrics", "/gate", "/bans"],
])("no token, no metrics: GET %s", async (path) => {
  const received = await exchange(
    `GET ${path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n`,
  )
  expect([400, 401, 404]).toContain(statusesOf(received)[0] as number)
  expect(received).not.toContain("owsla_")
  expect(received).not.toContain("set_by")
})

test.each(["TRACE", "CONNECT", "OPTIONS", "PRI", "get", "X".repeat(200)])(
  "the method %s does nothing",
  async (method) => {
    const head = `Host: localhost\r\n${AUTHORIZATION}\r\nConnection: close\r\n\r\n`
    const received = await exchange(`${method} /metrics HTTP/1.1\r\n${head}`)
    expect([400, 404, 405, 501, undefined]).toContain(statusesOf(received)[0])
    expect(received).not.toContain("owsla_")
  },
)

test("nothing of this was a fault of the gateway", async () => {
  const text = await (await withToken("/metrics")).text()
  expect(/^owsla_faults_total (\d+)$/m.exec(text)?.[1]).toBe("0")
})
