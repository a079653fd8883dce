/** The views of the page by one stream: which routes, whose rights, and that only changes are sent. */

import { describe, expect, test } from "bun:test"
import { until } from "../../support/wait.ts"
import { sidecar } from "../app-harness.ts"

const ACT = "a-token-that-may-act-0123456789"

interface Answer {
  readonly of: string
  readonly status: number
  readonly body: Record<string, unknown>
}

/** Reads answers until there are so many. */
async function answers(response: Response, count: number): Promise<Answer[]> {
  const reader = response.body?.getReader()
  let text = ""
  const found = () => [...text.matchAll(/event: answer\ndata: (.*)\n\n/g)].map(([, data]) => data)
  while (found().length < count) {
    const { value, done } = (await reader?.read()) ?? { done: true }
    if (done) throw new Error(`ended after ${text}`)
    text += new TextDecoder().decode(value)
  }
  await reader?.cancel()
  return found().map((data) => JSON.parse(data ?? ""))
}

const query = (...paths: readonly string[]) =>
  `/page/follow?${new URLSearchParams(paths.map((path): [string, string] => ["of", path]))}`

describe("GET /page/follow", () => {
  test("sends the answer of each path, with its status", async () => {
    const { get } = sidecar()
    const sent = await answers(await get(query("/gate", "/bans/lock%3A17", "/devices?limit=5")), 3)
    expect(sent.sort((one, other) => one.of.localeCompare(other.of))).toMatchObject([
      { of: "/bans/lock%3A17", status: 404, body: { error: { code: "not_found" } } },
      { of: "/devices?limit=5", status: 503, body: { error: { code: "broker_away" } } },
      { of: "/gate", status: 200, body: { open: true } },
    ])
  })

  test("looks again, and sends an answer that is another one", async () => {
    let looks = 0
    const describe = async () => {
      looks += 1
      return looks < 3 ? null : "unreachable"
    }
    const list = async () => "unreachable" as const
    const { get } = sidecar({ fleetQuery: { list, describe, kick: describe } as never })
    const sent = await answers(await get(query("/devices/lock%3A17")), 2)
    expect(sent.map(({ status }) => status)).toEqual([404, 503])
    expect(looks).toBe(3)
  })

  test("sees what its token may see", async () => {
    const { get } = sidecar({ tokens: [ACT] })
    expect((await get(query("/gate"))).status).toBe(401)
    const allowed = await get(query("/gate"), { authorization: `Bearer ${ACT}` })
    expect(await answers(allowed, 1)).toMatchObject([{ of: "/gate", status: 200 }])
  })

  test("ends the look that is under way when the follower has gone", async () => {
    const looking = Promise.withResolvers<AbortSignal>()
    const describe = (_id: string, caller: AbortSignal) => {
      looking.resolve(caller)
      return new Promise(() => undefined)
    }
    const { get } = sidecar({ fleetQuery: { describe } as never })
    const response = await get(query("/devices/lock%3A17"))
    const caller = await looking.promise
    expect(caller.aborted).toBe(false)
    await response.body?.cancel()
    await until(() => caller.aborted, { what: "the look to end" })
  })

  test.each([
    ["no path", "/page/follow"],
    ["nine paths", query(...Array.from({ length: 9 }, (_, n) => `/devices/${n}`))],
    ["a stream", query("/events")],
    ["itself", query("/page/follow?of=/gate")],
    ["a stream of a tape", query("/devices/a/tape")],
    ["a tape", query("/devices/a/tape.jsonl")],
    ["metrics", query("/metrics")],
    ["another server", query("http://example.com/gate")],
    ["another server without a scheme", query("//example.com/gate")],
    ["dots", query("/devices/../messages")],
    ["coded dots", query("/devices/%2e%2e/messages")],
    ["no URL", query("http://[")],
  ])("cannot follow %s", async (_, path) => {
    const { get, faults } = sidecar()
    const response = await get(path)
    expect([response.status, faults]).toEqual([400, []])
    expect(await response.json()).toMatchObject({ error: { code: "invalid" } })
  })

  test("sends one path once, however often it is asked for", async () => {
    const { get } = sidecar()
    const sent = await answers(await get(query("/gate", "/gate", "/bans")), 2)
    expect(sent.map(({ of }) => of).sort()).toEqual(["/bans", "/gate"])
  })
})
