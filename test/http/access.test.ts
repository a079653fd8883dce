/**
 * Access to each route of the app for each kind of client. The routes come from Hono's own list, so
 * a new route without an entry in the table fails.
 */

import { describe, expect, test } from "bun:test"
import type { SendRequest } from "../../src/commands/http-sender.ts"
import { Counters } from "../../src/counters.ts"
import { TapeReader } from "../../src/fleet/tape/tape-reader.ts"
import type { AppDependencies } from "../../src/http/app.ts"
import { countedErrors } from "../support/counted-errors.ts"
import { DOCUMENT, type Operation } from "../support/described-answers.ts"
import { localApp } from "../support/local-app.ts"
import { DEVICE, SERVING } from "./app-harness.ts"
import { NO_HELD } from "./no-held.ts"
import { NO_LOG } from "./no-log.ts"
import { NO_RULES } from "./no-rules.ts"

/** everybody: no token needed. see: a token of either kind. act: one of HTTP_TOKENS. */
const ROUTES: Readonly<Record<string, "everybody" | "see" | "act">> = {
  "GET /health": "everybody",
  "GET /ready": "everybody",
  "GET /metrics": "see",
  "GET /devices": "see",
  "GET /devices/:id": "see",
  "GET /messages": "see",
  "GET /refusals": "see",
  "GET /devices/:id/connections": "see",
  "GET /events": "see",
  "GET /audit": "see",
  "POST /devices/:id/send": "act",
  "DELETE /devices/:id/connection": "act",
  "GET /devices/:id/held": "see",
  "DELETE /devices/:id/held": "act",
  "DELETE /devices/:id/held/:message_id": "act",
  "GET /gate": "see",
  "PUT /gate": "act",
  "GET /bans": "see",
  "GET /bans/:id": "see",
  "PUT /bans/:id": "act",
  "DELETE /bans/:id": "act",
  "POST /broadcasts": "act",
  "POST /drain": "act",
  "DELETE /drain": "act",
  "GET /openapi.json": "see",
  "GET /tapes": "see",
  "PUT /devices/:id/tape": "act",
  "GET /devices/:id/tape": "see",
  "GET /devices/:id/tape.jsonl": "see",
  "DELETE /devices/:id/tape": "act",
  "GET /fleet": "see",
  "GET /page/live": "see",
  "GET /page/follow": "see",
}
/** Tested in `session.test.ts`. */
const OF_SESSION = {
  "POST /session": "everybody",
  "GET /session": "see",
  "DELETE /session": "everybody",
}
/** Views and files of the operator page, tested in `page.test.ts`. */
const OF_PAGE = [
  "GET /",
  "GET /page/devices",
  "GET /page/devices/:id",
  "GET /page/refusals",
  "GET /page/access",
  "GET /page/tapes",
  "GET /page/fleet",
  "GET /page/audit",
  "GET /page/assets/:name",
]
const ACT_TOKEN = "act-token-0123456789"
const READ_TOKEN = "read-token-0123456789"
const BOTH = { tokens: ["old-act-token-0123456789", ACT_TOKEN], readTokens: [READ_TOKEN] }
const READ_ONLY = { tokens: [], readTokens: ["old-read-token-0123456789", READ_TOKEN] }
const BROADCAST = '{"to":"all","line":"open"}'
const TAPE = { device_id: "lock:1", until: 5, payload: "hidden", max_bytes: 65_536 } as const
const BODIES: Readonly<Record<string, string>> = {
  "/gate": '{"open":false}',
  "/bans/:id": '{"for_ms":1000}',
}
const NO_TOKENS = { tokens: [], readTokens: [] }

/** The app, and whether a request came as far as a device or the fleet. */
function subject(given: Pick<AppDependencies, "tokens" | "readTokens">) {
  const counters = new Counters()
  const acts: string[] = []
  const app = localApp({
    ...given,
    framing: "line",
    maxLineBytes: 64,
    maxReplyMs: 60_000,
    version: "1",
    startedAtMs: 0,
    nowMs: () => 0,
    counters,
    report: () => SERVING,
    reports: async () => [SERVING],
    metricsText: async () => "owsla_connections 0\n",
    fleetQuery: {
      list: async () => ({ devices: [DEVICE], total: 1, answered: 1, workers: 1 }),
      describe: async () => DEVICE,
      kick: async (id) => {
        acts.push(`kick ${id}`)
        return DEVICE
      },
    },
    messages: { tap: () => () => {} },
    ...NO_LOG,
    ...NO_RULES,
    ...NO_HELD,
    heldQuery: {
      list: async () => [],
      cancel: async (id, messageId) => {
        acts.push(`cancel ${id} ${messageId}`)
        return 1
      },
    },
    tapes: {
      start: async (id) => {
        acts.push(`start ${id}`)
        return TAPE
      },
      stop: async (id) => {
        acts.push(`stop ${id}`)
        return TAPE
      },
      list: () => [],
      reader: () =>
        new TapeReader(async () => ({
          part: { first: 0, before: 0, items: [], end: 0 },
          isOver: true,
        })),
    },
    rules: {
      ...NO_RULES.rules,
      setGate: (request) => {
        acts.push(`gate ${request.open}`)
        return NO_RULES.rules.gate
      },
      bans: () => [{ device_id: "lock:1", at: 1, until: 2, connects: 3 }],
      deny: (id) => {
        acts.push(`deny ${id}`)
        return { device_id: id, at: 1, until: 2, connects: 0 }
      },
      lift: (id) => {
        acts.push(`lift ${id}`)
        return { device_id: id, at: 1, until: 2, connects: 3 }
      },
    },
    broadcast: async ({ audience }) => {
      acts.push(`broadcast ${audience.kind}`)
      return { kind: "counts", workers: 1, matched: 0, outcomes: { written: 0 }, unfinished: 0 }
    },
    empty: (on) => acts.push(`empty ${on}`),
    send: async ({ id }: SendRequest) => {
      acts.push(`send ${id}`)
      const written = { connection_id: "c", epoch: 1, at: 1, detail: "" } as const
      return { outcome: "written", device_id: id, ...written }
    },
    fault: (error) => {
      throw error
    },
  })
  const ask = async (method: string, path: string, headers: Record<string, string> = {}) => {
    const asked = path === "/page/follow" ? `${path}?of=/gate` : path.replace(":id", "lock:1")
    const response = await app.request(asked, {
      method,
      headers: { "content-type": "text/plain", ...headers },
      ...(method === "POST" ? { body: path === "/broadcasts" ? BROADCAST : "open" } : {}),
      ...(method === "PUT" ? { body: BODIES[path] ?? '{"minutes":1}' } : {}),
    })
    const isStream = response.headers.get("content-type")?.startsWith("text/event-stream") === true
    if (isStream) await response.body?.cancel()
    return { status: response.status, text: isStream ? "" : await response.text() }
  }
  return {
    ...app,
    ask,
    acts,
    counted: () => countedErrors(counters),
  }
}

const OTHER_STATUS: Readonly<Record<string, number>> = {
  "POST /drain": 202,
  "PUT /devices/:id/tape": 201,
}
const okOf = (method: string, path: string) => OTHER_STATUS[`${method} ${path}`] ?? 200
const bearer = (token: string) => ({ authorization: `Bearer ${token}` })
const routes = Object.entries(ROUTES).map(([route, access]) => {
  const [method = "", path = ""] = route.split(" ")
  return { method, path, access }
})

test("each route of the app has an entry in the table, and each entry a route", () => {
  const ofApp = subject(NO_TOKENS)
    .routes.routes.filter(({ method, path }) => !(method === "ALL" && path === "/*"))
    .map(({ method, path }) => `${method} ${path}`)
  expect([...new Set(ofApp)].sort()).toEqual(
    [...Object.keys({ ...ROUTES, ...OF_SESSION }), ...OF_PAGE].sort(),
  )
})

test("the OpenAPI document has the same access", () => {
  const access = new Map([
    ["", "everybody"],
    ["token,readToken,session", "see"],
    ["token,session", "act"],
  ])
  const described = Object.entries(DOCUMENT.paths).flatMap(([path, operations]) =>
    Object.entries(operations as Record<string, Operation>).map(([method, { security }]) => {
      const route = `${method.toUpperCase()} ${path.replace(/\{(\w+)\}/g, ":$1")}`
      return [route, access.get(security.flatMap(Object.keys).join())]
    }),
  )
  // Those for browsers are not described.
  const { "GET /page/live": _, "GET /page/follow": _followed, ...others } = ROUTES
  expect(Object.fromEntries(described)).toEqual({ ...others, ...OF_SESSION })
})

describe.each(routes)("$method $path, for $access:", ({ method, path, access }) => {
  const shouldAct = access === "act" ? 1 : 0
  const errorOf = (text: string) => JSON.parse(text).error?.code

  describe("with both kinds of tokens set", () => {
    const refusedToStrangers = access === "everybody" ? 200 : 401

    test.each<[string, Record<string, string>]>([
      ["no token", {}],
      ["a wrong one", bearer("wrong-token-0123456789")],
      ["a part of one", bearer(ACT_TOKEN.slice(1))],
      ["both in one header", { authorization: `Bearer ${READ_TOKEN},${ACT_TOKEN}` }],
    ])("%s", async (_, headers) => {
      const { ask, acts } = subject(BOTH)
      const { status, text } = await ask(method, path, headers)
      expect(status).toBe(refusedToStrangers)
      if (status === 401) expect(errorOf(text)).toBe("unauthorized")
      else expect(text).not.toContain(String(SERVING.pid))
      expect(acts).toEqual([])
    })

    test("a read token", async () => {
      const { ask, acts, counted } = subject(BOTH)
      const { status, text } = await ask(method, path, bearer(READ_TOKEN))
      expect(status).toBe(access === "act" ? 403 : 200)
      if (status === 403) {
        expect(errorOf(text)).toBe("forbidden")
        expect(counted()).toEqual({ forbidden: 1 })
      }
      if (path === "/health") expect(text).toContain(String(SERVING.pid))
      expect(acts).toEqual([])
    })

    test("an act token", async () => {
      const { ask, acts } = subject(BOTH)
      const { status, text } = await ask(method, path, bearer(ACT_TOKEN))
      expect(status).toBe(okOf(method, path))
      if (path === "/health") expect(text).toContain(String(SERVING.pid))
      expect(acts).toHaveLength(shouldAct)
    })

    test("a page of another site, which knows no token", async () => {
      const { ask, acts } = subject(BOTH)
      const headers = { origin: "https://evil.test", "sec-fetch-site": "cross-site" }
      expect((await ask(method, path, headers)).status).toBe(refusedToStrangers)
      expect(acts).toEqual([])
    })

    test("every other method on this path needs an act token", async () => {
      for (const other of ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"]) {
        if (other === method) continue
        const { ask, acts } = subject(BOTH)
        expect([other, (await ask(other, path)).status]).toEqual([other, 401])
        const statusOfRead = (await ask(other, path, bearer(READ_TOKEN))).status
        expect([other, statusOfRead]).toEqual([other, 403])
        expect(acts).toEqual([])
      }
    })

    test("HEAD counts as GET", async () => {
      if (method !== "GET") return
      const { ask } = subject(BOTH)
      expect((await ask("HEAD", path)).status).toBe(refusedToStrangers)
      expect((await ask("HEAD", path, bearer(READ_TOKEN))).status).toBe(200)
    })
  })

  describe("with read tokens alone", () => {
    test.each<[string, Record<string, string>, number]>([
      ["no token", {}, 401],
      ["an act token of before", bearer(ACT_TOKEN), 401],
      ["a read token", bearer(READ_TOKEN), 403],
    ])("%s acts nowhere", async (_, headers, status) => {
      const { ask, acts } = subject(READ_ONLY)
      const allowed = access === "everybody" || (access === "see" && status === 403)
      expect((await ask(method, path, headers)).status).toBe(allowed ? 200 : status)
      expect(acts).toEqual([])
    })
  })

  describe("without tokens", () => {
    test("a program on the machine", async () => {
      const { ask, acts } = subject(NO_TOKENS)
      expect((await ask(method, path)).status).toBe(okOf(method, path))
      expect(acts).toHaveLength(shouldAct)
    })

    test.each<[string, Record<string, string>]>([
      ["a page of another site", { origin: "https://evil.test", "sec-fetch-site": "cross-site" }],
      ["a page of another port", { origin: "http://localhost:9999" }],
      ["an image or a link of another site", { "sec-fetch-site": "cross-site" }],
      ["a page of another port, by an older browser's GET", { "sec-fetch-site": "same-site" }],
      ["a sandboxed frame", { origin: "null" }],
      ["a name that is rebound to loopback", { host: "evil.test:8080" }],
    ])("%s", async (_, headers) => {
      const { ask, acts, counted } = subject(NO_TOKENS)
      const { status, text } = await ask(method, path, headers)
      expect([status, errorOf(text)]).toEqual([403, "forbidden"])
      expect(counted()).toEqual({ forbidden: 1 })
      expect(acts).toEqual([])
    })
  })
})

describe("a route that does not exist", () => {
  test.each([
    ["no token", {}, 401],
    ["a read token", bearer(READ_TOKEN), 404],
    ["an act token", bearer(ACT_TOKEN), 404],
  ])("is reported as missing only to a request with a token: %s", async (_, headers, status) => {
    expect((await subject(BOTH).ask("GET", "/nothing", headers)).status).toBe(status)
  })
})
