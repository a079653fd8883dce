/** Lists of the fleet, invalid answers, and callers that have gone. */

import { describe, expect, test } from "bun:test"
import type { PublishResult } from "../../src/broker/broker.ts"
import { Connection } from "../../src/device/connection.ts"
import type { DeviceFilter } from "../../src/fleet/device-filter.ts"
import type { Located } from "../../src/fleet/locator.ts"
import type { Answer } from "../../src/fleet/messages.ts"
import {
  ALL,
  ANSWER_TIMEOUT_MS,
  at,
  INCARNATION,
  idsOf,
  MAX_ASKS,
  NOW_MS,
  QUESTION_TIMEOUT_MS,
  SELF,
  Subject,
  settled,
  viewOf,
  watched,
} from "./fleet-query-harness.ts"

describe("a list", () => {
  test("of a single worker has its own devices", async () => {
    const subject = new Subject()
    subject.hold("lock:1")
    expect(await subject.fleetQuery.list(ALL)).toEqual({
      devices: [
        {
          device_id: "lock:1",
          connection_id: at("gw.0", "lock:1"),
          epoch: NOW_MS,
          instance: "gw",
          worker: "gw.0",
          state: "open",
          remote_address: "192.0.2.1",
          tls_version: "TLSv1.3",
          lines_in: 0,
          lines_out: 0,
          last_activity: NOW_MS,
          reading_paused_by: [],
          outgoing_bytes: 0,
          reorder: { held: 0, gaps: 0 },
        },
      ],
      total: 1,
      answered: 1,
      workers: 1,
    })
    expect(subject.channel.said).toEqual([])
  })

  test("contains the counts of a device and why it is not read", async () => {
    const subject = new Subject()
    const connection = subject.hold("lock:1")
    connection.received(Buffer.from("a\nb\n"))
    connection.pause("window")
    connection.pause("drain")
    const list = await subject.fleetQuery.list(ALL)
    expect(list).toMatchObject({
      devices: [{ lines_in: 2, reading_paused_by: ["window", "drain"] }],
    })
  })

  test("asks all workers the same, and waits for all", async () => {
    const subject = new Subject("gw.1", "gw.2")
    const lists = watched(subject.fleetQuery.list({ prefix: "a", after: "b", limit: 7 }))
    expect(subject.channel.said).toEqual([
      { to: "all", type: "list", ask: 0, prefix: "a", after: "b", limit: 7 },
    ])
    subject.listed("gw.1", [])
    await settled()
    expect(lists).toEqual([])
    subject.listed("gw.2", [])
    await settled()
    expect(lists).toMatchObject([{ answered: 3, workers: 3 }])
  })

  test("merges the devices of all workers, sorted by device id", async () => {
    const subject = new Subject("gw.1", "gw.2")
    for (const id of ["c", "a", "B"]) subject.hold(id)
    const list = subject.fleetQuery.list(ALL)
    subject.listed("gw.2", ["b", "e"])
    subject.listed("gw.1", ["d"])
    expect(idsOf(await list)).toEqual(["B", "a", "b", "c", "d", "e"])
    expect(await list).toMatchObject({ total: 6 })
  })

  test("contains a device twice while two workers hold it, sorted by connection id", async () => {
    const subject = new Subject("gw.1", "gw.2")
    const list = subject.fleetQuery.list(ALL)
    subject.listed("gw.2", ["lock:1"])
    subject.listed("gw.1", ["lock:1"])
    expect(await list).toMatchObject({ devices: [{ worker: "gw.1" }, { worker: "gw.2" }] })
  })

  test("is cut at its limit, but its total is not", async () => {
    const subject = new Subject("gw.1")
    for (const id of ["a", "c", "e"]) subject.hold(id)
    const list = subject.fleetQuery.list({ ...ALL, limit: 2 })
    subject.listed("gw.1", ["b", "d"], 9)
    expect(idsOf(await list)).toEqual(["a", "b"])
    expect(await list).toMatchObject({ total: 12 })
  })

  test("has only devices whose ids start with the prefix", async () => {
    const subject = new Subject()
    for (const id of ["lock", "lock:1", "clock:1", "Lock:1", "lo"]) subject.hold(id)
    const list = await subject.fleetQuery.list({ ...ALL, prefix: "lock" })
    expect(idsOf(list)).toEqual(["lock", "lock:1"])
    expect(list).toMatchObject({ total: 2 })
  })

  test("has only devices that match its filter", async () => {
    const subject = new Subject()
    const [slow, fast] = ["rate", "window"].map((name) => subject.hold(name))
    slow?.pause("rate")
    fast?.pause("window")
    subject.pass(60_000)
    subject.hold("talks")
    const found = async (filter: DeviceFilter) =>
      idsOf(await subject.fleetQuery.list({ ...ALL, filter }))
    expect(await found({ paused_by: "rate" })).toEqual(["rate"])
    expect(await found({ paused_by: "any" })).toEqual(["rate", "window"])
    expect(await found({ silent_ms: 60_000 })).toEqual(["rate", "window"])
    expect(await found({ silent_ms: 60_001 })).toEqual([])
    expect(await found({ address: "192.0.2." })).toHaveLength(3)
    expect(await found({ address: "192.0.2.1", paused_by: "window" })).toEqual(["window"])
    expect(await found({ address: "10." })).toEqual([])
    expect(await subject.fleetQuery.list({ ...ALL, filter: { address: "10." } })).toMatchObject({
      total: 0,
    })
  })

  test("asks other workers with its filter, also again", async () => {
    const subject = new Subject("gw.1")
    const filter = { paused_by: "any" } as const
    void subject.fleetQuery.list({ ...ALL, limit: 2, filter })
    subject.listed("gw.1", ["b"], 9)
    await settled()
    expect(subject.channel.said).toMatchObject([
      { to: "all", type: "list", filter },
      { to: `gw.1.${INCARNATION}`, type: "list", filter },
    ])
  })

  test("continues after a device, without it", async () => {
    const subject = new Subject()
    for (const id of ["a", "b", "ba", "c"]) subject.hold(id)
    const list = await subject.fleetQuery.list({ ...ALL, after: "b" })
    expect(idsOf(list)).toEqual(["ba", "c"])
    expect(list).toMatchObject({ total: 2 })
  })

  test("is complete when it is read page by page", async () => {
    const subject = new Subject()
    const ids = Array.from({ length: 10 }, (_, n) => `d${n}`)
    for (const id of ids) subject.hold(id)
    const read: string[] = []
    for (let page = 0; page < 4; page += 1) {
      const after = read.at(-1) ?? ""
      read.push(...idsOf(await subject.fleetQuery.list({ ...ALL, after, limit: 3 })))
    }
    expect(read).toEqual(ids)
  })

  test("includes devices without a name, but no closing or unadmitted ones", async () => {
    const subject = new Subject()
    subject.hold(at("gw.0", "x"), "x")
    subject.hold("closing").close("idle")
    subject.connections.add(
      new Connection("shaking", {} as never, "192.0.2.1", { steadyMs: () => 0 } as never),
    )
    expect(idsOf(await subject.fleetQuery.list(ALL))).toEqual([at("gw.0", "x")])
  })

  test("counts each worker once, even if it answers twice", async () => {
    const subject = new Subject("gw.1", "gw.2")
    const lists = watched(subject.fleetQuery.list(ALL))
    subject.listed("gw.1", ["a"])
    subject.listed("gw.1", ["b"])
    subject.listed("gw.7", ["c"])
    await settled()
    expect(lists).toEqual([])
    subject.listed("gw.2", [])
    await settled()
    expect(lists.map(idsOf)).toEqual([["a"]])
    expect(lists).toMatchObject([{ answered: 3, workers: 3 }])
  })

  test("omits silent workers, and shows that it is incomplete", async () => {
    const subject = new Subject("gw.1", "gw.2")
    subject.hold("a")
    const lists = watched(subject.fleetQuery.list(ALL))
    subject.listed("gw.1", ["b"])
    subject.pass(ANSWER_TIMEOUT_MS - 1)
    await settled()
    expect(lists).toEqual([])
    subject.pass(1)
    await settled()
    expect(lists.map(idsOf)).toEqual([["a", "b"]])
    expect(lists).toMatchObject([{ answered: 2, workers: 3 }])
    const answers = (worker: string) => subject.members.answers({ ...SELF, worker })
    expect([answers("gw.1"), answers("gw.2")]).toEqual([true, false])
  })

  test("fails without the broker, because a part would look complete", async () => {
    const subject = new Subject("gw.1")
    subject.hold("a")
    subject.channel.open = false
    expect(await subject.fleetQuery.list(ALL)).toBe("unreachable")
    expect(subject.channel.said).toEqual([])
  })

  test.each<PublishResult>(["cut", "nacked", "unencodable"])(
    "fails when the question was not sent: %s",
    async (result) => {
      const subject = new Subject("gw.1")
      const list = subject.fleetQuery.list(ALL)
      subject.channel.settle(result)
      expect(await list).toBe("unreachable")
    },
  )

  test("waits for answers when the question was sent", async () => {
    const subject = new Subject("gw.1")
    const lists = watched(subject.fleetQuery.list(ALL))
    subject.channel.settle("confirmed")
    await settled()
    expect(lists).toEqual([])
  })

  test("does not wait longer when the clock is set back", async () => {
    const subject = new Subject("gw.1")
    const lists = watched(subject.fleetQuery.list(ALL))
    subject.nowMs -= 3_600_000
    subject.pass(ANSWER_TIMEOUT_MS)
    await settled()
    expect(lists).toMatchObject([{ answered: 1 }])
  })

  test("does not mix with another list that is asked for at the same time", async () => {
    const subject = new Subject("gw.1")
    const [first, second] = [subject.fleetQuery.list(ALL), subject.fleetQuery.list(ALL)]
    subject.listed("gw.1", ["b"], 1, 1)
    subject.listed("gw.1", ["a"], 1, 0)
    expect([idsOf(await first), idsOf(await second)]).toEqual([["a"], ["b"]])
  })

  test("is refused beyond a hundred questions, until one has ended", async () => {
    const subject = new Subject("gw.1")
    const lists = Array.from({ length: MAX_ASKS }, () => watched(subject.fleetQuery.list(ALL)))
    expect(await subject.fleetQuery.list(ALL)).toBe("busy")
    expect(subject.channel.said.length).toBe(MAX_ASKS)
    subject.listed("gw.1", [], 0, 0)
    await settled()
    expect(lists.filter((each) => each.length > 0).length).toBe(1)
    const next = watched(subject.fleetQuery.list(ALL))
    subject.listed("gw.1", ["a"], 1, MAX_ASKS)
    await settled()
    expect(next.map(idsOf)).toEqual([["a"]])
  })
})

test("a list for another worker has the matching devices, cut at its limit", () => {
  const subject = new Subject("gw.1")
  for (const id of ["lock:3", "lock:1", "bell", "lock:2"]) subject.hold(id)
  subject.fleetQuery.asked({
    type: "list",
    from: "gw.1",
    incarnation: INCARNATION,
    ask: 5,
    prefix: "lock",
    after: "lock:1",
    limit: 1,
  })
  expect(subject.channel.said).toMatchObject([
    {
      to: `gw.1.${INCARNATION}`,
      type: "listed",
      ask: 5,
      devices: [{ device_id: "lock:2" }],
      total: 2,
    },
  ])
})

describe("an invalid row in another worker's answer", () => {
  const unreadable = (changes: Record<string, unknown>) => ({ ...viewOf("gw.1", "b"), ...changes })

  test.each<[string, Record<string, unknown>]>([
    ["a number for an id", unreadable({ device_id: 7 })],
    ["an id that is too long", unreadable({ connection_id: "x".repeat(129) })],
    ["text for a count", unreadable({ lines_in: "7" })],
    ["a count below zero", unreadable({ outgoing_bytes: -1 })],
    ["no buffer", unreadable({ reorder: null })],
    ["nothing", {}],
  ])("is omitted from a list and counted, and the list is incomplete: %s", async (_, row) => {
    const subject = new Subject("gw.1", "gw.2")
    const list = subject.fleetQuery.list(ALL)
    const devices = [viewOf("gw.1", "a"), row, viewOf("gw.1", "c")]
    subject.answer({
      type: "listed",
      from: "gw.1",
      incarnation: INCARNATION,
      ask: 0,
      devices,
      total: 3,
    })
    subject.listed("gw.2", ["d"])
    expect(idsOf(await list)).toEqual(["a", "c", "d"])
    expect(await list).toMatchObject({ answered: 2, workers: 3 })
    expect(subject.counters.fleetMessagesUnknown).toBe(1)
  })

  test("is no answer for a single device, and no connection is closed", async () => {
    for (const act of ["describe", "kick"] as const) {
      const subject = new Subject("gw.1")
      const result = subject.fleetQuery[act](at("gw.1"))
      const device = unreadable({ epoch: "yesterday" })
      subject.answer({ type: "described", from: "gw.1", incarnation: INCARNATION, ask: 0, device })
      expect(await result).toBe("timeout")
      expect(subject.counters.fleetMessagesUnknown).toBe(1)
      expect(subject.channel.said.map(({ type }) => type)).toEqual(["describe"])
    }
  })

  test("does not include fields that a later version adds", async () => {
    const subject = new Subject("gw.1")
    const result = subject.fleetQuery.describe(at("gw.1"))
    const device = unreadable({ reading_paused_by: ["rate"], state: "parked", more: {} })
    subject.answer({ type: "described", from: "gw.1", incarnation: INCARNATION, ask: 0, device })
    expect(await result).toMatchObject({ reading_paused_by: ["rate"], state: "parked" })
  })
})

describe("a request whose caller has gone", () => {
  const found: Located = { kind: "worker", worker: "gw.1", connectionId: at("gw.1") }
  const described: Answer = {
    type: "described",
    from: "gw.1",
    incarnation: INCARNATION,
    ask: 0,
    device: viewOf("gw.1", "lock:1"),
    clock_ms: 70_000,
  }

  test.each(["describe", "kick"] as const)(
    "%s ends in time when the locator does not answer, and a later result is not used",
    async (act) => {
      const subject = new Subject("gw.1")
      const results = watched(subject.fleetQuery[act]("lock:1"))
      subject.pass(QUESTION_TIMEOUT_MS - 1)
      await settled()
      expect(results).toEqual([])
      subject.pass(1)
      await settled()
      expect(results).toEqual(["timeout"])
      expect(subject.forgotten).toEqual(["lock:1"])
      subject.located[0]?.found(found)
      await settled()
      expect(subject.channel.said).toEqual([])
    },
  )

  test("a look-up ends when the broker connection is lost, not when it returns", async () => {
    const subject = new Subject("gw.1")
    const results = watched(subject.fleetQuery.kick("lock:1"))
    subject.channel.open = false
    subject.pass(1)
    await settled()
    expect(results).toEqual(["unreachable"])
    subject.channel.open = true
    subject.located[0]?.found(found)
    await settled()
    expect(subject.channel.said).toEqual([])
  })

  test("a device that has connected here in the meantime is not closed", async () => {
    const subject = new Subject("gw.1")
    const results = watched(subject.fleetQuery.kick("lock:1"))
    subject.steadyMs += QUESTION_TIMEOUT_MS
    subject.hold("lock:1")
    subject.located[0]?.found({ kind: "nowhere", detail: "" })
    await settled()
    expect([results, subject.closed]).toEqual([["timeout"], []])
  })

  test("when the caller closes its connection, the look-up ends and does not count any more", async () => {
    const subject = new Subject("gw.1")
    const callers = Array.from({ length: MAX_ASKS }, () => new AbortController())
    const kicks = callers.map(({ signal }, n) =>
      watched(subject.fleetQuery.kick(`lock:${n}`, signal)),
    )
    expect(await subject.fleetQuery.kick("one more")).toBe("busy")
    for (const caller of callers) caller.abort()
    await settled()
    expect(kicks).toEqual(callers.map(() => ["timeout"]))
    for (const { found: tell } of subject.located) tell(found)
    await settled()
    expect(subject.channel.said).toEqual([])
    void subject.fleetQuery.kick("one more")
    expect(subject.located.length).toBe(MAX_ASKS + 1)
  })

  test("when the caller closes its connection, its question does not count any more", async () => {
    const subject = new Subject("gw.1")
    const caller = new AbortController()
    const asked = [
      subject.fleetQuery.list(ALL, caller.signal),
      subject.fleetQuery.describe(at("gw.1"), caller.signal),
    ]
    for (let n = asked.length; n < MAX_ASKS; n += 1) void subject.fleetQuery.list(ALL)
    expect(await subject.fleetQuery.list(ALL)).toBe("busy")
    caller.abort()
    expect(await Promise.all(asked)).toEqual(["timeout", "timeout"])
    expect(watched(subject.fleetQuery.list(ALL))).toEqual([])
    expect(subject.channel.said.length).toBe(MAX_ASKS + 1)
    expect(subject.members.answers({ ...SELF, worker: "gw.1" })).toBe(true)
  })

  test("sends nothing when the caller has gone before", async () => {
    const subject = new Subject("gw.1")
    subject.hold("lock:1")
    expect(await subject.fleetQuery.kick("lock:1", AbortSignal.abort())).toBe("timeout")
    expect([subject.closed, subject.channel.said]).toEqual([[], []])
  })

  test("closes nothing when the caller goes between the holder's first answer and the kick", async () => {
    const subject = new Subject("gw.1")
    const caller = new AbortController()
    const result = subject.fleetQuery.kick(at("gw.1"), caller.signal)
    subject.answer(described)
    caller.abort()
    expect(await result).toBe("timeout")
    expect(subject.channel.said.map(({ type }) => type)).toEqual(["describe"])
  })

  test("a kick is valid by the holder's clock, only as long as its caller waits", async () => {
    const subject = new Subject("gw.1")
    void subject.fleetQuery.kick(at("gw.1"))
    subject.pass(900)
    subject.answer(described)
    await settled()
    const untilMs = 70_000 + ANSWER_TIMEOUT_MS
    expect(subject.channel.said[1]).toMatchObject({ type: "kick", until_ms: untilMs })

    const late = new Subject("gw.1")
    void late.fleetQuery.kick("lock:1")
    late.pass(QUESTION_TIMEOUT_MS - 300)
    late.located[0]?.found(found)
    await settled()
    late.pass(200)
    late.answer(described)
    await settled()
    expect(late.channel.said[1]).toMatchObject({ type: "kick", until_ms: 70_100 })
  })

  test("a kick to a holder of an earlier version, which sends no clock, has no deadline", async () => {
    const subject = new Subject("gw.1")
    void subject.fleetQuery.kick(at("gw.1"))
    const { clock_ms: _, ...earlier } = described
    subject.answer(earlier as Answer)
    await settled()
    expect(subject.channel.said[1]).toEqual({
      to: `gw.1.${INCARNATION}`,
      type: "kick",
      ask: 1,
      connection: at("gw.1"),
    })
  })

  test("the holder sends its clock, and refuses a kick that is too late", () => {
    const subject = new Subject("gw.1")
    subject.hold("lock:1")
    const sender = { from: "gw.1", incarnation: INCARNATION, connection: at("gw.0", "lock:1") }
    subject.fleetQuery.asked({ type: "describe", ...sender, ask: 1 })
    expect(subject.channel.said).toMatchObject([{ type: "described", clock_ms: subject.steadyMs }])
    // The holder's wall clock is an hour ahead: clocks of other machines must not matter.
    subject.nowMs += 3_600_000
    subject.fleetQuery.asked({ type: "kick", ...sender, ask: 2, until_ms: subject.steadyMs })
    expect(subject.closed).toEqual([])
    expect(subject.channel.said[1]).toMatchObject({ type: "kicked", device: null, overdue: true })
    subject.fleetQuery.asked({ type: "kick", ...sender, ask: 3, until_ms: subject.steadyMs + 1 })
    expect(subject.closed).toEqual([[at("gw.0", "lock:1"), "kicked"]])
  })

  test("a kick that the holder refuses as late is a time-out", async () => {
    const subject = new Subject("gw.1")
    const result = subject.fleetQuery.kick(at("gw.1"))
    subject.answer(described)
    await settled()
    const kicked = { type: "kicked", from: "gw.1", incarnation: INCARNATION, ask: 1 } as const
    subject.answer({ ...kicked, device: null, overdue: true })
    expect(await result).toBe("timeout")
  })
})
