/** `GET /events` through `app.request()`: past and live lines, in order, bounded. */

import { describe, expect, test } from "bun:test"
import type { InstanceLogReader, LogEntry, LogTap } from "../../src/log-entry.ts"
import { InstanceLog } from "../../src/process/instance-log.ts"
import { until } from "../support/wait.ts"
import { expectRefusal, sidecar } from "./app-harness.ts"

const MAX_CLIENTS = 16
const MAX_BEHIND = 1_000

function entry(message: string, level: LogEntry["level"] = "info"): LogEntry {
  return { at: 5, level, kind: "log", source: "gw1.0", message, fields: { slot: 1 } }
}

/** The app, and the log of the instance in the test's hand. */
function subject(changes: Partial<InstanceLogReader> = {}) {
  const log = new InstanceLog()
  const taps = new Set<LogTap>()
  const stopping = new AbortController()
  const gateway = sidecar({
    stopping: stopping.signal,
    log: {
      recent: async () => log.recent(),
      follow: (tap) => {
        taps.add(tap)
        const stop = log.follow(tap)
        return () => {
          taps.delete(tap)
          stop()
        }
      },
      ...changes,
    },
  })
  return { ...gateway, log, taps, stopping }
}

/** Collects the events of a response until the reader is told to stop, or the stream ends. */
async function* eventsOf(response: Response): AsyncGenerator<Record<string, string>> {
  let rest = ""
  const decoder = new TextDecoder()
  for await (const chunk of response.body ?? []) {
    const blocks = (rest + decoder.decode(chunk, { stream: true })).split("\n\n")
    rest = blocks.pop() ?? ""
    for (const block of blocks) {
      if (block.startsWith(":")) continue
      yield Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s).slice(0, 2)))
    }
  }
}

async function next(events: AsyncGenerator<Record<string, string>>): Promise<unknown> {
  const { value } = await events.next()
  return [value["event"], JSON.parse(value["data"])]
}

describe("a client", () => {
  test("gets each line from then on, with its number", async () => {
    const { get, log } = subject()
    log.add(entry("before", "warn"))
    const response = await get("/events")
    expect(response.headers.get("content-type")).toBe("text/event-stream")
    const events = eventsOf(response)
    log.add(entry("listening"))
    log.add({ ...entry("kick"), kind: "audit" })
    expect((await events.next()).value).toEqual({
      event: "log",
      id: "2",
      data: JSON.stringify(entry("listening")),
    })
    expect(await next(events)).toMatchObject(["audit", { message: "kick" }])
    await events.return(undefined)
  })

  test("gets the last warnings and errors first, and no line twice", async () => {
    const { get, log } = subject({
      recent: async () => {
        // It arrives while the supervisor is asked.
        log.add(entry("in between", "warn"))
        const recent = log.recent()
        log.add(entry("after", "warn"))
        return recent
      },
    })
    for (const level of ["error", "warn", "info", "warn"] as const) log.add(entry(level, level))
    const events = eventsOf(await get("/events?last=3"))
    const messages: unknown[] = []
    for (let n = 0; n < 4; n += 1) {
      const [, data] = (await next(events)) as [string, LogEntry]
      messages.push(data.message)
    }
    expect(messages).toEqual(["warn", "warn", "in between", "after"])
    await events.return(undefined)
  })

  test("that does not read misses lines, and is told how many", async () => {
    const { get, log } = subject()
    const response = await get("/events")
    const count = 5 * MAX_BEHIND
    for (let n = 0; n < count; n += 1) log.add(entry(`${n}`))
    let got = 0
    for await (const { event, data } of eventsOf(response)) {
      if (event === "missed") {
        expect(got + Number(data)).toBe(count)
        break
      }
      got += 1
    }
    expect(got).toBeLessThan(count)
  })

  test("is told of lines that a process has dropped", async () => {
    const { get, log } = subject()
    const events = eventsOf(await get("/events"))
    log.missed(7)
    expect(await next(events)).toEqual(["missed", 7])
    await events.return(undefined)
  })

  test("that leaves is followed no more", async () => {
    const { get, taps } = subject()
    const response = await get("/events")
    expect(taps.size).toBe(1)
    await response.body?.cancel()
    await until(() => taps.size === 0, { what: "the tap to be removed" })
  })
})

test("a bounded number of clients follow", async () => {
  const gateway = subject()
  const responses = await Promise.all(
    Array.from({ length: MAX_CLIENTS }, () => gateway.get("/events")),
  )
  await expectRefusal(gateway, await gateway.get("/events"), 503, "busy")
  for (const response of responses) await response.body?.cancel()
  await until(() => gateway.taps.size === 0, { what: "the clients to leave" })
  const again = await gateway.get("/events")
  expect(again.status).toBe(200)
  await again.body?.cancel()
})

test.each(["-1", "101", "x", ""])("last=%s is invalid", async (last) => {
  const gateway = subject()
  await expectRefusal(gateway, await gateway.get(`/events?last=${last}`), 400, "invalid")
})

test("streams end when the server stops, and when the supervisor does not answer", async () => {
  const gateway = subject({ recent: async () => null })
  const live = await gateway.get("/events")
  expect(await (await gateway.get("/events?last=5")).text()).toBe(": the log\n\n")
  gateway.stopping.abort()
  expect(await live.text()).toBe(": the log\n\n")
  expect(gateway.taps.size).toBe(0)
})
