/**
 * `GET /messages` through `app.request()`: the contents of events, followers that connect and
 * disconnect, and both bounds. Tests of the keep-alive use a fake clock.
 */

import { afterEach, describe, expect, jest, test } from "bun:test"
import type { MessageProperties } from "../../src/broker/broker.ts"
import type { Tap } from "../../src/broker/embedded.ts"
import { Counters } from "../../src/counters.ts"
import { countedErrors } from "../support/counted-errors.ts"
import { localApp } from "../support/local-app.ts"
import { until } from "../support/wait.ts"
import { NO_HELD } from "./no-held.ts"
import { NO_LOG } from "./no-log.ts"
import { NO_RULES } from "./no-rules.ts"

const MAX_FOLLOWERS = 16
const MAX_BEHIND = 1_000
const KEEP_ALIVE_MS = 5_000
const TOKEN = "a-token-0123456789"

const followers: Follower[] = []

afterEach(async () => {
  jest.useRealTimers()
  for (const follower of followers.splice(0)) await follower.leave()
})

/** The app with a tap in the test's hand. */
function sidecar(tokens: readonly string[] = []) {
  const counters = new Counters()
  const taps = new Set<Tap>()
  const routes = localApp({
    tokens,
    readTokens: [],
    framing: "line",
    maxLineBytes: 65_536,
    maxReplyMs: 60_000,
    version: "1",
    startedAtMs: 0,
    nowMs: () => 0,
    counters,
    report: () => {
      throw new Error("not asked for")
    },
    reports: async () => [],
    fleetQuery: {
      list: async () => "unreachable",
      describe: async () => "unreachable",
      kick: async () => "unreachable",
    },
    metricsText: async () => "",
    ...NO_LOG,
    ...NO_RULES,
    ...NO_HELD,
    empty: () => undefined,
    send: async () => ({ outcome: "busy" }),
    messages: {
      tap: (tap) => {
        taps.add(tap)
        return () => taps.delete(tap)
      },
    },
    fault: (error) => {
      throw error
    },
  })
  const request = async (method = "GET") => routes.request("/messages", { method })
  return {
    counters,
    taps,
    routes,
    request,
    follow: async () => {
      const follower = new Follower(await request())
      followers.push(follower)
      return follower
    },
    line: (body: Uint8Array | string, properties: MessageProperties = headers("d", 0n)) => {
      for (const tap of taps) tap(Buffer.from(body as string), properties)
    },
  }
}

function headers(deviceId: string, seq: bigint): MessageProperties {
  const about = { device_id: deviceId, connection_id: `c-${deviceId}`, from_device_seq: seq }
  return { headers: about, messageId: `c-${deviceId}:${seq}` }
}

/** Reads server-sent events as a browser would: blocks of `field: value`, comments apart. */
class Follower {
  readonly response: Response
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>
  readonly #decoder = new TextDecoder("utf-8", { fatal: true })
  #text = ""

  constructor(response: Response) {
    if (response.body === null) throw new Error("no body")
    this.response = response
    this.#reader = response.body.getReader() as ReadableStreamDefaultReader<Uint8Array>
  }

  async block(): Promise<string> {
    for (;;) {
      const end = this.#text.indexOf("\n\n")
      if (end !== -1) {
        const block = this.#text.slice(0, end)
        this.#text = this.#text.slice(end + 2)
        return block
      }
      const { done, value } = await this.#reader.read()
      if (done) throw new Error("the stream ended")
      this.#text += this.#decoder.decode(value, { stream: true })
    }
  }

  /** The next block that is no comment. */
  async event(): Promise<{ event: string; data: unknown }> {
    for (;;) {
      const block = await this.block()
      if (block.startsWith(":")) continue
      const fields = /^event: (\w+)\ndata: ([^\n]*)$/.exec(block)
      if (fields === null) throw new Error(`no event: ${JSON.stringify(block)}`)
      return { event: fields[1] ?? "", data: JSON.parse(fields[2] ?? "") }
    }
  }

  leave(): Promise<void> {
    return this.#reader.cancel()
  }
}

describe("an event", () => {
  test("has an event stream that must not be cached", async () => {
    const { response } = await sidecar().follow()
    expect(response.status).toBe(200)
    expect(response.headers.get("content-type")).toStartWith("text/event-stream")
    expect(response.headers.get("cache-control")).toBe("no-cache")
  })

  test("contains the line, its device and its number", async () => {
    const gateway = sidecar()
    const follower = await gateway.follow()
    expect(await follower.block()).toStartWith(":")
    gateway.line("hello", headers("d-1", 42n))
    expect(await follower.event()).toEqual({
      event: "line",
      data: { device_id: "d-1", connection_id: "c-d-1", from_device_seq: 42, line: "hello" },
    })
  })

  // What would end the event or the field if it were not written as JSON.
  test.each<[string, string]>([
    ["nothing", ""],
    ["CR, LF and NUL", "a\rb\nc\0d\r\n\r\n"],
    ["another event", "x\n\nevent: missed\ndata: 9"],
    ["quotes", '"\\"'],
    ["several alphabets", "héλ日😀"],
    ["line separators", "a\u2028b\u2029c\u0085d"],
    ["a byte order mark, which is part of the line", "\ufeffa"],
    ["a byte order mark within", "a\ufeffb"],
  ])("contains UTF-8: %s", async (_, line) => {
    const gateway = sidecar()
    const follower = await gateway.follow()
    gateway.line(line)
    expect((await follower.event()).data).toMatchObject({ line })
  })

  test.each<[string, number[]]>([
    ["0xff", [0xff]],
    ["a character cut short", [65, 0xc3]],
    ["an overlong NUL", [0xc0, 0x80]],
    ["a surrogate", [0xed, 0xa0, 0x80]],
    ["all bytes", Array.from({ length: 256 }, (_, byte) => byte)],
  ])("contains other bytes in base64: %s", async (_, bytes) => {
    const gateway = sidecar()
    const follower = await gateway.follow()
    gateway.line(new Uint8Array(bytes))
    const { data } = await follower.event()
    expect(data).not.toHaveProperty("line")
    const { line_base64: told } = data as { line_base64: string }
    expect([...Buffer.from(told, "base64")]).toEqual(bytes)
  })

  test("keeps its order among the others", async () => {
    const gateway = sidecar()
    const follower = await gateway.follow()
    for (let i = 0; i < 500; i += 1) gateway.line(`n ${i}`, headers("d", BigInt(i)))
    for (let i = 0; i < 500; i += 1) {
      expect((await follower.event()).data).toMatchObject({ line: `n ${i}`, from_device_seq: i })
    }
  })

  test("goes to all followers", async () => {
    const gateway = sidecar()
    const three = [await gateway.follow(), await gateway.follow(), await gateway.follow()]
    gateway.line("to all")
    for (const follower of three) {
      expect((await follower.event()).data).toMatchObject({ line: "to all" })
    }
  })
})

test("a quiet stream is kept alive by a comment every 5 s", async () => {
  jest.useFakeTimers()
  const gateway = sidecar()
  const follower = await gateway.follow()
  await follower.block()
  for (let i = 0; i < 3; i += 1) {
    const alive = follower.block()
    await settle()
    jest.advanceTimersByTime(KEEP_ALIVE_MS)
    expect(await alive).toBe(": keep-alive")
  }
  gateway.line("still there")
  expect((await follower.event()).data).toMatchObject({ line: "still there" })
})

describe("a follower", () => {
  test("that disconnects while there are no lines is removed", async () => {
    const gateway = sidecar()
    const follower = await gateway.follow()
    await follower.block()
    expect(gateway.taps.size).toBe(1)
    await follower.leave()
    await until(() => gateway.taps.size === 0, { what: "the tap to be removed" })
  })

  test("that disconnects without having read anything is removed", async () => {
    const gateway = sidecar()
    const follower = await gateway.follow()
    for (let i = 0; i < 50; i += 1) gateway.line("unread")
    await follower.leave()
    await until(() => gateway.taps.size === 0, { what: "the tap to be removed" })
  })

  test("that disconnects does not affect the others", async () => {
    const gateway = sidecar()
    const [gone, stays] = [await gateway.follow(), await gateway.follow()]
    await gone.leave()
    gateway.line("after")
    expect((await stays.event()).data).toMatchObject({ line: "after" })
  })

  test("that reads too slowly gets the number of missed events, then the next ones", async () => {
    const gateway = sidecar()
    const follower = await gateway.follow()
    await settle()
    const sent = MAX_BEHIND + 500
    for (let i = 0; i < sent; i += 1) gateway.line(`n ${i}`)
    let seen = 0
    let last = await follower.event()
    for (; last.event === "line"; last = await follower.event()) {
      expect(last.data).toMatchObject({ line: `n ${seen}` })
      seen += 1
    }
    expect(last.event).toBe("missed")
    expect(seen + Number(last.data)).toBe(sent)
    expect(seen).toBeGreaterThanOrEqual(MAX_BEHIND)
    gateway.line("the next")
    expect((await follower.event()).data).toMatchObject({ line: "the next" })
  })

  test("is one of at most 16; the next gets 503, and can follow when one has disconnected", async () => {
    const gateway = sidecar()
    const all = await Promise.all(Array.from({ length: MAX_FOLLOWERS }, () => gateway.follow()))
    expect(gateway.taps.size).toBe(MAX_FOLLOWERS)
    const refused = await gateway.request()
    expect(refused.status).toBe(503)
    expect(refused.headers.get("retry-after")).toMatch(/^\d+$/)
    expect(await refused.json()).toMatchObject({ error: { code: "busy" } })
    expect(countedErrors(gateway.counters)).toEqual({ busy: 1 })
    expect(gateway.taps.size).toBe(MAX_FOLLOWERS)

    await all[7]?.leave()
    await until(() => gateway.taps.size < MAX_FOLLOWERS, { what: "the tap to be removed" })
    expect((await gateway.follow()).response.status).toBe(200)
  })

  // Hono answers HEAD with the route of GET and discards the body without cancelling it.
  test("of a HEAD request does not count", async () => {
    const gateway = sidecar()
    for (let i = 0; i < MAX_FOLLOWERS; i += 1) await gateway.request("HEAD")
    await settle()
    expect(gateway.taps.size).toBe(0)
    expect((await gateway.request()).status).toBe(200)
  })

  test("needs a token when tokens are set", async () => {
    const gateway = sidecar([TOKEN])
    expect((await gateway.request()).status).toBe(401)
    expect(gateway.taps.size).toBe(0)
    const response = await gateway.routes.request("/messages", {
      headers: { authorization: `Bearer ${TOKEN}` },
    })
    expect(response.status).toBe(200)
    await response.body?.cancel()
  })
})

/** Lets promises that need no timer go as far as they can. */
async function settle(): Promise<void> {
  for (let i = 0; i < 50; i += 1) await Promise.resolve()
}
