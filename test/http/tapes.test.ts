/** The routes of tapes. */

import { describe, expect, test } from "bun:test"
import type { QuestionFailure } from "../../src/fleet/questions.ts"
import { sizeOf, type TapeItem } from "../../src/fleet/tape/entry.ts"
import { Tape } from "../../src/fleet/tape/tape.ts"
import { type PartAnswer, TapeReader } from "../../src/fleet/tape/tape-reader.ts"
import type { TapeRequest } from "../../src/fleet/tape/tapes.ts"
import { until } from "../support/wait.ts"
import { expectRefusal, sidecar } from "./app-harness.ts"

const VIEW = { device_id: "lock:1", until: 5, payload: "text", max_bytes: 65_536 } as const
const LIMITS = { maxItems: 2, maxBytes: 1e9 }
const PATH = "/devices/lock:1/tape"

type Failed = QuestionFailure | "full" | null

function subject(failed: Failed = null) {
  const tape = new Tape(1_000)
  const state = { isOver: false, end: null as PartAnswer | QuestionFailure | null, reads: 0 }
  const started: [string, TapeRequest][] = []
  const app = sidecar({
    tapes: {
      start: async (id, request) => {
        started.push([id, request])
        return failed ?? VIEW
      },
      stop: async (id) => (id === "none" ? null : failed === "full" ? null : (failed ?? VIEW)),
      list: () => [{ ...VIEW, started_at: 1, recording: true, worker: "gw1.0" }],
      reader: (id) =>
        id === "none"
          ? null
          : new TapeReader(async (from) => {
              state.reads += 1
              if (failed !== null && failed !== "full") return failed
              return state.end ?? { part: tape.read(from, LIMITS), isOver: state.isOver }
            }),
    },
  })
  const add = (item: TapeItem, key: string | null = null) => tape.add(item, sizeOf(item), key)
  const line = (seq: number) =>
    add({ at: 1, kind: "in", connection_id: "c", seq, bytes: 3 }, `k${seq}`)
  const put = (body: unknown, path = PATH) =>
    app.routes.request(path, {
      method: "PUT",
      body: typeof body === "string" ? body : JSON.stringify(body),
    })
  return { ...app, tape, state, started, add, line, put }
}

/** The events that a client has read so far. */
function follow(response: Response) {
  const reader = response.body?.getReader()
  const decoder = new TextDecoder()
  const followed = { text: "", isOver: false, cancel: () => reader?.cancel() }
  const pull = async () => {
    for (;;) {
      const { done, value } = (await reader?.read()) ?? { done: true, value: undefined }
      if (done) break
      followed.text += decoder.decode(value, { stream: true })
    }
    followed.isOver = true
  }
  void pull()
  return followed
}

describe("PUT", () => {
  test("starts a tape, which hides lines unless told otherwise", async () => {
    const { put, started } = subject()
    const response = await put({ minutes: 60 })
    expect([response.status, await response.json()]).toEqual([201, VIEW])
    await put({ minutes: 1, payload: "hex", max_bytes: 65_536 })
    expect(started).toEqual([
      ["lock:1", { minutes: 60, payload: "hidden", maxBytes: 2_097_152 }],
      ["lock:1", { minutes: 1, payload: "hex", maxBytes: 65_536 }],
    ])
  })

  test.each<[unknown]>([
    [{}],
    [{ minutes: 0 }],
    [{ minutes: 61 }],
    [{ minutes: 1.5 }],
    [{ minutes: "x" }],
    [{ minutes: "5" }],
    [{ minutes: null }],
    [{ minutes: 5, payload: "base64" }],
    [{ minutes: 5, payload: null }],
    [{ minutes: 5, max_bytes: 65_535 }],
    [{ minutes: 5, max_bytes: 2_097_153 }],
    [{ minutes: 5, max_bytes: 70_000.5 }],
    [{ minutes: 5, max_bytes: "70000" }],
    [{ minutes: 5, other: 1 }],
    [[5]],
    ["not JSON"],
    [""],
  ])("%j is invalid", async (body) => {
    const { put, started, counted } = subject()
    await expectRefusal({ counted }, await put(body), 400, "invalid")
    expect(started).toEqual([])
  })

  test("an id that no device can have is invalid", async () => {
    const { put, counted } = subject()
    await expectRefusal({ counted }, await put({ minutes: 1 }, "/devices/%20/tape"), 400, "invalid")
  })
})

describe("a failure", () => {
  test.each<[Failed, number, string]>([
    ["full", 409, "busy"],
    ["unreachable", 503, "broker_away"],
    ["timeout", 504, "timeout"],
    ["busy", 503, "busy"],
  ])("%s of PUT is %d %s", async (failed, status, code) => {
    const { put, counted } = subject(failed)
    await expectRefusal({ counted }, await put({ minutes: 1 }), status, code)
  })

  test.each<[QuestionFailure, number, string]>([
    ["unreachable", 503, "broker_away"],
    ["timeout", 504, "timeout"],
    ["busy", 503, "busy"],
  ])("%s of DELETE and of the list is %d %s", async (failed, status, code) => {
    for (const [path, method] of [
      [PATH, "DELETE"],
      [`${PATH}.jsonl`, "GET"],
    ] as const) {
      const { routes, counted } = subject(failed)
      await expectRefusal({ counted }, await routes.request(path, { method }), status, code)
    }
  })

  test("a device without a tape is not found", async () => {
    for (const [path, method] of [
      ["/devices/none/tape", "GET"],
      ["/devices/none/tape.jsonl", "GET"],
      ["/devices/none/tape", "DELETE"],
    ] as const) {
      const { routes, counted } = subject()
      await expectRefusal({ counted }, await routes.request(path, { method }), 404, "not_found")
    }
  })
})

test("DELETE returns the tape; GET /tapes lists all", async () => {
  const { routes, get } = subject()
  expect(await (await routes.request(PATH, { method: "DELETE" })).json()).toEqual(VIEW)
  expect(await (await get("/tapes")).json()).toEqual({
    tapes: [{ ...VIEW, started_at: 1, recording: true, worker: "gw1.0" }],
  })
})

describe("tape.jsonl", () => {
  test("has all entries as they are now, one a line", async () => {
    const { line, tape, add, get } = subject()
    for (const seq of [0, 1, 2]) line(seq)
    tape.complete("k0", { confirmed_at: 9 }, 1)
    add({ kind: "dropped", count: 4 })
    const response = await get(`${PATH}.jsonl`)
    expect(response.headers.get("content-type")).toStartWith("application/x-ndjson")
    const about = { at: 1, kind: "in", connection_id: "c" }
    expect(
      (await response.text())
        .trimEnd()
        .split("\n")
        .map((row) => JSON.parse(row)),
    ).toEqual([
      { ...about, seq: 0, bytes: 3, confirmed_at: 9 },
      { ...about, seq: 1, bytes: 3 },
      { ...about, seq: 2, bytes: 3 },
      { kind: "dropped", count: 4 },
    ])
  })

  test.each(["discarded", "lost"] as const)("of a tape that is %s is not found", async (end) => {
    const { state, get, counted } = subject()
    state.end = end
    await expectRefusal({ counted }, await get(`${PATH}.jsonl`), 404, "not_found")
  })
})

describe("the stream", () => {
  test("has the past, then what comes, what is completed, and the end", async () => {
    const { line, tape, state, get } = subject()
    for (const seq of [0, 1, 2]) line(seq)
    const response = await get(PATH)
    expect(response.headers.get("content-type")).toStartWith("text/event-stream")
    const followed = follow(response)
    await until(() => followed.text.includes('"seq":2'), { what: "the past" })
    line(3)
    tape.complete("k1", { confirmed_at: 9 }, 1)
    await until(() => followed.text.includes("event: completed"), { what: "the rest" })
    state.isOver = true
    await until(() => followed.isOver, { what: "the end" })
    const events = followed.text.trimEnd().split("\n\n")
    const entry = (seq: number) =>
      `event: entry\ndata: {"at":1,"kind":"in","connection_id":"c","seq":${seq},"bytes":3}\nid: ${seq}`
    expect(events).toEqual([
      ...[0, 1, 2, 3].map(entry),
      'event: completed\ndata: {"entry":1,"confirmed_at":9}\nid: 4',
      'event: ended\ndata: {"reason":"over"}',
    ])
  })

  test("of a client that does not read waits for it, and tells how many entries it has missed", async () => {
    const { line, get, state } = subject()
    line(0)
    const response = await get(PATH)
    await until(() => state.reads > 0, { what: "the first part" })
    for (let seq = 1; seq < 100; seq += 1) line(seq)
    const followed = follow(response)
    await until(() => followed.text.includes('"seq":99'), { what: "the newest entry" })
    const counts = followed.text.matchAll(/"kind":"(?:in"|dropped","count":(\d+))/g)
    expect([...counts].reduce((sum, [, count = "1"]) => sum + Number(count), 0)).toBe(100)
    expect(followed.text).toContain('{"kind":"dropped"')
    await followed.cancel()
  })

  test("keeps its place while the broker is away", async () => {
    const { line, state, get } = subject()
    line(0)
    const followed = follow(await get(PATH))
    await until(() => followed.text.includes('"seq":0'), { what: "the first entry" })
    state.end = "unreachable"
    const { reads } = state
    await until(() => state.reads > reads + 1, { what: "another look" })
    line(1)
    state.end = null
    await until(() => followed.text.includes('"seq":1'), { what: "the second entry" })
    expect(followed.text).not.toContain("dropped")
    await followed.cancel()
  })

  test("has comments while there are no entries", async () => {
    const { get } = subject()
    const followed = follow(await get(PATH))
    await until(() => followed.text.startsWith(": keep-alive\n\n"), { what: "a comment" })
    await followed.cancel()
  })

  test.each(["discarded", "lost"] as const)("of a tape that is %s ends", async (end) => {
    const { state, get } = subject()
    state.end = end
    expect(await (await get(PATH)).text()).toBe(`event: ended\ndata: {"reason":"${end}"}\n\n`)
  })

  test("has at most 16 clients, and one more when one has gone", async () => {
    const { get, counted } = subject()
    const streams = await Promise.all(Array.from({ length: 16 }, () => get(PATH)))
    await expectRefusal({ counted }, await get(PATH), 503, "busy")
    await streams[0]?.body?.cancel()
    const next = await until(
      async () => {
        const response = await get(PATH)
        return response.status === 200 ? response : null
      },
      { what: "room for another client" },
    )
    for (const { body } of [...streams.slice(1), next]) await body?.cancel()
  })

  test("HEAD is answered without one", async () => {
    const { routes } = subject()
    const response = await routes.request(PATH, { method: "HEAD" })
    expect([response.status, await response.text()]).toEqual([200, ""])
  })
})
