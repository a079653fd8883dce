/** What operators do through the HTTP API is audited, with who did it, and may be seen. */

import { describe, expect, test } from "bun:test"
import { createHash } from "node:crypto"
import type { DeviceView } from "../../src/fleet/device-view.ts"
import { app } from "../../src/http/app.ts"
import type { AuditEntry } from "../../src/http/audit.ts"
import type { NumberedEntry } from "../../src/log-entry.ts"
import { type AppChanges, dependencies } from "./app-harness.ts"
import { NO_HELD } from "./no-held.ts"
import { NO_LOG } from "./no-log.ts"
import { NO_RULES } from "./no-rules.ts"

const ALICE = "alice-token-0123456789"
const UNNAMED = "unnamed-token-0123456789"
const READER = "reader-token-0123456789"
const TOKENS = { tokens: [`alice:${ALICE}`, UNNAMED], readTokens: [`grafana:${READER}`] }
const ADDRESS = "192.0.2.8"
const DEVICE = { device_id: "lock:1", connection_id: "gw1.0.x.1" } as DeviceView

function subject(changes: AppChanges = {}) {
  const audited: AuditEntry[] = []
  const routes = app(
    dependencies({ ...TOKENS, audited: (entry) => void audited.push(entry), ...changes }),
  )
  const ask = async (method: string, path: string, token: string | null, body?: string) => {
    const headers = {
      host: "localhost",
      ...(token === null ? {} : { authorization: `Bearer ${token}` }),
      ...(body === undefined ? {} : { "content-type": "application/json" }),
    }
    const init = { method, headers, ...(body === undefined ? {} : { body }) }
    return routes.request(path, init, { remoteAddress: ADDRESS })
  }
  return { audited, ask, routes }
}

const BAN = { device_id: "lock:1", at: 1, until: 9, connects: 11 }
const TAPE = { device_id: "lock:1", until: 9, payload: "text", max_bytes: 65_536 } as const
const WHO = { by: "alice", address: ADDRESS }
const ACTS = {
  fleetQuery: { list: async () => "busy", describe: async () => "busy", kick: async () => DEVICE },
  rules: {
    ...NO_RULES.rules,
    setGate: (gate) => ({ ...gate, set_at: 1, set_by: "gw1.0" }),
    lift: () => BAN,
  },
  tapes: { ...NO_HELD.tapes, start: async () => TAPE, stop: async () => TAPE },
  broadcast: async () => ({
    ...{ kind: "counts", workers: 1, matched: 7, outcomes: { written: 7 }, unfinished: 0 },
  }),
} as const satisfies AppChanges

describe("an act is audited with the name of its token and the client's address", () => {
  test.each<[string, string, string | undefined, Omit<AuditEntry, "by" | "address">]>([
    [
      "DELETE",
      "/devices/lock:1/connection",
      undefined,
      { action: "kick", target: "lock:1", detail: "gw1.0.x.1" },
    ],
    ["PUT", "/gate", '{"open":false}', { action: "gate", target: null, detail: "closed" }],
    [
      "PUT",
      "/gate",
      '{"open":false,"prefix":"lock:"}',
      { action: "gate", target: "lock:", detail: "closed" },
    ],
    ["PUT", "/gate", '{"open":true}', { action: "gate", target: null, detail: "opened" }],
    [
      "PUT",
      "/bans/lock:1",
      '{"for_ms":60000}',
      { action: "deny", target: "lock:1", detail: "for 60000 ms" },
    ],
    [
      "PUT",
      "/devices/lock:1/tape",
      '{"minutes":10,"payload":"text"}',
      { action: "tape_started", target: "lock:1", detail: "for 10 minutes, payload text" },
    ],
    [
      "DELETE",
      "/devices/lock:1/tape",
      undefined,
      { action: "tape_discarded", target: "lock:1", detail: "" },
    ],
    [
      "DELETE",
      "/bans/lock:1",
      undefined,
      { action: "ban_lifted", target: "lock:1", detail: "11 connections" },
    ],
    [
      "POST",
      "/broadcasts",
      '{"to":{"prefix":"lock:"},"line":"secret"}',
      { action: "broadcast", target: "lock:", detail: "to prefix, matched 7" },
    ],
    [
      "POST",
      "/broadcasts",
      '{"to":{"ids":["a","b"]},"line":"secret"}',
      { action: "broadcast", target: null, detail: "to 2 ids, matched 7" },
    ],
    [
      "POST",
      "/drain",
      undefined,
      { action: "drain", target: null, detail: "the instance takes no devices" },
    ],
    [
      "DELETE",
      "/drain",
      undefined,
      { action: "drain_cancelled", target: null, detail: "the instance takes devices" },
    ],
  ])("%s %s %s", async (method, path, body, act) => {
    const { ask, audited } = subject(ACTS)
    expect((await ask(method, path, ALICE, body)).ok).toBe(true)
    expect(audited).toEqual([{ ...act, ...WHO }])
    expect(JSON.stringify(audited)).not.toContain("secret")
  })

  test("a kick without an answer too: it may have been carried out", async () => {
    const fleetQuery = { ...ACTS.fleetQuery, kick: async () => "timeout" as const }
    const { ask, audited } = subject({ fleetQuery })
    expect((await ask("DELETE", "/devices/lock:1/connection", ALICE)).status).toBe(504)
    expect(audited).toEqual([{ action: "kick", target: "lock:1", detail: "timeout", ...WHO }])
  })

  test("a tape that is discarded without an answer too", async () => {
    const { ask, audited } = subject({ tapes: { ...ACTS.tapes, stop: async () => "timeout" } })
    expect((await ask("DELETE", "/devices/lock:1/tape", ALICE)).status).toBe(504)
    expect(audited).toMatchObject([{ action: "tape_discarded", detail: "timeout" }])
  })

  test("a token without a name by the beginning of its digest, which is no token", async () => {
    const { ask, audited } = subject(ACTS)
    await ask("POST", "/drain", UNNAMED)
    const digits = createHash("sha256").update(UNNAMED).digest("hex").slice(0, 8)
    expect(audited[0]?.by).toBe(`sha256:${digits}`)
    for (const shown of [digits, `sha256:${digits}`, "alice", `alice:${ALICE}`]) {
      expect((await ask("POST", "/drain", shown)).status).toBe(401)
    }
    expect(audited.length).toBe(1)
  })

  test("a session with the name of its token", async () => {
    const { audited, routes } = subject(ACTS)
    const login = await routes.request("/session", {
      method: "POST",
      headers: { host: "localhost", "content-type": "application/json" },
      body: JSON.stringify({ token: ALICE }),
    })
    const cookie = login.headers.get("set-cookie")?.split(";")[0] ?? ""
    const headers = { host: "localhost", origin: "http://localhost", cookie }
    await routes.request("/drain", { method: "POST", headers }, { remoteAddress: ADDRESS })
    expect(audited).toMatchObject([{ action: "drain", ...WHO }])
  })

  test("without tokens by nobody", async () => {
    const { ask, audited } = subject({ ...ACTS, tokens: [], readTokens: [] })
    await ask("POST", "/drain", null)
    expect(audited[0]).toMatchObject({ by: null, address: ADDRESS })
  })
})

test("what was not done is not audited, and neither is a command", async () => {
  const { ask, audited } = subject({
    ...ACTS,
    fleetQuery: { ...ACTS.fleetQuery, kick: async () => null },
    rules: { ...ACTS.rules, lift: () => null },
    tapes: NO_HELD.tapes,
    broadcast: async () => ({ kind: "busy" }),
  })
  await ask("DELETE", "/devices/lock:1/connection", ALICE)
  await ask("DELETE", "/bans/lock:1", ALICE)
  await ask("PUT", "/bans/lock:1", ALICE, '{"for_ms":1}')
  await ask("PUT", "/devices/lock:1/tape", ALICE, '{"minutes":1}')
  await ask("DELETE", "/devices/lock:1/tape", ALICE)
  await ask("POST", "/broadcasts", ALICE, '{"to":"all","line":"open"}')
  await ask("PUT", "/gate", ALICE, '{"open":1}')
  await ask("POST", "/drain", READER)
  expect((await ask("POST", "/devices/lock:1/send", ALICE, '{"line":"open"}')).status).toBe(200)
  expect(audited).toEqual([])
})

describe("GET /audit", () => {
  const entry: NumberedEntry = {
    at: 5,
    level: "info",
    kind: "audit",
    source: "gw1.0",
    message: "kick",
    seq: 3,
    fields: { action: "kick", target: "lock:1", detail: "gw1.0.x.1", ...WHO },
  }

  test("shows the entries, to a read token too", async () => {
    const recent = async () => ({ notices: [], audit: [entry] })
    const { ask } = subject({ log: { ...NO_LOG.log, recent } })
    const response = await ask("GET", "/audit", READER)
    expect(await response.json()).toEqual({
      audit: [{ at: 5, worker: "gw1.0", ...entry.fields }],
    })
  })

  test("is busy while the supervisor does not answer", async () => {
    const { ask } = subject({ log: { ...NO_LOG.log, recent: async () => null } })
    expect((await ask("GET", "/audit", READER)).status).toBe(503)
  })
})
