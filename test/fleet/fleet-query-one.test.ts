/** Descriptions and kicks of one device, here and on another worker. */

import { describe, expect, test } from "bun:test"
import type { Answer } from "../../src/fleet/messages.ts"
import {
  ALL,
  ANSWER_TIMEOUT_MS,
  at,
  INCARNATION,
  MAX_ASKS,
  SELF,
  Subject,
  settled,
  viewOf,
  watched,
} from "./fleet-query-harness.ts"

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
    expect(subject.located).toMatchObject([{ id: "lock:1", trusting: true }])
    subject.located[0]?.found({ kind: "worker", worker: "gw.1", connectionId: at("gw.1") })
    await settled()
    expect(subject.channel.said).toMatchObject([{ type: "describe", connection: at("gw.1") }])
    await answerAll(subject)
    expect((await result) as unknown).toEqual(elsewhere)
  })

  test("a device by its id is looked up at all workers when the hint was wrong", async () => {
    const subject = new Subject("gw.1", "gw.2")
    const result = subject.fleetQuery[act]("lock:1")
    subject.located[0]?.found({ kind: "worker", worker: "gw.1", connectionId: at("gw.1") })
    await settled()
    const answer = { type: "described", incarnation: INCARNATION, ask: 0, device: null } as const
    subject.fleetQuery.answered({ ...answer, from: "gw.1" })
    await settled()
    expect(subject.located).toMatchObject([{ trusting: true }, { id: "lock:1", trusting: false }])
    subject.located[1]?.found({ kind: "nowhere", detail: "" })
    expect(await result).toBeNull()
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
