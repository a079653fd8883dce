/** The live state of the page: one look for all followers, none without followers. */

import { describe, expect, test } from "bun:test"
import { LiveFeed } from "../../../src/http/page/live.ts"
import type { Gathered } from "../../../src/process/control.ts"
import { SampleHistory } from "../../../src/process/samples.ts"
import { until } from "../../support/wait.ts"
import { SERVING, sidecar } from "../app-harness.ts"

const GATE = { open: true, prefix: "", retry_after_ms: null, set_at: 0, set_by: "" }

function subject() {
  const looks: boolean[] = []
  const gathered = { answer: true }
  const gather = async (wantsHistory: boolean): Promise<Gathered | null> => {
    looks.push(wantsHistory)
    if (!gathered.answer) return null
    const history = wantsHistory ? new SampleHistory().columns : null
    const other = { ...SERVING, worker: "gw1.1" }
    return {
      snapshots: [
        { report: other, metrics: [] },
        { report: SERVING, metrics: [] },
      ],
      restarts: { "gw1.1": 3 },
      history,
    }
  }
  const facts = () => ({
    ...{ atMs: Date.now(), startedAtMs: 0, workers: 2, windowLines: 2_000, gate: GATE, bans: 0 },
  })
  return { feed: new LiveFeed({ gather, facts }), looks, gathered }
}

describe("the feed", () => {
  test("looks once for all followers, and stops with the last one", async () => {
    const { feed, looks } = subject()
    const [first, second]: [string[], string[]] = [[], []]
    const leaveFirst = feed.follow((state) => first.push(state))
    await feed.history()
    const leaveSecond = feed.follow((state) => second.push(state))
    await feed.history()
    await until(() => first.length === 1, { what: "a state" })
    expect(second).toEqual(first)
    expect(looks).toEqual([true, true, false])
    leaveFirst()
    leaveSecond()
    expect(feed.followers).toBe(0)
    const third: string[] = []
    const leaveThird = feed.follow((state) => third.push(state))
    await feed.history()
    await until(() => third.length === 1, { what: "a state of the second run" })
    leaveThird()
    expect(first).toHaveLength(1)
    expect(looks).toEqual([true, true, false, true, false])
  })

  test("sends a state with its workers and what is wrong", async () => {
    const { feed } = subject()
    const states: string[] = []
    const leave = feed.follow((state) => states.push(state))
    await feed.history()
    await until(() => states.length > 0, { what: "a state" })
    leave()
    const state = JSON.parse(states[0] ?? "")
    expect(state.workers).toMatchObject([
      { worker: "gw1.0", broker: { kind: "ready" }, restarts: 0 },
      { worker: "gw1.1", broker: { kind: "ready" }, restarts: 3 },
    ])
    expect(state.findings[0]).toMatchObject({ part: "broker", level: "ok" })
  })

  test("has no history while the supervisor does not answer", async () => {
    const { feed, gathered } = subject()
    gathered.answer = false
    const leave = feed.follow(() => {})
    expect(await feed.history()).toBeNull()
    leave()
  })
})

describe("GET /page/live", () => {
  const page = { instance: "gw1", workers: 1, windowLines: 2_000 }
  const history = new SampleHistory().columns
  const gather = async () => ({
    snapshots: [{ report: SERVING, metrics: [] }],
    restarts: {},
    history,
  })

  test("sends the history, then the state", async () => {
    const { get } = sidecar({ page: { ...page, gather } })
    const reader = (await get("/page/live")).body?.getReader()
    let text = ""
    while (!text.includes("event: state")) {
      text += new TextDecoder().decode((await reader?.read())?.value)
    }
    await reader?.cancel()
    expect(text).toMatch(/^: the state of the instance\n\nevent: history\ndata: \{/)
  })

  test("ends when the supervisor does not answer, so that the browser asks again", async () => {
    const { get } = sidecar({ page: { ...page, gather: async () => null } })
    expect(await (await get("/page/live")).text()).toBe(": the state of the instance\n\n")
  })

  test("is refused to the 17th follower of a worker", async () => {
    const { get } = sidecar({ page: { ...page, gather } })
    const answers = []
    for (let n = 0; n < 17; n += 1) answers.push(await get("/page/live"))
    expect(answers.map(({ status }) => status).filter((status) => status !== 200)).toEqual([503])
    for (const { body } of answers) await body?.cancel()
  })
})
