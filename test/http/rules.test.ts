/** The routes of the gate and bans: what they accept, and what they answer. */

import { describe, expect, test } from "bun:test"
import { AdmissionRules } from "../../src/fleet/admission-rules.ts"
import { sidecar } from "./app-harness.ts"

const NOW_MS = 1_750_000_000_000

function subject(reachesFleet = true) {
  const rules = new AdmissionRules({
    ...{ flapping: { limit: 1, windowMs: 60_000, banMs: 60_000 }, worker: "gw1.0" },
    nowMs: () => NOW_MS,
    broadcast: () => undefined,
    banned: () => undefined,
    changed: () => undefined,
  })
  const { routes } = sidecar({ rules, reachesFleet: () => reachesFleet })
  const ask = async (method: string, path: string, body?: unknown) => {
    const text = typeof body === "string" ? body : JSON.stringify(body)
    const response = await routes.request(path, {
      method,
      ...(body === undefined ? {} : { body: text }),
    })
    return { status: response.status, body: (await response.json()) as Record<string, unknown> }
  }
  return { rules, ask }
}

describe("the gate", () => {
  test("is open until it is closed, for all or for a prefix", async () => {
    const { rules, ask } = subject()
    expect((await ask("GET", "/gate")).body).toMatchObject({ open: true })
    const closed = await ask("PUT", "/gate", { open: false })
    expect([closed.status, closed.body]).toEqual([
      200,
      { open: false, prefix: "", retry_after_ms: null },
    ])
    expect(rules.isShut).toBe(true)
    const some = { open: false, prefix: "lock:", retry_after_ms: 5_000 }
    expect((await ask("PUT", "/gate", some)).body).toMatchObject(some)
    expect((await ask("GET", "/gate")).body).toMatchObject(some)
    expect((await ask("GET", "/health")).body["gate"]).toMatchObject(some)
    expect((await ask("PUT", "/gate", { open: true, retry_after_ms: null })).status).toBe(200)
    expect(rules.gate.open).toBe(true)
  })

  test.each<[string, unknown, string]>([
    ["no JSON", "{", "the body is not JSON"],
    ["nothing", {}, "open: is missing"],
    ["another type", { open: "no" }, "open: must be true or false"],
    ["a list", [], "the body must be a JSON object"],
    ["null", null, "the body must be a JSON object"],
    [
      "an unknown field",
      { open: true, secret: "abc" },
      "secret: is not known; the members are open, prefix, retry_after_ms",
    ],
    ["a prefix of no id", { open: false, prefix: "a b" }, "prefix: must have characters of"],
    ["a long prefix", { open: false, prefix: "x".repeat(129) }, "prefix: must have at most 128"],
    ["a negative time", { open: false, retry_after_ms: -1 }, "retry_after_ms: must be at least 0"],
    ["part of a ms", { open: false, retry_after_ms: 0.5 }, "retry_after_ms: must be a whole"],
    ["two hours", { open: false, retry_after_ms: 7_200_000 }, "retry_after_ms: must be at most"],
  ])("is not changed by %s", async (_name, body, message) => {
    const { rules, ask } = subject()
    const answer = await ask("PUT", "/gate", body)
    expect(answer.status).toBe(400)
    expect(answer.body["error"]).toMatchObject({ code: "invalid" })
    expect(JSON.stringify(answer.body)).toContain(message)
    expect(JSON.stringify(answer.body)).not.toContain("abc")
    expect(rules.gate.set_at).toBe(0)
  })

  test("is not changed while the other workers cannot be told", async () => {
    const { rules, ask } = subject(false)
    const answer = await ask("PUT", "/gate", { open: false })
    expect([answer.status, rules.gate.open]).toEqual([503, true])
    expect(answer.body["error"]).toMatchObject({ code: "broker_away" })
  })
})

describe("bans", () => {
  test("are listed and lifted", async () => {
    const { rules, ask } = subject()
    expect((await ask("GET", "/bans")).body).toEqual({ bans: [] })
    for (const epoch of [NOW_MS - 2, NOW_MS - 1]) rules.connectedElsewhere("lock:1", epoch)
    expect(rules.refusalOf("lock:1", true)?.reason).toBe("flapping")
    const ban = { id: "lock:1", until: NOW_MS + 60_000, connects: 2 }
    expect((await ask("GET", "/bans")).body).toEqual({ bans: [ban] })
    expect(await ask("DELETE", "/bans/lock:1")).toEqual({
      status: 200,
      body: ban,
    })
    expect((await ask("GET", "/bans")).body).toEqual({ bans: [] })
    expect((await ask("DELETE", "/bans/lock:1")).status).toBe(404)
    expect((await ask("DELETE", "/bans/a%20b")).status).toBe(400)
  })

  test("are made by operators, for devices with a name and at most a day", async () => {
    const { rules, ask } = subject()
    const ban = { id: "lock:1", until: NOW_MS + 60_000, connects: 0 }
    expect(await ask("PUT", "/bans/lock:1", { for_ms: 60_000 })).toEqual({ status: 200, body: ban })
    expect(rules.refusalOf("lock:1", true)?.reason).toBe("denied")
    for (const [path, body] of [
      ["/bans/lock:2", { for_ms: 86_400_001 }],
      ["/bans/lock:2", { for_ms: 999 }],
      ["/bans/lock:2", {}],
      ["/bans/lock:2", "{"],
      ["/bans/a%20b", { for_ms: 60_000 }],
      ["/bans/gw1.0.mb2k3f9zq7.1", { for_ms: 60_000 }],
    ] as const) {
      expect([path, (await ask("PUT", path, body)).status]).toEqual([path, 400])
    }
    expect(rules.bans()).toHaveLength(1)
  })

  test("are not lifted while the other workers cannot be told", async () => {
    const { rules, ask } = subject(false)
    expect((await ask("PUT", "/bans/lock:2", { for_ms: 60_000 })).status).toBe(503)
    for (const epoch of [NOW_MS - 2, NOW_MS - 1]) rules.connectedElsewhere("lock:1", epoch)
    rules.refusalOf("lock:1", true)
    expect((await ask("DELETE", "/bans/lock:1")).status).toBe(503)
    expect(rules.bans()).toHaveLength(1)
  })
})
