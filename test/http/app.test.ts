/**
 * The HTTP API through `app.request()`, without a port: all routes, all refusals and their counters, tokens, and
 * malformed requests. Tests that need a socket are in `socket.test.ts`, tests of event streams in `messages.test.ts`.
 */

import { describe, expect, test } from "bun:test"
import type { SendRequest, SendResult } from "../../src/commands/http-sender.ts"
import { Counters } from "../../src/counters.ts"
import { type AppDependencies, maxBodyBytes } from "../../src/http/app.ts"
import { ERROR_STATUS } from "../../src/http/errors.ts"
import type { WorkerReport } from "../../src/process/control.ts"
import { localApp } from "../support/local-app.ts"

const MAX_LINE_BYTES = 16
const TOKENS = ["first-token-0123456789", "second.token~ABC+/-_==", "third-token-9876543210"]
const SERVING: WorkerReport = {
  worker: "gw1.0",
  pid: 7,
  state: "serving",
  broker: { kind: "ready" },
  connections: 3,
}
const WRITTEN: SendResult = {
  outcome: "written",
  device_id: "d",
  connection_id: "gw1.0.x.0",
  epoch: 1_700_000_000_123,
  at: 1_700_000_000_999,
  detail: "",
}

type Body = RequestInit["body"]

/** The app with recorders where the gateway would be. */
function sidecar(changes: Partial<AppDependencies> = {}) {
  const counters = new Counters()
  const sent: SendRequest[] = []
  const faults: Error[] = []
  const routes = localApp({
    tokens: [],
    readTokens: [],
    maxLineBytes: MAX_LINE_BYTES,
    version: "1.2.3",
    startedAtMs: 1_000,
    nowMs: () => 6_999,
    counters,
    report: () => SERVING,
    reports: async () => [SERVING],
    metricsText: async () => "owsla_connections 3\n",
    fleetQuery: {
      list: async () => "unreachable",
      describe: async () => "unreachable",
      kick: async () => "unreachable",
    },
    messages: null,
    fault: (error) => faults.push(error),
    send: async (request) => {
      sent.push(request)
      return WRITTEN
    },
    ...changes,
  })
  const get = (path: string, headers: Record<string, string> = {}) =>
    Promise.resolve(routes.request(path, { headers }))
  const post = (body: Body, contentType?: string, path = "/devices/d/send") =>
    Promise.resolve(
      routes.request(path, {
        method: "POST",
        body,
        headers: contentType === undefined ? {} : { "content-type": contentType },
      }),
    )
  return {
    routes,
    counters,
    sent,
    faults,
    get,
    post,
    postText: (body: Body, path?: string) => post(body, "text/plain", path),
    postJson: (body: unknown) => post(JSON.stringify(body), "application/json"),
    counted: () => Object.fromEntries(counters.httpErrors),
  }
}

type Sidecar = ReturnType<typeof sidecar>

/** The one form of an error, and that it was counted once and no other was. Returns its message. */
async function expectRefusal(
  { counted }: Pick<Sidecar, "counted">,
  response: Response,
  status: number,
  code: string,
): Promise<string> {
  const text = await response.text()
  expect({ status: response.status, text }).toEqual({ status, text: expect.stringMatching(/^\{/) })
  expect(response.headers.get("content-type")).toStartWith("application/json")
  const body = JSON.parse(text)
  expect(body).toEqual({ error: { code, message: expect.stringMatching(/./) } })
  expect(counted()).toEqual({ [code]: 1 })
  if (status === 503) expect(response.headers.get("retry-after")).toMatch(/^[1-9]\d*$/)
  return body.error.message
}

/** A body in chunks, without Content-Length. */
function chunked(chunk: Uint8Array, count: number): ReadableStream<Uint8Array> {
  let left = count
  return new ReadableStream({
    pull(controller) {
      if (left === 0) return controller.close()
      left -= 1
      controller.enqueue(chunk)
    },
  })
}

describe("GET /health", () => {
  test("returns the state of the process and the sum of the connections of all workers", async () => {
    const other = { ...SERVING, worker: "gw1.1", pid: 8, connections: 4 }
    const response = await sidecar({ reports: async () => [SERVING, other] }).get("/health")
    expect(response.status).toBe(200)
    expect(response.headers.get("content-type")).toStartWith("application/json")
    expect(await response.json()).toEqual({
      status: "ok",
      version: "1.2.3",
      uptime_s: 5,
      broker: "ready",
      connections: 7,
      waiting: 0,
      estimated_wait_ms: 0,
      workers: [SERVING, other],
    })
  })

  test.each([
    [300, 200, 300],
    [300, null, null],
  ])(
    "returns the number of waiting connections and the estimated wait: %p and %p ms",
    async (one, two, all) => {
      const waiting = (worker: string, estimated_wait_ms: number | null): WorkerReport => ({
        ...SERVING,
        worker,
        admission: {
          waiting: 40,
          handshakes_in_progress: 64,
          handshake_limit: 64,
          handshakes_per_s: 9,
          estimated_wait_ms,
        },
      })
      const reports = async () => [waiting("gw1.0", one), waiting("gw1.1", two)]
      const response = await sidecar({ reports }).get("/health")
      expect(await response.json()).toMatchObject({ waiting: 80, estimated_wait_ms: all })
    },
  )

  test("is 200 while draining and without the broker, because the process serves", async () => {
    const report = (): WorkerReport => ({
      ...SERVING,
      state: "draining",
      broker: { kind: "away", reason: "ECONNREFUSED" },
    })
    const response = await sidecar({ report }).get("/health")
    expect(response.status).toBe(200)
    expect(await response.json()).toMatchObject({ status: "draining", broker: "away" })
  })

  test("answers HEAD", async () => {
    const response = await sidecar().routes.request("/health", { method: "HEAD" })
    expect(response.status).toBe(200)
    expect(await response.text()).toBe("")
  })

  test("is 500 when the reports cannot be obtained", async () => {
    const broken = sidecar({ reports: () => Promise.reject(new Error("hidden detail")) })
    const message = await expectRefusal(broken, await broken.get("/health"), 500, "internal")
    expect(message).not.toContain("hidden")
    expect(broken.faults).toHaveLength(1)
  })
})

describe("GET /ready", () => {
  test("is 200 when devices are accepted and the broker accepts messages", async () => {
    const response = await sidecar().get("/ready")
    expect(response.status).toBe(200)
    expect(await response.json()).toEqual({ ready: true })
  })

  test.each<[Partial<WorkerReport>, string]>([
    [{ state: "draining" }, "draining"],
    [{ broker: { kind: "away", reason: "not connected yet" } }, "broker away: not connected yet"],
    [{ broker: { kind: "blocked", reason: "low on memory" } }, "broker blocked: low on memory"],
    [{ broker: { kind: "closed" } }, "broker closed"],
  ])("is 503 with the reason: %j", async (change, reason) => {
    const { get, counted } = sidecar({ report: () => ({ ...SERVING, ...change }) })
    const response = await get("/ready")
    expect(response.status).toBe(503)
    expect(await response.json()).toEqual({ ready: false, reason })
    expect(counted()).toEqual({})
  })
})

describe("/health and /ready without a token, where tokens are set", () => {
  const TEXT = "connect ECONNREFUSED amqp://app@10.1.2.3:5672/production"
  const states: [Partial<WorkerReport>, Record<string, unknown>][] = [
    [{}, { status: "ok", broker: "ready", reason: null }],
    [{ state: "draining" }, { status: "draining", broker: "ready", reason: "draining" }],
    [
      { broker: { kind: "away", reason: TEXT } },
      { status: "ok", broker: "away", reason: "broker_unavailable" },
    ],
    [
      { broker: { kind: "blocked", reason: TEXT } },
      { status: "ok", broker: "blocked", reason: "broker_blocked" },
    ],
    [
      { broker: { kind: "closed" } },
      { status: "ok", broker: "closed", reason: "broker_unavailable" },
    ],
    [{ refusing: "overloaded" }, { status: "ok", broker: "ready", reason: "overloaded" }],
    [{ consuming_paused: true }, { status: "ok", broker: "ready", reason: "consuming_paused" }],
  ]

  test.each(states)("return only codes: %j", async (change, told) => {
    const own = { ...SERVING, pid: 424_242, ...change }
    const never = () => Promise.reject(new Error("other workers are not asked for a stranger"))
    const gateway = sidecar({ tokens: TOKENS, report: () => own, reports: never })
    for (const headers of [{}, { authorization: "Bearer wrong" }, { authorization: "nonsense" }]) {
      const health = await gateway.get("/health", headers)
      expect(health.status).toBe(200)
      expect((await health.json()) as unknown).toEqual(told)
      const ready = await gateway.get("/ready", headers)
      const { reason } = told
      expect(ready.status).toBe(reason === null ? 200 : 503)
      const answer = reason === null ? { ready: true } : { ready: false, reason }
      expect((await ready.json()) as unknown).toEqual(answer)
    }
  })

  test("return all details with a token", async () => {
    const own: WorkerReport = { ...SERVING, broker: { kind: "away", reason: TEXT } }
    const gateway = sidecar({ tokens: TOKENS, report: () => own, reports: async () => [own] })
    const headers = { authorization: `Bearer ${TOKENS[1]}` }
    expect((await (await gateway.get("/health", headers)).json()) as unknown).toMatchObject({
      version: "1.2.3",
      workers: [own],
    })
    expect((await (await gateway.get("/ready", headers)).json()) as unknown).toEqual({
      ready: false,
      reason: `broker away: ${TEXT}`,
    })
  })
})

describe("a body with an encoding", () => {
  const ask = (gateway: Sidecar, encoding: string, method = "POST", path = "/devices/d/send") =>
    Promise.resolve(
      gateway.routes.request(path, {
        method,
        // The beginning of a gzip stream without an LF, so that it could be taken for a line.
        body: new Uint8Array([0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 75]),
        headers: { "content-type": "text/plain", "content-encoding": encoding },
      }),
    )

  test.each(["gzip", "GZip", "br", "deflate", "zstd", "x-gzip", "identity, gzip", "nonsense"])(
    "is 415, and never a line: %s",
    async (encoding) => {
      const gateway = sidecar()
      const response = await ask(gateway, encoding)
      await expectRefusal(gateway, response, 415, "unsupported_encoding")
      expect(response.headers.get("accept-encoding")).toBe("identity")
      expect(gateway.sent).toEqual([])
    },
  )

  test("is 415 on other routes as well", async () => {
    for (const [method, path] of [
      ["DELETE", "/devices/d/connection"],
      ["POST", "/nothing"],
    ] as const) {
      const gateway = sidecar()
      const response = await ask(gateway, "gzip", method, path)
      await expectRefusal(gateway, response, 415, "unsupported_encoding")
    }
  })

  test.each(["identity", "Identity", "", "identity, identity"])("is none: %p", async (encoding) => {
    const gateway = sidecar({ maxLineBytes: 1_000 })
    expect((await ask(gateway, encoding)).status).toBe(200)
    expect(gateway.sent.length).toBe(1)
  })

  test("is not checked without a token", async () => {
    const gateway = sidecar({ tokens: TOKENS })
    await expectRefusal(gateway, await ask(gateway, "gzip"), 401, "unauthorized")
  })
})

describe("GET /metrics", () => {
  test("is Prometheus text", async () => {
    const response = await sidecar().get("/metrics")
    expect(response.status).toBe(200)
    expect(response.headers.get("content-type")).toBe("text/plain; version=0.0.4; charset=utf-8")
    expect(await response.text()).toBe("owsla_connections 3\n")
  })

  test("is 503 while the supervisor does not answer", async () => {
    const alone = sidecar({ metricsText: async () => null })
    const response = await alone.get("/metrics")
    expect(response.headers.get("retry-after")).toBe("1")
    await expectRefusal(alone, response, 503, "busy")
  })

  test("is 500 when the snapshots cannot be obtained", async () => {
    const broken = sidecar({ metricsText: () => Promise.reject(new Error("hidden detail")) })
    const message = await expectRefusal(broken, await broken.get("/metrics"), 500, "internal")
    expect(message).not.toContain("hidden")
  })
})

describe("POST /devices/:id/send: what becomes a command", () => {
  test("text/plain is the line, byte for byte", async () => {
    const { postText, sent } = sidecar()
    const line = new Uint8Array([0, 1, 9, 32, 127, 128, 254, 255, 0])
    const response = await postText(line)
    expect(response.status).toBe(200)
    expect(response.headers.get("content-type")).toStartWith("application/json")
    const { connection_id, epoch } = WRITTEN
    expect(await response.json()).toEqual({ outcome: "written", connection_id, epoch })
    expect(sent).toEqual([{ id: "d", body: line, ttlMs: null, messageId: null }])
  })

  test.each(["text/plain;charset=utf-8", "TEXT/Plain ; charset=utf-8"])("%s too", async (type) => {
    const { post, sent } = sidecar()
    expect((await post("hé", type)).status).toBe(200)
    expect(sent[0]?.body).toEqual(new TextEncoder().encode("hé"))
  })

  test.each(["application/json", "Application/JSON; charset=utf-8"])("%s", async (type) => {
    const { post, sent } = sidecar()
    const body = JSON.stringify({ line: "on\t\0é😀", ttl_ms: 1_500, message_id: "m-1" })
    expect((await post(body, type)).status).toBe(200)
    const line = new TextEncoder().encode("on\t\0é😀")
    expect(sent).toEqual([{ id: "d", body: line, ttlMs: 1_500, messageId: "m-1" }])
  })

  test("JSON with only the line", async () => {
    const { postJson, sent } = sidecar()
    expect((await postJson({ line: "" })).status).toBe(200)
    expect(sent).toEqual([{ id: "d", body: new Uint8Array(), ttlMs: null, messageId: null }])
  })

  test("an empty text is the empty line", async () => {
    const { postText, sent } = sidecar()
    expect((await postText(null)).status).toBe(200)
    expect(sent[0]?.body).toEqual(new Uint8Array())
  })

  test.each<[string, unknown]>([
    ["ttl_ms 1", { line: "x", ttl_ms: 1 }],
    ["ttl_ms of a day", { line: "x", ttl_ms: 86_400_000 }],
    ["ttl_ms 1.0", JSON.parse('{"line":"x","ttl_ms":1.0}')],
    ["message_id of one byte", { line: "x", message_id: " " }],
    ["message_id of 255 bytes", { line: "x", message_id: "m".repeat(255) }],
    ["message_id of 255 bytes in fewer characters", { line: "x", message_id: "€".repeat(85) }],
    ["a line as long as is allowed", { line: "x".repeat(MAX_LINE_BYTES) }],
    ["the same in fewer characters", { line: "é".repeat(MAX_LINE_BYTES / 2) }],
    ["a line of NULs, six characters of JSON each", { line: "\0".repeat(MAX_LINE_BYTES) }],
  ])("takes %s", async (_, body) => {
    const { postJson, sent, counted } = sidecar()
    const response = await postJson(body)
    expect(await response.text()).toContain("written")
    expect(sent).toHaveLength(1)
    expect(counted()).toEqual({})
  })

  test("accepts the longest JSON of one command within the bounds", async () => {
    const { postJson, sent } = sidecar()
    const body = {
      line: "\0".repeat(MAX_LINE_BYTES),
      ttl_ms: 86_400_000,
      message_id: "\u0001".repeat(255),
    }
    const response = await postJson(body)
    expect(await response.text()).toContain("written")
    expect(sent).toHaveLength(1)
  })

  test("takes a body in chunks", async () => {
    const { postText, sent } = sidecar()
    expect((await postText(chunked(new Uint8Array([65, 66]), 8))).status).toBe(200)
    expect(sent[0]?.body).toEqual(new TextEncoder().encode("AB".repeat(8)))
  })
})

describe("POST /devices/:id/send: what is refused", () => {
  const json = (text: string): [string, string] => [text, "application/json"]
  const object = (value: unknown): [string, string] => json(JSON.stringify(value))

  const refused: [string, [string, string], string?][] = [
    ["no JSON", json("{line: 1}")],
    ["JSON cut short", json('{"line":"x"')],
    ["two values", json('{"line":"x"} {"line":"y"}')],
    ["nothing", json("")],
    ["blank", json("   ")],
    ["a NUL after JSON", json('{"line":"x"}\0')],
    ["a raw NUL in a string", json('{"line":"a\0b"}')],
    ["deep nesting", json("[".repeat(500))],
    ["null", object(null)],
    ["an array", object([])],
    ["an array of lines", object(["x"])],
    ["a number", object(5)],
    ["a string", object("x")],
    ["no line", object({}), "line"],
    ["no line but a time", object({ ttl_ms: 5 }), "line"],
    ["line 5", object({ line: 5 }), "line"],
    ["line null", object({ line: null }), "line"],
    ["line true", object({ line: true }), "line"],
    ["line []", object({ line: ["x"] }), "line"],
    ["line {}", object({ line: { toString: "x" } }), "line"],
    ["an unknown field", object({ line: "x", ttl: 5 }), "ttl"],
    ["a field of Object.prototype", object({ line: "x", toString: 5 }), "toString"],
    ["__proto__", json('{"line":"x","__proto__":{"ttl_ms":5}}'), "__proto__"],
    ["line by __proto__", json('{"__proto__":{"line":"x"}}')],
    ["ttl_ms 0", object({ line: "x", ttl_ms: 0 }), "ttl_ms"],
    ["ttl_ms -0", json('{"line":"x","ttl_ms":-0}'), "ttl_ms"],
    ["ttl_ms -1", object({ line: "x", ttl_ms: -1 }), "ttl_ms"],
    ["ttl_ms 1.5", object({ line: "x", ttl_ms: 1.5 }), "ttl_ms"],
    ['ttl_ms "5"', object({ line: "x", ttl_ms: "5" }), "ttl_ms"],
    ["ttl_ms null", object({ line: "x", ttl_ms: null }), "ttl_ms"],
    ["ttl_ms true", object({ line: "x", ttl_ms: true }), "ttl_ms"],
    ["ttl_ms 1e99", json('{"line":"x","ttl_ms":1e99}'), "ttl_ms"],
    ["ttl_ms 1e999", json('{"line":"x","ttl_ms":1e999}'), "ttl_ms"],
    ["ttl_ms more than a day", object({ line: "x", ttl_ms: 86_400_001 }), "ttl_ms"],
    ["message_id empty", object({ line: "x", message_id: "" }), "message_id"],
    ["message_id 5", object({ line: "x", message_id: 5 }), "message_id"],
    ["message_id null", object({ line: "x", message_id: null }), "message_id"],
    ["256 bytes", object({ line: "x", message_id: "m".repeat(256) }), "message_id"],
    ["256 bytes as 128 é", object({ line: "x", message_id: "é".repeat(128) }), "message_id"],
    ["LF", object({ line: "a\nb" }), "LF"],
    ["LF alone", object({ line: "\n" }), "LF"],
    ["CR", object({ line: "a\rb" }), "CR"],
    ["CR LF at the end", object({ line: "a\r\n" }), "LF"],
    ["text with LF", ["a\n", "text/plain"], "LF"],
    ["text with CR", ["\ra", "text/plain"], "CR"],
    ["a form", ["line=x", "application/x-www-form-urlencoded"], "content type"],
    ["octets", ["x", "application/octet-stream"], "content type"],
    ["almost JSON", ['{"line":"x"}', "application/jsonx"], "content type"],
    ["a list of types", ["x", "text/plain, application/json"], "content type"],
    ["an empty type", ["x", ""], "content type"],
  ]
  for (const [name, [body, contentType], told = ""] of refused) {
    test(`400 invalid: ${name}`, async () => {
      const gateway = sidecar()
      const response = await gateway.post(body, contentType)
      expect(await expectRefusal(gateway, response, 400, "invalid")).toContain(told)
      expect(gateway.sent).toEqual([])
      expect(gateway.faults).toEqual([])
    })
  }

  test("400 invalid: no content type", async () => {
    const gateway = sidecar()
    const response = await gateway.post(new Uint8Array([65]))
    expect(await expectRefusal(gateway, response, 400, "invalid")).toContain("content type")
  })

  test("all faults of a JSON body are reported together", async () => {
    const gateway = sidecar()
    const response = await gateway.postJson({ line: 5, ttl_ms: 0, message_id: "", more: 1 })
    const message = await expectRefusal(gateway, response, 400, "invalid")
    for (const field of ["line:", "ttl_ms:", "message_id:", "nothing else"])
      expect(message).toContain(field)
  })

  // Otherwise the device would get U+FFFD, three other bytes, with the outcome `written`.
  test.each<[string, Body]>([
    ["half a surrogate pair in line", '{"line":"\\ud800"}'],
    ["half a surrogate pair in message_id", '{"line":"x","message_id":"\\udc00"}'],
    [
      "JSON that is no UTF-8",
      new Uint8Array([...Buffer.from('{"line":"'), 0xff, ...Buffer.from('"}')]),
    ],
  ])("400 invalid: %s", async (_, body) => {
    const gateway = sidecar()
    const response = await gateway.post(body, "application/json")
    await expectRefusal(gateway, response, 400, "invalid")
    expect(gateway.sent).toEqual([])
  })

  test.each<[string, string]>([
    ["one byte more", "x".repeat(MAX_LINE_BYTES + 1)],
    ["one byte more in fewer characters", `é${"x".repeat(MAX_LINE_BYTES - 1)}`],
    ["as many characters of four bytes", "😀".repeat(MAX_LINE_BYTES)],
    ["one byte more, and it is LF", `${"x".repeat(MAX_LINE_BYTES)}\n`],
  ])("413 too_large: %s, as text and as JSON", async (_, line) => {
    for (const way of ["postText", "postJson"] as const) {
      const gateway = sidecar()
      const response = await gateway[way](way === "postText" ? line : ({ line } as never))
      await expectRefusal(gateway, response, 413, "too_large")
      expect(gateway.sent).toEqual([])
    }
  })

  test("413 too_large: a body over the limit, with and without Content-Length", async () => {
    const most = maxBodyBytes(MAX_LINE_BYTES)
    const blank = (bytes: number) => `{"line":"x"${" ".repeat(bytes - 12)}}`
    const fits = sidecar()
    expect((await fits.post(blank(most), "application/json")).status).toBe(200)

    for (const told of [true, false]) {
      const gateway = sidecar()
      const body = new TextEncoder().encode(blank(most + 1))
      const response = await gateway.routes.request("/devices/d/send", {
        method: "POST",
        body: told ? body : chunked(body, 1),
        headers: {
          "content-type": "application/json",
          ...(told ? { "content-length": String(body.length) } : {}),
        },
      })
      await expectRefusal(gateway, response, 413, "too_large")
      expect(gateway.sent).toEqual([])
    }
  })

  test("an endless body is read only up to the limit", async () => {
    const gateway = sidecar()
    let pulled = 0
    const endless = new ReadableStream<Uint8Array>({
      pull(controller) {
        pulled += 1
        controller.enqueue(new Uint8Array(100))
      },
    })
    await expectRefusal(gateway, await gateway.postText(endless), 413, "too_large")
    expect(pulled * 100).toBeLessThan(maxBodyBytes(MAX_LINE_BYTES) + 500)
  })

  // A client that closes its connection is not a defect of the gateway and must not fill the log with faults.
  test("an incomplete body is not counted as a fault", async () => {
    for (const contentType of ["text/plain", "application/json"]) {
      const gateway = sidecar()
      const broken = new ReadableStream<Uint8Array>({
        start: (controller) => controller.enqueue(new Uint8Array([65])),
        pull: (controller) => controller.error(new Error("the client went away")),
      })
      await gateway.post(broken, contentType)
      expect(gateway.faults).toEqual([])
      expect(gateway.sent).toEqual([])
    }
  })

  // Validators' own messages quote what they were given, however long and however secret it is.
  test.each<[string, string]>([
    ["a string", JSON.stringify("s3cret".repeat(50))],
    ["an unknown field", JSON.stringify({ line: "x", ["s3cret".repeat(50)]: 1 })],
    ["a line of the wrong type", JSON.stringify({ line: ["s3cret".repeat(50)] })],
    ["an id", JSON.stringify({ line: "x", message_id: "s3cret".repeat(50) })],
    ["no JSON", "s3cret".repeat(50)],
  ])("the response does not contain the body: %s", async (_, body) => {
    const gateway = sidecar()
    const response = await gateway.post(body, "application/json")
    const message = await expectRefusal(gateway, response, 400, "invalid")
    expect(message.length).toBeLessThan(300)
    expect(message).not.toContain("s3crets3cret")
  })
})

describe("POST /devices/:id/send: ids", () => {
  const alphabet = /[A-Za-z0-9._:-]/
  const path = (id: string) => `/devices/${id}/send`

  test("every character of the alphabet, as it is and percent-encoded", async () => {
    const id = Array.from({ length: 128 }, (_, code) => String.fromCharCode(code))
      .filter((character) => alphabet.test(character))
      .join("")
    const encoded = [...id].map((c) => `%${c.charCodeAt(0).toString(16)}`).join("")
    const { postText, sent } = sidecar()
    expect((await postText("x", path(id))).status).toBe(200)
    expect((await postText("x", path(encoded))).status).toBe(200)
    expect(sent.map((request) => request.id)).toEqual([id, id])
  })

  test("128 characters", async () => {
    const { postText, sent } = sidecar()
    expect((await postText("x", path("i".repeat(128)))).status).toBe(200)
    expect(sent[0]?.id).toBe("i".repeat(128))
  })

  test("no other character of ASCII, wherever it stands", async () => {
    const odd = Array.from({ length: 128 }, (_, code) => code).filter(
      (code) => !alphabet.test(String.fromCharCode(code)),
    )
    expect(odd).toHaveLength(128 - 66)
    for (const code of odd) {
      const encoded = `%${code.toString(16).padStart(2, "0")}`
      for (const id of [`${encoded}b`, `a${encoded}b`, `a${encoded}`]) {
        const gateway = sidecar()
        const response = await gateway.postText("x", path(id))
        await expectRefusal(gateway, response, 400, "invalid")
        expect(gateway.sent).toEqual([])
      }
    }
  })

  test.each([
    ["129 characters", "i".repeat(129)],
    ["10,000 characters", "i".repeat(10_000)],
    ["é", encodeURIComponent("é")],
    ["an emoji", encodeURIComponent("😀")],
    ["letters of another alphabet that look the same", encodeURIComponent("а")],
    ["digits of another alphabet", encodeURIComponent("٣")],
    ["encoded twice", "a%2541"],
    ["an encoding cut short", "a%4"],
    ["no encoding", "%zz"],
    ["no UTF-8", "%ff%fe"],
    ["an overlong slash", "%c0%af"],
    ["a way up", "..%2f..%2fetc"],
    ["a plus for a space", "a+b"],
    ["a queue pattern", "%23"],
  ])("400 invalid: %s", async (_, id) => {
    const gateway = sidecar()
    await expectRefusal(gateway, await gateway.postText("x", path(id)), 400, "invalid")
    expect(gateway.sent).toEqual([])
  })

  test("an id is refused before the body is read", async () => {
    const gateway = sidecar()
    const message = await expectRefusal(
      gateway,
      await gateway.postText("a\n", path("%20")),
      400,
      "invalid",
    )
    expect(message).toContain("id")
  })
})

describe("POST /devices/:id/send: outcomes", () => {
  const receipt = { ...WRITTEN, connection_id: null, epoch: null, detail: "why it ended" }
  const answers: Record<
    SendResult["outcome"],
    { result: SendResult; status: number; code: string }
  > = {
    written: { result: WRITTEN, status: 200, code: "" },
    offline: { result: { ...receipt, outcome: "offline" }, status: 404, code: "offline" },
    closed: { result: { ...receipt, outcome: "closed" }, status: 404, code: "closed" },
    duplicate: { result: { ...receipt, outcome: "duplicate" }, status: 409, code: "duplicate" },
    late: { result: { ...receipt, outcome: "late" }, status: 409, code: "late" },
    invalid: { result: { ...receipt, outcome: "invalid" }, status: 400, code: "invalid" },
    too_large: { result: { ...receipt, outcome: "too_large" }, status: 413, code: "too_large" },
    slow_device: {
      result: { ...receipt, outcome: "slow_device" },
      status: 503,
      code: "slow_device",
    },
    expired: { result: { ...receipt, outcome: "expired" }, status: 504, code: "expired" },
    unreachable: { result: { outcome: "unreachable" }, status: 503, code: "broker_away" },
    busy: { result: { outcome: "busy" }, status: 503, code: "busy" },
    timeout: { result: { outcome: "timeout" }, status: 504, code: "timeout" },
  }

  for (const [outcome, { result, status, code }] of Object.entries(answers)) {
    test(`${outcome}: ${status}`, async () => {
      const gateway = sidecar({ send: async () => result })
      const response = await gateway.postText("x")
      if (status === 200) {
        expect(response.status).toBe(200)
        expect(gateway.counted()).toEqual({})
        return
      }
      const message = await expectRefusal(gateway, response, status, code)
      if ("detail" in result) expect(message).toBe("why it ended")
      expect(response.headers.has("retry-after")).toBe(status === 503)
    })
  }

  test("an exception while sending is 500, with details in the log only", async () => {
    const send = () => Promise.reject(new Error("amqp://user:hidden@broker"))
    const gateway = sidecar({ send })
    const message = await expectRefusal(gateway, await gateway.postText("x"), 500, "internal")
    expect(message).not.toContain("hidden")
    expect(message).not.toContain(import.meta.file)
    expect(gateway.faults.map((fault) => fault.message)).toEqual(["amqp://user:hidden@broker"])
  })
})

describe("unknown routes", () => {
  test.each([
    ["GET", "/"],
    ["GET", "/nothing"],
    ["GET", "/health/"],
    ["GET", "/Health"],
    ["GET", "/devices/d/send"],
    ["PUT", "/devices/d/send"],
    ["DELETE", "/devices/d/send"],
    ["PATCH", "/devices/d/send"],
    ["OPTIONS", "/devices/d/send"],
    ["POST", "/devices/d/send/"],
    ["POST", "/devices//send"],
    ["POST", "/devices/send"],
    ["POST", "/devices/a/b/send"],
    ["POST", "/devices/../send"],
    ["POST", "/health"],
    ["POST", "/ready"],
    ["POST", "/metrics"],
    ["DELETE", "/metrics"],
    ["GET", "/messages"],
    ["GET", `/${"x".repeat(8_000)}`],
    ["GET", "/%00%0a%0d%22%5c%ff"],
    ["GET", "/%zz"],
    ["GET", "/__proto__"],
  ])("404 not_found: %s %s", async (method, path) => {
    const gateway = sidecar()
    await expectRefusal(gateway, await gateway.routes.request(path, { method }), 404, "not_found")
    expect(gateway.sent).toEqual([])
  })

  test("the query of an unknown route is not repeated, because it may contain a secret", async () => {
    const gateway = sidecar()
    const response = await gateway.get("/nothing?token=s3cret")
    expect(await expectRefusal(gateway, response, 404, "not_found")).not.toContain("s3cret")
  })
})

describe("tokens", () => {
  const guarded: [string, string][] = [
    ["GET", "/metrics"],
    ["POST", "/devices/d/send"],
    ["POST", "/devices/%00/send"],
    ["GET", "/messages"],
    ["GET", "/nothing"],
    ["POST", "/health"],
    ["GET", "/health/"],
    ["GET", "//health"],
    ["GET", "/ready/../metrics"],
  ]
  const ask = ({ routes }: Sidecar, method: string, path: string, authorization?: string) =>
    Promise.resolve(
      routes.request(path, {
        method,
        ...(method === "POST" ? { body: "x" } : {}),
        headers: {
          "content-type": "text/plain",
          ...(authorization === undefined ? {} : { authorization }),
        },
      }),
    )

  test.each(guarded)("401 without one: %s %s", async (method, path) => {
    const gateway = sidecar({ tokens: TOKENS })
    const response = await ask(gateway, method, path)
    await expectRefusal(gateway, response, 401, "unauthorized")
    expect(response.headers.get("www-authenticate")).toStartWith("Bearer")
    expect(gateway.sent).toEqual([])
  })

  const wrong: [string, string][] = [
    ["another", "Bearer another-token-0123456789"],
    ["the beginning of one", `Bearer ${TOKENS[0]?.slice(0, -1)}`],
    ["one and a character more", `Bearer ${TOKENS[0]}x`],
    ["in capitals", `Bearer ${TOKENS[0]?.toUpperCase()}`],
    ["one letter", "Bearer x"],
  ]
  test.each(wrong)("401 with a wrong one: %s", async (_, authorization) => {
    const gateway = sidecar({ tokens: TOKENS })
    const response = await ask(gateway, "POST", "/devices/d/send", authorization)
    const message = await expectRefusal(gateway, response, 401, "unauthorized")
    expect(message).not.toContain(authorization.slice("Bearer ".length))
    for (const token of TOKENS) expect(message).not.toContain(token)
    expect(gateway.sent).toEqual([])
  })

  // errors.ts: each code has its status, and that of `unauthorized` is 401.
  const malformed: [string, string][] = [
    ["no scheme", `${TOKENS[0]}`],
    ["another scheme", `Basic ${TOKENS[0]}`],
    ["Bearer alone", "Bearer"],
    ["no space", `Bearer${TOKENS[0]}`],
    ["all of them", `Bearer ${TOKENS.join(",")}`],
    ["two", `Bearer ${TOKENS[0]} ${TOKENS[1]}`],
    ["quotes", `Bearer "${TOKENS[0]}"`],
    ["a tab", `Bearer\t${TOKENS[0]}`],
    ["an odd character", "Bearer s3cret-token-é"],
  ]
  test.each(malformed)("401 with a malformed one: %s", async (_, authorization) => {
    const gateway = sidecar({ tokens: TOKENS })
    const response = await ask(gateway, "POST", "/devices/d/send", authorization)
    const message = await expectRefusal(gateway, response, 401, "unauthorized")
    expect(message).not.toContain("s3cret")
    for (const token of TOKENS) expect(message).not.toContain(token)
    expect(gateway.sent).toEqual([])
  })

  test.each(TOKENS)("each of several tokens gives access: %s", async (token) => {
    const gateway = sidecar({ tokens: TOKENS })
    for (const scheme of ["Bearer", "bearer"]) {
      expect((await ask(gateway, "POST", "/devices/d/send", `${scheme} ${token}`)).status).toBe(200)
      expect((await ask(gateway, "GET", "/metrics", `${scheme} ${token}`)).status).toBe(200)
    }
    expect(gateway.sent).toHaveLength(2)
    expect(gateway.counted()).toEqual({})
  })

  test("a token outside of its header gives no access", async () => {
    const gateway = sidecar({ tokens: TOKENS })
    const response = await gateway.get(`/metrics?access_token=${TOKENS[0]}`, {
      cookie: `token=${TOKENS[0]}`,
      "x-authorization": `Bearer ${TOKENS[0]}`,
    })
    await expectRefusal(gateway, response, 401, "unauthorized")
  })

  test("/health and /ready need no token and accept any", async () => {
    const gateway = sidecar({ tokens: TOKENS })
    for (const path of ["/health", "/ready"]) {
      expect((await ask(gateway, "GET", path)).status).toBe(200)
      expect((await ask(gateway, "GET", path, "Bearer wrong")).status).toBe(200)
      const text = await (await ask(gateway, "GET", path, "nonsense")).text()
      for (const token of TOKENS) expect(text).not.toContain(token)
    }
  })

  test("without a token the body is not read", async () => {
    const gateway = sidecar({ tokens: TOKENS })
    let pulled = 0
    const endless = new ReadableStream<Uint8Array>(
      {
        pull(controller) {
          pulled += 1
          controller.enqueue(new Uint8Array(100))
        },
      },
      { highWaterMark: 0 },
    )
    await expectRefusal(gateway, await gateway.postText(endless), 401, "unauthorized")
    expect(pulled).toBe(0)
  })

  test("with one, an unknown route is 404", async () => {
    const gateway = sidecar({ tokens: TOKENS })
    const response = await ask(gateway, "GET", "/nothing", `Bearer ${TOKENS[1]}`)
    await expectRefusal(gateway, response, 404, "not_found")
  })
})

test("each refusal is counted once under its code", async () => {
  const gateway = sidecar({ tokens: TOKENS, send: async () => ({ outcome: "busy" }) })
  const headers = { authorization: `Bearer ${TOKENS[0]}`, "content-type": "text/plain" }
  const post = (body: string) =>
    gateway.routes.request("/devices/d/send", { method: "POST", body, headers })
  for (let i = 0; i < 3; i += 1) await post("x")
  for (let i = 0; i < 2; i += 1) await post("\n")
  await post("x".repeat(17))
  await gateway.get("/metrics")
  await gateway.get("/nothing", headers)
  expect(gateway.counted()).toEqual({
    busy: 3,
    invalid: 2,
    too_large: 1,
    unauthorized: 1,
    not_found: 1,
  })
  for (const code of Object.keys(gateway.counted()))
    expect(Object.keys(ERROR_STATUS)).toContain(code as never)
})
