/** What the fleet remembers of ended connections, asked on a scripted channel. */

import { describe, expect, test } from "bun:test"
import { Counters } from "../../src/counters.ts"
import { ConnectionHistory } from "../../src/device/connection-history.ts"
import { Refusals } from "../../src/device/refusals.ts"
import type { Channel } from "../../src/fleet/channel.ts"
import type { Answer } from "../../src/fleet/messages.ts"
import { RecordsQuery } from "../../src/fleet/records-query.ts"
import {
  ANSWER_TIMEOUT_MS,
  at,
  Subject as FleetSubject,
  INCARNATION,
  NOW_MS,
  SELF,
  settled,
  watched,
} from "./fleet-query-harness.ts"

class Subject extends FleetSubject {
  readonly refusals = new Refusals()
  readonly history = new ConnectionHistory()
  readonly unparsed = new Counters()
  readonly records = new RecordsQuery(SELF, this.channel as unknown as Channel, this.members, {
    refusals: this.refusals,
    history: this.history,
    connections: this.connections,
    steadyMs: () => this.steadyMs,
    counters: this.unparsed,
  })

  refuse(at: number, detail = "no certificate"): void {
    this.refusals.add({
      ...{ at, address: "192.0.2.1", reason: "not_identified", detail, deviceId: null },
    })
  }

  ended(deviceId: string, connectedAt: number): void {
    this.history.add({
      ...{ deviceId, connectionId: at("gw.0", String(connectedAt)), address: "192.0.2.1" },
      ...{ connectedAt, endedAt: connectedAt + 5, reason: "idle" },
    })
  }

  override answer(answer: Answer): void {
    this.records.answered(answer)
  }

  late(ms: number): void {
    this.steadyMs += ms
    this.records.sweep()
  }
}

const FROM = { from: "gw.1", incarnation: INCARNATION, ask: 0 }
const ROW = {
  ...{ at: 2, address: "192.0.2.2", reason: "denied", detail: "lock:1 is on the denylist" },
  ...{ device_id: "lock:1", worker: "gw.1" },
}

describe("refusals", () => {
  test("of a single worker are its own, the newest first", async () => {
    const subject = new Subject()
    for (const at of [1, 2, 3]) subject.refuse(at)
    const list = await subject.records.refusals(2)
    expect(list).toMatchObject({ answered: 1, workers: 1 })
    expect(typeof list === "string" ? [] : list.refusals.map(({ at }) => at)).toEqual([3, 2])
  })

  test("of the fleet are merged", async () => {
    const subject = new Subject("gw.1")
    for (const at of [1, 3]) subject.refuse(at)
    const results = watched(subject.records.refusals(2))
    expect(subject.channel.said).toEqual([{ to: "all", type: "refusals_list", ask: 0, limit: 2 }])
    subject.answer({ type: "refusals_listed", ...FROM, refusals: [ROW] })
    await settled()
    expect(results).toEqual([
      {
        refusals: [
          {
            ...{ at: 3, address: "192.0.2.1", reason: "not_identified", detail: "no certificate" },
            ...{ device_id: null, worker: "gw.0" },
          },
          ROW,
        ],
        answered: 2,
        workers: 2,
      },
    ])
  })

  test("of a worker that does not answer, or not validly, are missing, which the counts say", async () => {
    const subject = new Subject("gw.1", "gw.2")
    const results = watched(subject.records.refusals(10))
    subject.answer({ type: "refusals_listed", ...FROM, refusals: [ROW, { ...ROW, at: "2" }] })
    subject.late(ANSWER_TIMEOUT_MS)
    await settled()
    expect(results).toEqual([{ refusals: [ROW], answered: 1, workers: 3 }])
    expect(subject.unparsed.fleetMessagesUnknown).toBe(1)
  })

  test("are not listed while the broker is away, or when too many ask", async () => {
    const subject = new Subject("gw.1")
    subject.channel.open = false
    expect(await subject.records.refusals(10)).toBe("unreachable")
    subject.channel.open = true
    const asking = Array.from({ length: 9 }, () => watched(subject.records.refusals(10)))
    await settled()
    expect(asking.flat()).toEqual(["busy"])
  })

  test("are told to another worker", () => {
    const subject = new Subject()
    for (const at of [1, 2]) subject.refuse(at, "a\nb")
    subject.records.asked({ type: "refusals_list", ...FROM, limit: 1 })
    expect(subject.channel.said).toMatchObject([
      { to: `gw.1.${INCARNATION}`, type: "refusals_listed", ask: 0 },
    ])
    expect(subject.channel.said[0]?.["refusals"]).toMatchObject([
      { at: 2, detail: "a\\u000ab", worker: "gw.0" },
    ])
  })
})

describe("connections of a device", () => {
  test("are those that ended and the open one, the newest first", async () => {
    const subject = new Subject()
    subject.ended("lock:1", 10)
    subject.ended("lock:1", 20)
    subject.ended("lock:2", 30)
    const connection = subject.hold("lock:1", "9")
    const list = await subject.records.connections("lock:1")
    const about = { remote_address: "192.0.2.1", instance: "gw", worker: "gw.0" }
    expect(list).toEqual({
      connections: [
        {
          ...{ connection_id: connection.id, connected_at: NOW_MS },
          ...{ disconnected_at: null, reason: null, ...about },
        },
        {
          ...{ connection_id: at("gw.0", "20"), connected_at: 20 },
          ...{ disconnected_at: 25, reason: "idle", ...about },
        },
        {
          ...{ connection_id: at("gw.0", "10"), connected_at: 10 },
          ...{ disconnected_at: 15, reason: "idle", ...about },
        },
      ],
      answered: 1,
      workers: 1,
    })
  })

  test("are merged over the fleet, at most 20", async () => {
    const subject = new Subject("gw.1")
    for (let n = 0; n < 20; n += 1) subject.ended("lock:1", 10 * n)
    const results = watched(subject.records.connections("lock:1"))
    const other = {
      ...{ connection_id: at("gw.1"), connected_at: 55, disconnected_at: 57, reason: "taken_over" },
      ...{ remote_address: "192.0.2.2", instance: "gw", worker: "gw.1" },
    }
    subject.answer({ type: "connections_listed", ...FROM, connections: [other] })
    await settled()
    const [list] = results
    if (list === undefined || typeof list === "string") throw new Error("no list")
    expect(list.connections.length).toBe(20)
    expect(list.connections.map(({ connected_at }) => connected_at).slice(13, 16)).toEqual([
      60, 55, 50,
    ])
  })

  test("are not found by the id of a connection of a named device", async () => {
    const subject = new Subject()
    const { id } = subject.hold("lock:1", "9")
    expect(await subject.records.connections(id)).toMatchObject({ connections: [] })
  })
})
