/** Sessions: who gets a cookie, who accepts it and until when, and which requests it authorizes. */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { SESSION_COOKIE, SESSION_MS, Sessions } from "../../src/http/session.ts"
import { type Sidecar, sidecar } from "./app-harness.ts"

const ACT = "act-token-0123456789"
const READ = "read-token-0123456789"
const TOKENS = { tokens: [ACT], readTokens: [READ] }
const NOW = 1_800_000_000_000
const HOST = "localhost:8080"
const OWN = { host: HOST, origin: `http://${HOST}` }
const JSON_BODY = { "content-type": "application/json" }

function gateway(changes: Parameters<typeof sidecar>[0] = {}) {
  return sidecar({ ...TOKENS, nowMs: () => NOW, ...changes })
}

async function login({ routes }: Sidecar, token: string, headers: Record<string, string> = {}) {
  return await routes.request("/session", {
    method: "POST",
    headers: { ...JSON_BODY, ...headers },
    body: JSON.stringify({ token }),
  })
}

const cookieOf = (token: string) => `${SESSION_COOKIE}=${new Sessions(TOKENS).open(token, NOW)}`

describe("POST /session", () => {
  test.each([ACT, READ])(
    "gives a cookie that scripts and other sites do not get",
    async (token) => {
      const answer = await login(gateway(), token)
      expect(answer.status).toBe(204)
      const [value, ...attributes] = (answer.headers.get("set-cookie") ?? "").split("; ")
      expect(value).toMatch(/^owsla_session=[0-9]+\.[A-Za-z0-9_-]{43}$/)
      expect(value).not.toContain(token)
      expect(attributes.sort()).toEqual(["HttpOnly", "Max-Age=43200", "Path=/", "SameSite=Strict"])
    },
  )

  test("sets Secure behind a proxy with TLS", async () => {
    const answer = await login(gateway(), ACT, { "x-forwarded-proto": "https" })
    expect(answer.headers.get("set-cookie")).toContain("; Secure")
  })

  test.each([
    ["another token", "wrong-token-0123456789"],
    ["a part of one", ACT.slice(1)],
    ["none", ""],
  ])("refuses %s, and sets no cookie", async (_, token) => {
    const answer = await login(gateway(), token)
    expect(answer.status).toBe(401)
    expect(answer.headers.get("set-cookie")).toBeNull()
  })

  test("bounds the wrong tokens at a time, and accepts the right one meanwhile", async () => {
    const app = gateway()
    const wrong = Array.from({ length: 40 }, () => login(app, "wrong-token-0123456789"))
    expect((await login(app, ACT)).status).toBe(204)
    const statuses = (await Promise.all(wrong)).map(({ status }) => status)
    expect(statuses.filter((status) => status === 401)).toHaveLength(16)
    expect(statuses.filter((status) => status === 429)).toHaveLength(24)
  })

  test.each<[string, string, Record<string, string>, number]>([
    ["no JSON", "token", JSON_BODY, 400],
    ["a form", `token=${ACT}`, { "content-type": "application/x-www-form-urlencoded" }, 400],
    ["text, which any page may send", `{"token":"${ACT}"}`, { "content-type": "text/plain" }, 400],
    ["more fields", `{"token":"${ACT}","x":1}`, JSON_BODY, 400],
    ["no string", '{"token":1}', JSON_BODY, 400],
    ["a long body", `{"token":"${"x".repeat(5_000)}"}`, JSON_BODY, 413],
  ])("refuses %s", async (_, body, headers, status) => {
    const answer = await gateway().routes.request("/session", { method: "POST", headers, body })
    expect(answer.status).toBe(status)
    expect(answer.headers.get("set-cookie")).toBeNull()
  })

  test("needs nothing when there are no tokens", async () => {
    const answer = await login(gateway({ tokens: [], readTokens: [] }), "anything")
    expect([answer.status, answer.headers.get("set-cookie")]).toEqual([204, null])
  })
})

describe("a cookie", () => {
  const sessions = new Sessions(TOKENS)
  const value = sessions.open(ACT, NOW) ?? ""

  test("has the access of its token, on each worker and after a restart", () => {
    const other = new Sessions({ tokens: ["new-token-0123456789", ACT], readTokens: [READ] })
    expect(other.find(value, NOW + 1)).toMatchObject({
      ...{ access: "act", expiresAtMs: NOW + SESSION_MS },
      name: expect.stringMatching(/^sha256:[0-9a-f]{8}$/),
    })
    expect(other.find(sessions.open(READ, NOW) ?? "", NOW)?.access).toBe("read")
  })

  test("has the name of its token", () => {
    const named = new Sessions({ tokens: [`alice:${ACT}`], readTokens: [] })
    expect(named.find(named.open(ACT, NOW) ?? "", NOW)?.name).toBe("alice")
  })

  test("ends after 12 hours", () => {
    expect(sessions.find(value, NOW + SESSION_MS - 1)).not.toBeNull()
    expect(sessions.find(value, NOW + SESSION_MS)).toBeNull()
  })

  test("is refused once its token is removed, and has less access once that has", () => {
    expect(new Sessions({ tokens: [], readTokens: [READ] }).find(value, NOW)).toBeNull()
    expect(new Sessions({ tokens: [], readTokens: [ACT] }).find(value, NOW)?.access).toBe("read")
  })

  test("cannot be prolonged or made up", () => {
    const [, mac] = value.split(".")
    expect(sessions.find(`${NOW + SESSION_MS + 1}.${mac}`, NOW + 2)).toBeNull()
    fc.assert(
      fc.property(fc.string(), fc.nat(), (text, at) => {
        const changed = `${value.slice(0, at % value.length)}${text}`
        fc.pre(changed !== value)
        expect(sessions.find(changed, NOW)).toBeNull()
      }),
      { seed: 1 },
    )
  })
})

describe("a request with a cookie", () => {
  const get = (path: string, token: string, headers: Record<string, string> = {}) =>
    gateway().routes.request(path, { headers: { cookie: cookieOf(token), ...headers } })
  const act = (token: string, headers: Record<string, string>) =>
    gateway({ empty: () => undefined }).routes.request("/drain", {
      method: "POST",
      headers: { cookie: cookieOf(token), ...headers },
    })

  test.each([ACT, READ])("reads", async (token) => {
    for (const path of ["/metrics", "/gate", "/fleet"])
      expect((await get(path, token)).status).toBe(200)
    expect(await (await get("/health", token)).json()).toContainKey("workers")
  })

  test("acts from the page only with a token that may", async () => {
    expect((await act(ACT, OWN)).status).toBe(202)
    expect((await act(READ, OWN)).status).toBe(403)
  })

  test.each<[string, Record<string, string>, number]>([
    ["the page", OWN, 202],
    ["the page, behind a proxy with TLS", { host: HOST, origin: `https://${HOST}` }, 202],
    [
      "the page, behind a proxy that has changed Host",
      { host: "10.0.0.1", origin: "https://owsla.example", "sec-fetch-site": "same-origin" },
      202,
    ],
    ["another site", { host: HOST, origin: "https://evil.test" }, 403],
    ["another port", { host: HOST, origin: "http://localhost:9999" }, 403],
    ["a sandboxed frame", { host: HOST, origin: "null" }, 403],
    ["no origin", { host: HOST }, 403],
    ["another site by Sec-Fetch-Site", { ...OWN, "sec-fetch-site": "same-site" }, 403],
  ])("acts or is refused by its origin: %s", async (_, headers, status) => {
    expect((await act(ACT, headers)).status).toBe(status)
  })

  test("counts for nothing beside a bearer token", async () => {
    const headers = { authorization: "Bearer wrong-token-0123456789" }
    expect((await get("/metrics", ACT, headers)).status).toBe(401)
  })
})

describe("GET and DELETE /session", () => {
  const ask = (method: string, headers: Record<string, string>, changes = {}) =>
    gateway(changes).routes.request("/session", { method, headers })

  test("says what the session may do and when it ends", async () => {
    const answer = await ask("GET", { cookie: cookieOf(READ) })
    expect(await answer.json()).toEqual({ access: "read", expires_at: NOW + SESSION_MS })
  })

  test("is 401 without one", async () => {
    expect((await ask("GET", {})).status).toBe(401)
    expect((await ask("GET", { cookie: `${SESSION_COOKIE}=x` })).status).toBe(401)
  })

  test("needs none without tokens", async () => {
    const answer = await ask("GET", {}, { tokens: [], readTokens: [] })
    expect(await answer.json()).toEqual({ access: "act", expires_at: null })
  })

  test("removes the cookie", async () => {
    const answer = await ask("DELETE", { cookie: cookieOf(READ), ...OWN })
    expect(answer.status).toBe(204)
    expect(answer.headers.get("set-cookie")).toMatch(/^owsla_session=; Max-Age=0; Path=\//)
  })
})

test("an event stream ends when the session expires", async () => {
  let stopped = false
  let nowMs = NOW
  const { routes } = gateway({
    nowMs: () => nowMs,
    messages: {
      tap: () => () => {
        stopped = true
      },
    },
  })
  nowMs = NOW + SESSION_MS - 200
  const answer = await routes.request("/messages", { headers: { cookie: cookieOf(READ) } })
  expect(answer.status).toBe(200)
  const text = await answer.text()
  expect(text).toStartWith(": the devices' lines")
  expect(stopped).toBe(true)
})
