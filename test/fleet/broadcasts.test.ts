/**
 * Broadcasts over a simulated fleet: the real code of several workers on a simulated broker, in
 * which the test kills, drains and cuts.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import type { MessageProperties } from "../../src/broker/broker.ts"
import { BROADCASTS } from "../../src/broker/topology.ts"
import type {
  BroadcastCounts,
  BroadcastRequest,
  BroadcastResult,
} from "../../src/fleet/broadcast-request.ts"
import { check } from "../support/property.ts"
import { REPLIES, type SeenConnection, SimulatedFleet } from "../support/simulated-fleet.ts"
import { QUEUES, type SimulatedWorkerLimits } from "../support/simulated-worker.ts"

const MAX_BROADCASTS = 16
const FAR_LONGER_THAN_IT_TAKES_MS = 600_000
const ALL = { kind: "all" } as const

class Subject {
  readonly fleet: SimulatedFleet
  readonly devices: SeenConnection[] = []
  /** The process that last took a message of the queue. */
  #taker = ""

  /** @param held the number of devices of each worker. */
  constructor(held: readonly number[], limits: Partial<SimulatedWorkerLimits> = {}) {
    this.fleet = new SimulatedFleet({
      workers: held.length,
      limits,
      trace: (what) => {
        this.#taker = / comes from owsla\.broadcasts to (.*)#/.exec(what)?.[1] ?? this.#taker
      },
    })
    // Until all know each other.
    this.fleet.pass(3_000)
    for (const [slot, count] of held.entries()) {
      for (let n = 0; n < count; n += 1) this.connect(slot, `lock:${slot}:${n}`)
    }
    this.fleet.pass(500)
  }

  connect(slot: number, name: string): SeenConnection {
    const seen = this.fleet.connect(slot, name)
    if (seen === null) throw new Error(`worker ${slot} takes no device`)
    this.devices.push(seen)
    return seen
  }

  /** By HTTP, to this worker. */
  send(slot: number, request: Partial<BroadcastRequest> = {}, withinMs = 5_000): BroadcastResult[] {
    const results: BroadcastResult[] = []
    const worker = this.worker(slot)
    const { broadcasts } = worker.worker.fleet
    const whole = { audience: ALL, perS: 1_000, supersedeKey: null, ...request }
    const line = request.line ?? Buffer.from("reboot")
    worker.process.run(() => {
      void broadcasts.send({ ...whole, line }, withinMs).then((result) => results.push(result))
    })
    return results
  }

  /** By the exchange, as from a back-end. */
  publish(headers: Record<string, string | number | string[]>, body = "reboot"): void {
    const properties: MessageProperties = {
      headers: { ...headers, traceparent: "00-1-2-00" },
      ...{ replyTo: REPLIES, correlationId: "c1" },
    }
    this.fleet.broker.publish(BROADCASTS, body, properties)
  }

  receipts(): Record<string, unknown>[] {
    return this.fleet.broker
      .waiting(REPLIES)
      .map(({ body }) => JSON.parse(Buffer.from(body).toString()))
  }

  worker(slot: number) {
    const worker = this.fleet.workers[slot]
    if (worker === undefined) throw new Error(`no worker ${slot}`)
    return worker
  }

  /** The slot of the worker that coordinates the message of the queue. */
  coordinator(): number {
    return this.fleet.workers.findIndex(({ process }) => this.#taker.startsWith(process.name))
  }

  lines(): string[][] {
    return this.devices.map(({ device }) => device.socket.lines)
  }

  get written(): number {
    return this.lines().flat().length
  }
}

const counts = (workers: number, matched: number, outcomes: object, unfinished = 0) =>
  ({ kind: "counts", workers, matched, outcomes, unfinished }) as BroadcastCounts

describe("a broadcast by HTTP", () => {
  test("is written once to each device of all workers", () => {
    const subject = new Subject([3, 5, 0])
    const results = subject.send(2)
    subject.fleet.pass(1_000)
    expect(results).toEqual([counts(3, 8, { written: 8 })])
    expect(subject.lines()).toEqual(subject.devices.map(() => ["reboot"]))
    const settled = subject.fleet.workers.map((each) => each.counters.commandsSettled.written)
    expect(settled).toEqual([3, 5, 0])
    expect(subject.worker(2).counters.broadcasts).toBe(1)
  })

  test("is written to the devices with the prefix, or with the ids, and to no others", () => {
    const subject = new Subject([2, 2])
    const results = subject.send(0, { audience: { kind: "prefix", prefix: "lock:1" } })
    subject.fleet.pass(1_000)
    expect(results).toEqual([counts(2, 2, { written: 2 })])
    expect(subject.lines()).toEqual([[], [], ["reboot"], ["reboot"]])
    const id = subject.devices[3]?.id ?? ""
    const ids = ["lock:0:1", "lock:1:1", "nobody", id, "lock:0:1"]
    const listed = subject.send(0, { audience: { kind: "ids", ids }, line: Buffer.from("b") })
    subject.fleet.pass(1_000)
    expect(listed).toEqual([counts(2, 2, { written: 2 })])
    expect(subject.lines()).toEqual([[], ["b"], ["reboot"], ["reboot", "b"]])
  })

  test("to nobody is answered at once", () => {
    const subject = new Subject([0, 1])
    const results = subject.send(0, { audience: { kind: "prefix", prefix: "bell" } })
    subject.fleet.settle()
    expect(results).toEqual([counts(2, 0, { written: 0 })])
  })

  test.each([
    ["all on one worker", [40, 0]],
    ["on both", [10, 30]],
  ])("keeps the rate of the fleet, with devices %s", (_, held) => {
    const subject = new Subject(held)
    const startedAtMs = subject.fleet.nowMs
    const results = subject.send(1, { perS: 20 })
    while (results.length === 0) {
      subject.fleet.pass(50)
      const elapsedS = (subject.fleet.nowMs - startedAtMs) / 1_000
      expect(subject.written).toBeLessThanOrEqual(elapsedS * 20)
      // Up to a tick late, and one line a worker.
      expect(subject.written).toBeGreaterThanOrEqual(Math.floor((elapsedS - 0.1) * 20) - 2)
    }
    expect(results).toEqual([counts(2, 40, { written: 40 })])
  })

  test("that takes longer is answered with what is unfinished, and goes on", () => {
    const subject = new Subject([10, 10])
    const results = subject.send(0, { perS: 2 }, 5_000)
    subject.fleet.pass(5_500)
    const [result] = results as BroadcastCounts[]
    expect(result).toMatchObject({ workers: 2, matched: 20 })
    const { unfinished = 0, outcomes } = result ?? {}
    expect(unfinished + (outcomes?.["written"] ?? 0)).toBe(20)
    expect(unfinished).toBeGreaterThanOrEqual(10)
    subject.fleet.pass(6_000)
    expect(subject.lines()).toEqual(subject.devices.map(() => ["reboot"]))
  })

  test("counts devices that went away meanwhile, and those that take no bytes", () => {
    const subject = new Subject([3], { maxOutgoingBytes: 10, slowDeviceTimeoutMs: 3_000 })
    const [first, second] = subject.devices
    if (first === undefined || second === undefined) throw new Error("no devices")
    first.device.socket.room = 0
    // Two lines do not fit.
    const before = subject.send(0, { audience: { kind: "ids", ids: ["lock:0:0"] } })
    subject.fleet.pass(500)
    const results = subject.send(0, { perS: 1 })
    subject.fleet.pass(1_500)
    subject.fleet.hangUp(second)
    subject.fleet.pass(3_000)
    expect(results).toEqual([counts(1, 3, { written: 1, closed: 1, slow_device: 1 })])
    expect(before).toEqual([counts(1, 1, { written: 0, slow_device: 1 })])
  })

  test("supersedes those with its key that wait for a device that does not read", () => {
    const subject = new Subject([1, 1])
    const [slow] = subject.devices
    if (slow === undefined) throw new Error("no device")
    slow.device.socket.room = 0
    const lines = ["first", "second", "third"]
    const results = lines.map((line) => {
      const sent = subject.send(1, { line: Buffer.from(line), supersedeKey: "state" })
      subject.fleet.pass(300)
      return sent
    })
    subject.fleet.readAll(slow)
    subject.fleet.pass(300)
    // The first one was offered to the socket already.
    expect(slow.device.socket.lines).toEqual(["first", "third"])
    expect(subject.devices[1]?.device.socket.lines).toEqual(lines)
    expect(results.flat()).toEqual([
      counts(2, 2, { written: 2 }),
      counts(2, 2, { written: 1, superseded: 1 }),
      counts(2, 2, { written: 2 }),
    ])
  })

  test("of 17 at a time is refused, by whatever worker, and one more goes when one has ended", () => {
    const subject = new Subject([4, 4])
    const slow = Array.from({ length: MAX_BROADCASTS }, (_, n) => subject.send(n % 2, { perS: 1 }))
    subject.fleet.pass(300)
    for (const slot of [0, 1]) {
      const results = subject.send(slot)
      subject.fleet.settle()
      expect(results).toEqual([{ kind: "busy" }])
    }
    subject.fleet.pass(9_000)
    expect(slow.flat().map(({ kind }) => kind)).toEqual(slow.map(() => "counts"))
    const results = subject.send(0)
    subject.fleet.pass(1_000)
    expect(results).toEqual([counts(2, 8, { written: 8 })])
  })

  test("at two workers at once that leaves no room for both writes nothing of either twice", () => {
    const subject = new Subject([1, 1])
    for (let n = 1; n < MAX_BROADCASTS; n += 1) subject.send(0, { perS: 1 })
    subject.fleet.pass(300)
    const one = subject.send(0, { line: Buffer.from("one") })
    const other = subject.send(1, { line: Buffer.from("other") })
    subject.fleet.pass(10_000)
    const kinds = [...one, ...other].map(({ kind }) => kind)
    expect(kinds).toContain("busy")
    for (const lines of subject.lines()) {
      const last = lines.filter((line) => line !== "reboot")
      expect(last).toHaveLength(kinds.filter((kind) => kind === "counts").length)
    }
  })

  test("that would take hours is refused", () => {
    const subject = new Subject([1_201])
    const results = subject.send(0, { perS: 1 })
    subject.fleet.settle()
    expect(results).toEqual([{ kind: "invalid", detail: expect.stringContaining("1201 lines") }])
    subject.fleet.pass(3_000)
    expect(subject.written).toBe(0)
  })

  test("without the broker is refused, and writes nothing", () => {
    const subject = new Subject([1, 1])
    subject.fleet.cut(0, ["publishing"])
    const results = subject.send(0)
    expect(subject.written).toBe(0)
    subject.fleet.settle(/connects to publish/)
    expect(results).toEqual([{ kind: "unreachable" }])
  })

  test("goes on without its coordinator", () => {
    const subject = new Subject([2, 6])
    subject.send(0, { perS: 2 })
    subject.fleet.pass(1_100)
    subject.fleet.kill(0)
    subject.fleet.pass(5_000)
    expect(subject.lines().slice(2)).toEqual(Array.from({ length: 6 }, () => ["reboot"]))
  })

  test("counts the devices of a worker that dies as unfinished", () => {
    const subject = new Subject([4, 4])
    const results = subject.send(0, { perS: 4 }, 60_000)
    subject.fleet.pass(1_200)
    subject.fleet.kill(1)
    subject.fleet.pass(15_000)
    const [result] = results as BroadcastCounts[]
    expect(result).toMatchObject({ workers: 2, matched: 8 })
    expect((result?.outcomes["written"] ?? 0) + (result?.unfinished ?? 0)).toBe(8)
    expect(result?.unfinished).toBeGreaterThanOrEqual(2)
    expect(result?.outcomes["written"]).toBeGreaterThanOrEqual(4)
  })

  test("is counted completely when a last report was lost with a broker connection", () => {
    const subject = new Subject([2, 2])
    const results = subject.send(0, { perS: 2 }, 60_000)
    subject.fleet.pass(1_700)
    subject.fleet.cut(1, ["publishing"])
    subject.fleet.pass(1_000, /connects to publish/)
    expect([subject.written, results]).toEqual([4, []])
    subject.fleet.pass(3_000)
    expect(results).toEqual([counts(2, 4, { written: 4 })])
  })

  test("is counted completely when its coordinator was stopped for a while", () => {
    const subject = new Subject([2, 2])
    const results = subject.send(0, { perS: 2 }, 60_000)
    subject.fleet.pass(100)
    // The other worker writes and reports, and this one neither reads nor does anything.
    subject.fleet.pass(12_000, /^gw0\.0\.| to gw0\.0\./)
    expect([subject.written, results]).toEqual([2, []])
    subject.fleet.step(/^gw0\.0\..* sweeps/)
    subject.fleet.pass(3_000)
    expect(results).toEqual([counts(2, 4, { written: 4 })])
  })

  test.each([0, 1])("is ended by the drain of worker %d with what is unfinished", (slot) => {
    const subject = new Subject([4, 4], { drainTimeoutMs: 2_000 })
    const results = subject.send(0, { perS: 2 }, 60_000)
    subject.fleet.pass(1_100)
    subject.fleet.drain(slot)
    // As long as the other worker writes, and not until the stopped one is taken for dead.
    subject.fleet.pass(4_000)
    const [result] = results as BroadcastCounts[]
    expect(result).toMatchObject({ workers: 2, matched: 8 })
    const { unfinished = 0, outcomes = {} } = result ?? {}
    const settled = Object.values(outcomes).reduce((sum, count) => sum + count, 0)
    expect(unfinished + settled).toBe(8)
    expect(unfinished).toBeGreaterThan(0)
    expect(subject.worker(slot).ended).toBe("done")
    // The other worker has written all its lines.
    const others = subject.lines().slice(slot === 0 ? 4 : 0, slot === 0 ? 8 : 4)
    expect(others).toEqual(Array.from({ length: 4 }, () => ["reboot"]))
  })
})

describe("a broadcast by AMQP", () => {
  test("has one receipt with the counts", () => {
    const subject = new Subject([3, 2])
    subject.publish({ to: "all" })
    subject.fleet.pass(1_000)
    expect(subject.receipts()).toEqual([
      { workers: 2, matched: 5, outcomes: { written: 5 }, at: expect.any(Number) },
    ])
    expect(subject.fleet.broker.waiting(REPLIES)[0]?.properties).toMatchObject({
      correlationId: "c1",
      type: "owsla.receipt",
      headers: { traceparent: "00-1-2-00" },
    })
    expect(subject.lines()).toEqual(subject.devices.map(() => ["reboot"]))
    expect(subject.fleet.broker.unacknowledged(BROADCASTS)).toEqual([])
  })

  test.each<[Record<string, string>, string, string]>([
    [{}, "reboot", "invalid"],
    [{ to: "some" }, "reboot", "invalid"],
    [{ to: "all" }, "two\nlines", "invalid"],
    [{ to: "all" }, "x".repeat(1_025), "too_large"],
  ])("that is not valid is kept, and its receipt says why: %j", (headers, body, outcome) => {
    const subject = new Subject([1])
    subject.publish(headers, body)
    subject.fleet.pass(1_000)
    expect(subject.receipts()).toMatchObject([{ outcome, detail: expect.stringMatching(/./) }])
    const [kept] = subject.fleet.broker.waiting(QUEUES.undeliveredQueue)
    expect(Buffer.from(kept?.body ?? []).toString()).toBe(body)
    expect(kept?.properties.headers).toMatchObject({ ...headers, "owsla-outcome": outcome })
    expect(subject.written).toBe(0)
    expect(subject.fleet.broker.unacknowledged(BROADCASTS)).toEqual([])
  })

  test("waits while 16 are being written, and is written then", () => {
    const subject = new Subject([2])
    for (let n = 0; n < MAX_BROADCASTS; n += 1) subject.send(0, { perS: 1 })
    subject.fleet.pass(300)
    subject.publish({ to: "all" })
    subject.fleet.pass(1_000)
    expect(subject.receipts()).toEqual([])
    subject.fleet.pass(5_000)
    expect(subject.receipts()).toMatchObject([{ matched: 2, outcomes: { written: 2 } }])
  })

  test("is coordinated by another worker when its own dies, and no device gets it twice", () => {
    const subject = new Subject([4, 4, 4])
    subject.publish({ to: "all", per_s: 4 })
    subject.fleet.pass(1_500)
    const slot = subject.coordinator()
    subject.fleet.kill(slot)
    subject.fleet.pass(20_000)
    expect(subject.receipts()).toMatchObject([{ workers: 2, matched: 8, outcomes: { written: 8 } }])
    for (const [at, lines] of subject.lines().entries()) {
      const isLeft = Math.floor(at / 4) !== slot
      expect(lines.length).toBeLessThanOrEqual(1)
      if (isLeft) expect(lines).toEqual(["reboot"])
    }
  })

  test("is counted again, but not written again, when only the acknowledgement was lost", () => {
    const subject = new Subject([2, 2])
    subject.publish({ to: "all" })
    subject.fleet.pass(1_000, /acknowledged, from owsla\.broadcasts/)
    expect(subject.written).toBe(4)
    const slot = subject.coordinator()
    subject.fleet.cut(slot, ["consuming"])
    subject.fleet.pass(20_000)
    expect(subject.written).toBe(4)
    for (const receipt of subject.receipts()) {
      expect(receipt).toMatchObject({ workers: 2, matched: 4, outcomes: { written: 4 } })
    }
  })

  test("is written again when a back-end publishes it again", () => {
    const subject = new Subject([2, 2])
    for (const count of [4, 8]) {
      subject.publish({ to: "all" })
      subject.fleet.pass(1_000)
      expect(subject.written).toBe(count)
    }
    expect(subject.receipts()).toHaveLength(2)
  })

  test("has its receipt when its worker drains", () => {
    const subject = new Subject([10, 10], { drainTimeoutMs: 2_000 })
    subject.publish({ to: "all", per_s: 2 })
    subject.fleet.pass(1_100)
    subject.fleet.drain(subject.coordinator())
    subject.fleet.pass(20_000)
    expect(subject.receipts()).toMatchObject([
      { workers: 2, matched: 20, unfinished: expect.any(Number) },
    ])
    for (const lines of subject.lines()) expect(lines.length).toBeLessThanOrEqual(1)
  })
})

test(
  "in any order of losses no connection gets a broadcast twice, and each has one result",
  () => {
    const loss = fc.record({
      slot: fc.nat({ max: 2 }),
      what: fc.constantFrom("kill", "cut", "cut both", "drain", "hang up"),
      afterSteps: fc.nat({ max: 120 }),
      seed: fc.nat(),
    })
    check(
      fc.property(fc.array(loss, { maxLength: 4 }), fc.boolean(), (losses, byAmqp) => {
        const subject = new Subject([3, 3, 3], { drainTimeoutMs: 2_000 })
        const sender = subject.worker(0)
        const results = byAmqp ? [] : subject.send(0, { perS: 20 })
        if (byAmqp) subject.publish({ to: "all", per_s: 20 })
        for (const { slot, what, afterSteps, seed } of losses) {
          subject.fleet.run(afterSteps, seed)
          subject.fleet.advance(40)
          if (what === "kill") subject.fleet.kill(slot)
          else if (what === "drain") subject.fleet.drain(slot)
          else if (what === "hang up") {
            const device = subject.devices[slot * 3]
            if (device !== undefined) subject.fleet.hangUp(device)
          } else
            subject.fleet.cut(slot, what === "cut" ? ["publishing"] : ["publishing", "consuming"])
        }
        // Somebody must be there to take the message.
        if (subject.fleet.workers.every(({ state }) => state !== "serving")) subject.fleet.start(0)
        subject.fleet.pass(25_000)
        for (const lines of subject.lines()) expect(lines.length).toBeLessThanOrEqual(1)
        if (byAmqp) expect(subject.fleet.broker.waiting(BROADCASTS)).toEqual([])
        if (byAmqp) expect(subject.receipts().length).toBeGreaterThanOrEqual(1)
        else if (sender.ended !== "killed") expect(results).toHaveLength(1)
        const all = byAmqp ? subject.receipts() : results
        for (const each of all as unknown as BroadcastCounts[]) {
          if (each.matched === undefined) continue
          const settled = Object.values(each.outcomes).reduce((sum, count) => sum + count, 0)
          expect(settled + (each.unfinished ?? 0)).toBe(each.matched)
        }
      }),
    )
  },
  FAR_LONGER_THAN_IT_TAKES_MS,
)
