/**
 * The fleet query: its results for devices on any worker, and when workers do not answer. This worker has real
 * connections; the test answers for the other workers and the locator, and controls the clock.
 */

import { describe, expect, test } from "bun:test"
import type { PublishResult } from "../../src/broker/broker.ts"
import { Counters } from "../../src/counters.ts"
import { Backpressure } from "../../src/device/backpressure.ts"
import type { CloseReason } from "../../src/device/close-reason.ts"
import { Connection, type ConnectionContext } from "../../src/device/connection.ts"
import { Connections } from "../../src/device/connections.ts"
import { UnfinishedLines } from "../../src/device/unfinished-lines.ts"
import type { Channel } from "../../src/fleet/channel.ts"
import type { DeviceView } from "../../src/fleet/device-view.ts"
import { FleetQuery, type FleetQueryFailure } from "../../src/fleet/fleet-query.ts"
import type { Located, Locator } from "../../src/fleet/locator.ts"
import { Members } from "../../src/fleet/members.ts"
import type { Answer, FleetContent } from "../../src/fleet/messages.ts"

const NOW_MS = 1_750_000_000_000
const ANSWER_TIMEOUT_MS = 1_000
const QUESTION_TIMEOUT_MS = 3_000
const MAX_ASKS = 100
const INCARNATION = "mb2k3f9zq7x2"
const SELF = { worker: "gw.0", incarnation: INCARNATION }
/** A connection of that worker. */
const at = (worker: string, counter = "1") => `${worker}.${INCARNATION}.${counter}`
const ALL = { prefix: "", after: "", limit: 100 }

type Said = { to: string; type: string; ask: number } & Record<string, unknown>

/** Keeps sent messages until the test settles them. */
class ScriptedChannel {
  open = true
  readonly said: Said[] = []
  readonly #unsettled: (((result: PublishResult) => void) | undefined)[] = []

  broadcast(content: FleetContent, settled?: (result: PublishResult) => void): void {
    this.said.push({ to: "all", ...content } as Said)
    this.#unsettled.push(settled)
  }

  tell(to: { worker: string; incarnation: string }, content: FleetContent, settled?: () => void) {
    this.said.push({ to: `${to.worker}.${to.incarnation}`, ...content } as Said)
    this.#unsettled.push(settled)
  }

  settle(result: PublishResult): void {
    this.#unsettled.shift()?.(result)
  }
}

class Subject {
  nowMs = NOW_MS
  steadyMs = 5_000
  readonly counters = new Counters()
  /** Look-ups that the fleet query has ended. */
  readonly forgotten: string[] = []
  readonly channel = new ScriptedChannel()
  readonly members = new Members()
  readonly located: { id: string; trusting: boolean; found: (place: Located) => void }[] = []
  readonly closed: (readonly [string, CloseReason])[] = []
  readonly connections = new Connections({
    handshakeTimeoutMs: 1,
    identifyTimeoutMs: 1,
    idleTimeoutMs: 1,
  })
  readonly fleetQuery: FleetQuery
  readonly #context: ConnectionContext = {
    limits: {
      maxLineBytes: 10,
      maxOutgoingBytes: 10,
      slowDeviceTimeoutMs: 1,
      windowCommands: 1,
      gapTimeoutMs: 1,
    },
    counters: this.counters,
    backpressure: new Backpressure(1, { hasRoom: true }, () => undefined),
    unfinishedLines: new UnfinishedLines({ maxPartialBytes: 1e9, lineTimeoutMs: 1e9 }),
    scratch: new Uint8Array(10),
    nowMs: () => this.nowMs,
    steadyMs: () => this.steadyMs,
    lines: { take: () => undefined },
    flushSoon: () => undefined,
    commandsWait: () => undefined,
    closed: (connection, reason) => {
      this.connections.leave(connection)
      this.closed.push([connection.id, reason])
    },
  }

  constructor(...workers: string[]) {
    for (const worker of workers) this.members.heard(worker, INCARNATION, NOW_MS)
    const locator = {
      locate: (id: string, trusting: boolean, found: (place: Located) => void) =>
        void this.located.push({ id, trusting, found }),
      forget: (id: string) => void this.forgotten.push(id),
    }
    this.fleetQuery = new FleetQuery(
      SELF,
      this.channel as unknown as Channel,
      this.members,
      this.connections,
      locator as unknown as Locator,
      { nowMs: () => this.nowMs, steadyMs: () => this.steadyMs, counters: this.counters },
    )
  }

  /** A device that is here. */
  hold(deviceId: string, counter: string = deviceId): Connection {
    const socket = {
      write: () => 0,
      shutdown: () => undefined,
      terminate: () => undefined,
      pause: () => undefined,
      resume: () => undefined,
    }
    const connection = new Connection(at("gw.0", counter), socket, this.#context)
    this.connections.add(connection)
    const peer = { remoteAddress: "192.0.2.1", tlsVersion: "TLSv1.3", fingerprint: null }
    connection.admit(deviceId, NOW_MS, peer)
    this.connections.enter(connection)
    return connection
  }

  /** Another worker answers with its devices. */
  listed(from: string, devices: string[], total = devices.length, ask = 0): void {
    const rows = devices.map((id) => viewOf(from, id))
    this.answer({ type: "listed", from, incarnation: INCARNATION, ask, devices: rows, total })
  }

  answer(answer: Answer): void {
    this.fleetQuery.answered(answer)
  }

  pass(ms: number): void {
    this.nowMs += ms
    this.steadyMs += ms
    this.fleetQuery.sweep()
  }
}

/** Another worker's view of a device that it holds. */
function viewOf(worker: string, deviceId: string): Record<string, unknown> & DeviceView {
  return {
    device_id: deviceId,
    connection_id: at(worker),
    epoch: NOW_MS,
    instance: "gw",
    worker,
    state: "open",
    remote_address: "192.0.2.2",
    tls_version: "TLSv1.2",
    lines_in: 1,
    lines_out: 2,
    last_activity: NOW_MS,
    reading_paused_by: [],
    outgoing_bytes: 0,
    reorder: { held: 0, gaps: 0 },
  }
}

/** Fills with what the promise resolves to. */
function watched<T>(promise: Promise<T>): T[] {
  const results: T[] = []
  void promise.then((result) => results.push(result))
  return results
}

/** Lets everything happen that needs no time. */
async function settled(): Promise<void> {
  for (let n = 0; n < 20; n += 1) await Promise.resolve()
}

function idsOf(list: { devices: readonly DeviceView[] } | FleetQueryFailure): string[] {
  return typeof list === "string" ? [list] : list.devices.map(({ device_id }) => device_id)
}

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
    subject.connections.add(new Connection("shaking", {} as never, { steadyMs: () => 0 } as never))
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

/** Both ask for one connection; `closes` is what is left of a device that is here. */
const ACTS = [
  ["describe", "described", []],
  ["kick", "kicked", [[at("gw.0", "lock:1"), "kicked"]]],
] as const

describe.each(ACTS)("to %s", (act, answer, closes) => {
  const elsewhere = viewOf("gw.1", "lock:1")
  const described = (device: Record<string, unknown> | null, ask = 0, from = "gw.1") =>
    ({ type: "described", from, incarnation: INCARNATION, ask, device, clock_ms: 70_000 }) as Answer
  /** The holder answers `describe`, and then the kick when the test makes one. */
  const answerAll = async (subject: Subject) => {
    subject.answer(described(elsewhere))
    await settled()
    if (act === "kick") {
      subject.answer({
        type: "kicked",
        from: "gw.1",
        incarnation: INCARNATION,
        ask: 1,
        device: elsewhere,
      })
    }
  }

  test.each([at("gw.0", "lock:1"), "lock:1"])(
    "%s, which is here, asks no other worker",
    async (id) => {
      const subject = new Subject("gw.1")
      subject.hold("lock:1")
      expect(await subject.fleetQuery[act](id)).toMatchObject({
        device_id: "lock:1",
        state: "open",
      })
      expect(subject.closed).toEqual([...closes])
      expect([subject.channel.said, subject.located]).toEqual([[], []])
    },
  )

  test("a closed connection of this worker: not found", async () => {
    const subject = new Subject("gw.1")
    expect(await subject.fleetQuery[act](at("gw.0", "gone"))).toBeNull()
    expect(subject.channel.said).toEqual([])
  })

  test("a connection elsewhere asks the process in its id", async () => {
    const subject = new Subject("gw.1", "gw.2")
    const results = watched(subject.fleetQuery[act](at("gw.1")))
    await settled()
    expect(subject.channel.said).toEqual([
      { to: `gw.1.${INCARNATION}`, type: "describe", ask: 0, connection: at("gw.1") },
    ])
    subject.channel.settle("confirmed")
    await settled()
    expect(results).toEqual([])
    await answerAll(subject)
    await settled()
    expect(results as unknown[]).toEqual([elsewhere])
  })

  test("a connection that has closed elsewhere: not found", async () => {
    const subject = new Subject("gw.1")
    const result = subject.fleetQuery[act](at("gw.1"))
    subject.answer(described(null))
    expect(await result).toBeNull()
    expect(subject.channel.said.length).toBe(1)
  })

  test("a connection of a process that is gone: not found", async () => {
    const subject = new Subject()
    const result = subject.fleetQuery[act](at("gw.9"))
    subject.channel.settle("returned")
    expect(await result).toBeNull()
  })

  test("a connection elsewhere is not answered by another worker", async () => {
    const subject = new Subject("gw.1", "gw.2")
    const results = watched(subject.fleetQuery[act](at("gw.1")))
    subject.answer(described(elsewhere, 0, "gw.2"))
    await settled()
    expect(results).toEqual([])
  })

  test("a connection elsewhere times out when that worker is silent", async () => {
    const subject = new Subject("gw.1")
    const results = watched(subject.fleetQuery[act](at("gw.1")))
    subject.pass(ANSWER_TIMEOUT_MS - 1)
    await settled()
    expect(results).toEqual([])
    subject.pass(1)
    await settled()
    expect(results).toEqual(["timeout"])
    expect(subject.members.answers({ ...SELF, worker: "gw.1" })).toBe(false)
  })

  test.each([at("gw.1"), "lock:1"])("%s elsewhere fails without the broker", async (id) => {
    const subject = new Subject("gw.1")
    subject.channel.open = false
    expect(await subject.fleetQuery[act](id)).toBe("unreachable")
    expect([subject.channel.said, subject.located]).toEqual([[], []])
  })

  test("a connection elsewhere fails when the question was lost", async () => {
    const subject = new Subject("gw.1")
    const result = subject.fleetQuery[act](at("gw.1"))
    subject.channel.settle("cut")
    expect(await result).toBe("unreachable")
  })

  test("a device by its id asks the worker that was found", async () => {
    const subject = new Subject("gw.1")
    const result = subject.fleetQuery[act]("lock:1")
    expect(subject.located).toMatchObject([{ id: "lock:1", trusting: false }])
    subject.located[0]?.found({ kind: "worker", worker: "gw.1", connectionId: at("gw.1") })
    await settled()
    expect(subject.channel.said).toMatchObject([{ type: "describe", connection: at("gw.1") }])
    await answerAll(subject)
    expect((await result) as unknown).toEqual(elsewhere)
  })

  test("a device by its id that is nowhere: not found", async () => {
    const subject = new Subject("gw.1")
    const result = subject.fleetQuery[act]("lock:1")
    subject.located[0]?.found({ kind: "nowhere", detail: "" })
    expect(await result).toBeNull()
  })

  test("a device by its id that connected here during the look-up", async () => {
    const subject = new Subject("gw.1")
    const result = subject.fleetQuery[act]("lock:1")
    subject.hold("lock:1")
    subject.located[0]?.found({ kind: "nowhere", detail: "" })
    expect(await result).toMatchObject({ device_id: "lock:1" })
    expect(subject.closed).toEqual([...closes])
  })

  test.each([at("gw.1"), "lock:1"])("%s is refused beyond a hundred questions", async (id) => {
    const subject = new Subject("gw.1")
    for (let n = 0; n < MAX_ASKS; n += 1) void subject.fleetQuery.list(ALL)
    expect(await subject.fleetQuery[act](id)).toBe("busy")
  })

  test("a local connection needs no question, even when too many are open", async () => {
    const subject = new Subject("gw.1")
    subject.hold("lock:1")
    for (let n = 0; n < MAX_ASKS; n += 1) void subject.fleetQuery.list(ALL)
    expect(await subject.fleetQuery[act]("lock:1")).toMatchObject({ device_id: "lock:1" })
  })

  test("for another worker answers that process with the description", () => {
    const subject = new Subject("gw.1")
    subject.hold("lock:1")
    const sender = { from: "gw.1", incarnation: "mb2k3f9zaaaa" }
    subject.fleetQuery.asked({ type: act, ...sender, ask: 5, connection: at("gw.0", "lock:1") })
    expect(subject.channel.said).toMatchObject([
      { to: "gw.1.mb2k3f9zaaaa", type: answer, ask: 5, device: { device_id: "lock:1" } },
    ])
    expect(subject.closed).toEqual([...closes])
  })

  test("for another worker answers that the connection is not here", () => {
    const subject = new Subject("gw.1")
    const sender = { from: "gw.1", incarnation: INCARNATION }
    subject.fleetQuery.asked({ type: act, ...sender, ask: 5, connection: at("gw.0", "gone") })
    expect(subject.channel.said).toMatchObject([{ type: answer, ask: 5, device: null }])
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
