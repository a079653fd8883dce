/**
 * Health, readiness, metrics, unknown routes and tokens. Tests that need a socket are in
 * `socket.test.ts`.
 */

import { describe, expect, test } from "bun:test"
import { ERROR_STATUS } from "../../src/http/errors.ts"
import type { WorkerReport } from "../../src/process/control.ts"
import { expectRefusal, SERVING, type Sidecar, sidecar, TOKENS } from "./app-harness.ts"

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
      gate: { open: true, prefix: "", retry_after_ms: null },
      draining: null,
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

describe("unknown routes", () => {
  test.each([
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
    ["GET", `/${"x".repeat(8_000)}`],
    ["GET", "/%00%0a%0d%22%5c%ff"],
    ["GET", "/%zz"],
    ["GET", "/__proto__"],
  ])("404 not_found: %s %s", async (method, path) => {
    const gateway = sidecar()
    await expectRefusal(gateway, await gateway.routes.request(path, { method }), 404, "not_found")
    expect(gateway.sent).toEqual([])
  })

  test("404 not_found with a broker: GET /messages, with what to do instead", async () => {
    const gateway = sidecar()
    const response = await gateway.get("/messages")
    expect(await expectRefusal(gateway, response, 404, "not_found")).toContain("FROM_DEVICE_QUEUE")
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
