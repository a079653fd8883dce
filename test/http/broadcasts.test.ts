/** The route of broadcasts: what it accepts, and what it answers. */

import { describe, expect, test } from "bun:test"
import type { BroadcastRequest, BroadcastResult } from "../../src/fleet/broadcast-request.ts"
import { maxBodyBytes } from "../../src/http/app.ts"
import { expectRefusal, MAX_LINE_BYTES, sidecar } from "./app-harness.ts"

const COUNTS = {
  ...{ kind: "counts", workers: 2, matched: 3, outcomes: { written: 2, closed: 1 }, unfinished: 0 },
} as const satisfies BroadcastResult

function subject(result: BroadcastResult = COUNTS) {
  const requests: BroadcastRequest[] = []
  const app = sidecar({
    broadcast: async (request) => {
      requests.push(request)
      return result
    },
  })
  const post = (body: unknown) =>
    app.post(
      typeof body === "string" || body instanceof Uint8Array ? body : JSON.stringify(body),
      "application/json",
      "/broadcasts",
    )
  return { ...app, requests, post }
}

describe("a valid broadcast", () => {
  test.each<[object, Partial<BroadcastRequest>]>([
    [{ to: "all" }, { audience: { kind: "all" }, perS: 1_000, supersedeKey: null }],
    [{ to: { prefix: "lock:" } }, { audience: { kind: "prefix", prefix: "lock:" } }],
    [{ to: { ids: ["a", "b"] } }, { audience: { kind: "ids", ids: ["a", "b"] } }],
    [{ to: "all", per_s: 7 }, { perS: 7 }],
    [{ to: "all", supersede_key: "door" }, { supersedeKey: "door" }],
  ])("%j is passed on", async (body, expected) => {
    const { post, requests } = subject()
    const response = await post({ line: "öffne", ...body })
    expect(response.status).toBe(200)
    expect(await response.json()).toEqual({
      workers: 2,
      matched: 3,
      outcomes: { written: 2, closed: 1 },
    })
    expect(requests).toEqual([expect.objectContaining(expected)])
    expect(Buffer.from(requests[0]?.line ?? []).toString()).toBe("öffne")
  })

  test("that is not finished in time says so", async () => {
    const { post } = subject({ ...COUNTS, matched: 9, unfinished: 6 })
    expect(await (await post({ to: "all", line: "a" })).json()).toMatchObject({ unfinished: 6 })
  })

  test("may have the longest line and 10,000 of the longest ids", async () => {
    const { post, requests } = subject()
    const ids = Array.from({ length: 10_000 }, (_, n) => String(n).padStart(128, "d"))
    const response = await post({ to: { ids }, line: "x".repeat(MAX_LINE_BYTES) })
    expect(response.status).toBe(200)
    expect(requests[0]?.audience).toEqual({ kind: "ids", ids })
  })
})

describe("an invalid broadcast", () => {
  const AUDIENCES = 'must be "all", {"prefix": …} or {"ids": […]}'

  test.each<[string, unknown, string]>([
    ["no JSON", "{", "the body is not JSON"],
    ["a member of all objects", { to: "all", line: "a", constructor: 1 }, "constructor: is not"],
    ["a list", ["secret"], "the body must be a JSON object"],
    ["no audience", { line: "a" }, "to: "],
    ["another audience", { to: "some", line: "a" }, `to: ${AUDIENCES}`],
    ["an empty prefix", { to: { prefix: "" }, line: "a" }, AUDIENCES],
    ["a prefix of no id", { to: { prefix: "a secret" }, line: "a" }, AUDIENCES],
    ["prefix and ids", { to: { prefix: "a", ids: ["b"] }, line: "a" }, AUDIENCES],
    ["ids of no devices", { to: { ids: ["a secret"] }, line: "a" }, AUDIENCES],
    ["a tag", { to: { tag: "secret" }, line: "a" }, AUDIENCES],
    ["no line", { to: "all" }, "line: is missing"],
    ["half a character", { to: "all", line: "\ud800" }, "line: must be well-formed Unicode"],
    ["LF in the line", { to: "all", line: "a\nsecret" }, "the line contains LF or CR"],
    ["no rate", { to: "all", line: "a", per_s: 0 }, "per_s: must be at least 1"],
    ["too high a rate", { to: "all", line: "a", per_s: 100_001 }, "per_s: must be at most 100000"],
    ["half a line", { to: "all", line: "a", per_s: 1.5 }, "per_s: must be a whole number"],
    ["an empty key", { to: "all", line: "a", supersede_key: "" }, "supersede_key: must not be"],
    ["a long key", { to: "all", line: "a", supersede_key: "é".repeat(65) }, "at most 128 bytes"],
    [
      "another member",
      { to: "all", line: "a", lines: "secret" },
      "lines: is not known; the members",
    ],
    [
      "a member with a long name",
      { to: "all", line: "a", ["secret".repeat(9)]: 1 },
      "a member: is",
    ],
    [
      "too many ids",
      { to: { ids: new Array(10_001).fill("d") }, line: "a" },
      "must have at most 10000 ids",
    ],
  ])("with %s is refused", async (_, body, message) => {
    const app = subject()
    const text = await expectRefusal(app, await app.post(body), 400, "invalid")
    expect(text).toContain(message)
    expect(text).not.toContain("secret")
    expect(app.requests).toEqual([])
  })

  test.each<[string, unknown[]]>([
    ["10,000 ids of no devices", new Array(10_000).fill("!")],
    ["as many ids as a body has room for", new Array(300_000).fill("!")],
  ])("with %s gets one short fault", async (_, ids) => {
    const app = subject()
    const response = await app.post({ to: { ids }, line: "a" })
    const text = await expectRefusal(app, response, 400, "invalid")
    expect(text.length).toBeLessThan(100)
    expect(app.requests).toEqual([])
  })

  test("with a body that is not UTF-8 is refused, because devices would get other bytes", async () => {
    const app = subject()
    const body = new Uint8Array(Buffer.from('{"to":"all","line":"\xe9"}', "latin1"))
    await expectRefusal(app, await app.post(body), 400, "invalid")
    expect(app.requests).toEqual([])
  })

  test("with too long a line is refused", async () => {
    const app = subject()
    const body = { to: "all", line: "x".repeat(MAX_LINE_BYTES + 1) }
    await expectRefusal(app, await app.post(body), 413, "too_large")
  })

  test("with a body that no valid one is as long as is refused", async () => {
    const app = subject()
    const body = " ".repeat(maxBodyBytes(MAX_LINE_BYTES) + 10_000 * 132 + 1)
    await expectRefusal(app, await app.post(body), 413, "too_large")
  })
})

describe("a broadcast that cannot begin", () => {
  test("because too many are being written gets 429, with the time after which to retry", async () => {
    const app = subject({ kind: "busy" })
    const response = await app.post({ to: "all", line: "a" })
    expect(response.headers.get("retry-after")).toBe("1")
    await expectRefusal(app, response, 429, "busy")
  })

  test("because the broker is away gets 503", async () => {
    const app = subject({ kind: "unreachable" })
    await expectRefusal(app, await app.post({ to: "all", line: "a" }), 503, "broker_away")
  })

  test("because it would take too long gets 400", async () => {
    const app = subject({ kind: "invalid", detail: "it takes hours" })
    const response = await app.post({ to: "all", line: "a" })
    expect(await expectRefusal(app, response, 400, "invalid")).toBe("it takes hours")
  })
})
