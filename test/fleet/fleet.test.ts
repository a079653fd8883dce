/**
 * Queries whose caller has closed its connection are not carried out, whatever the broker does in
 * the meantime. Also the effects that setting a clock must not have. With a real fleet of one
 * worker; the test acts as the broker and the other workers.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import type { Delivery } from "../../src/broker/broker.ts"
import { Counters } from "../../src/counters.ts"
import { Connections } from "../../src/device/connections.ts"
import { Fleet } from "../../src/fleet/fleet.ts"
import type { FleetMessage } from "../../src/fleet/messages.ts"
import { FLEET_KEYS, OTHER_KEYS } from "../support/fleet-keys.ts"
import { NO_HELD_COMMANDS } from "../support/no-held-commands.ts"
import { noRecords } from "../support/no-records.ts"
import { NO_TAPES } from "../support/no-tapes.ts"
import { CHEAP_RUNS, checkAsync } from "../support/property.ts"
import { ScriptedBroker, ScriptedPublishChannel } from "../support/publish-channels.ts"

const SELF = { worker: "gw.0", incarnation: "mb2k3f9zq7x2" }
const OTHER = { from: "gw.1", incarnation: "mb2k3f9zzzzz" }
const CONNECTION = `${OTHER.from}.${OTHER.incarnation}.1`

/** A broker on which the test opens and cuts the channel between workers. */
class Subject {
  nowMs = 1_750_000_000_000
  steadyMs = 5_000
  readonly script = new ScriptedPublishChannel("closed")
  readonly warnings: string[] = []
  readonly fleet: Fleet

  constructor() {
    const limits = { handshakeTimeoutMs: 1, identifyTimeoutMs: 1, idleTimeoutMs: 1 }
    const clock = { nowMs: () => this.nowMs, steadyMs: () => this.steadyMs }
    const broker = new ScriptedBroker(this.script)
    const options = {
      self: SELF,
      ...clock,
      ...noRecords(),
      settings: {},
      counters: new Counters(),
      keys: FLEET_KEYS,
      admitsPerS: () => 0,
      flapping: null,
      shards: 16,
      keeping: NO_HELD_COMMANDS,
      registrationAnswered: () => undefined,
      rulesChanged: () => undefined,
      tapes: NO_TAPES,
      warn: (message: string) => void this.warnings.push(message),
    }
    this.fleet = new Fleet(broker, new Connections(limits), options)
  }

  open(): void {
    this.script.open()
    this.fleet.connected()
    this.hear({ type: "alive", ...OTHER, asks: false })
  }

  cut(): void {
    this.script.state = "closed"
    this.script.settle("cut", Number.POSITIVE_INFINITY)
  }

  hear(message: FleetMessage): void {
    this.hearAnything(message, "a member")
  }

  hearAnything(message: unknown, from: "a member" | "a stranger"): void {
    const body = Buffer.from(JSON.stringify(message))
    const keys = from === "a member" ? FLEET_KEYS : OTHER_KEYS
    const delivery: Partial<Delivery> = {
      body,
      properties: { headers: { "owsla-mac": keys.mac(body) } },
    }
    this.fleet.deliver(delivery as Delivery)
  }

  get published(): FleetMessage[] {
    return this.script.published.map(({ body }) => JSON.parse(Buffer.from(body).toString()))
  }

  /** The last `where` question. */
  where(): Extract<FleetMessage, { type: "where" }> | undefined {
    return this.published.findLast((message) => message.type === "where")
  }

  pass(ms: number): void {
    this.nowMs += ms
    this.steadyMs += ms
    this.fleet.sweep(this.steadyMs)
  }
}

/** Lets everything happen that needs no time: questions are sent at the end of a tick. */
async function turns(): Promise<void> {
  for (let n = 0; n < 5; n += 1) await new Promise((resolve) => setImmediate(resolve))
}

describe.each(["kick", "describe"] as const)("%s of a device elsewhere", (act) => {
  test("is answered when the broker connection is lost, and not carried out when it returns", async () => {
    const subject = new Subject()
    subject.open()
    subject.pass(600)
    const answers: unknown[] = []
    void subject.fleet.fleetQuery[act]("lock:1").then((answer) => answers.push(answer))
    await turns()
    expect(subject.where()?.devices).toEqual(["lock:1"])

    subject.cut()
    await turns()
    subject.pass(250)
    await turns()
    expect(answers).toEqual(["unreachable"])

    subject.pass(600_000)
    subject.open()
    await turns()
    const ask = subject.where()?.ask ?? 0
    subject.hear({ type: "there", ...OTHER, ask, devices: [["lock:1", CONNECTION, 5]] })
    await turns()
    const said = subject.published.map(({ type }) => type)
    expect(said).not.toContain("kick")
    expect(said).not.toContain("describe")
  })
})

describe.each([3_600_000, -3_600_000])("setting the clock by %d ms", (ms) => {
  test("does not remove members, and makes no device offline before they have answered", async () => {
    const subject = new Subject()
    subject.open()
    subject.pass(600)
    subject.nowMs += ms
    subject.pass(250)
    expect(subject.fleet.gauges().members).toBe(1)
    const places: string[] = []
    subject.fleet.locator.locate("lock:1", false, ({ kind }) => places.push(kind))
    await turns()
    subject.nowMs += ms
    subject.pass(250)
    expect(places).toEqual([])
    const ask = subject.where()?.ask ?? 0
    subject.hear({ type: "there", ...OTHER, ask, devices: [["lock:1", CONNECTION, 5]] })
    expect(places).toEqual(["worker"])
  })
})

describe("the gate", () => {
  const CLOSED = { open: false, prefix: "", retry_after_ms: null }
  const MAX_IN_FLIGHT = 1_000

  test("that was set while the channel was full is sent once there is room", async () => {
    const subject = new Subject()
    subject.open()
    for (let n = 0; n < MAX_IN_FLIGHT; n += 1) subject.fleet.rules.setGate(CLOSED)
    subject.fleet.rules.setGate({ ...CLOSED, open: true })
    const gates = () => subject.published.flatMap((said) => (said.type === "gate" ? said.gate : []))
    await turns()
    subject.pass(250)
    expect(gates().at(-1)?.open).toBe(false)
    const before = gates().length

    subject.script.settle("confirmed", MAX_IN_FLIGHT)
    subject.pass(250)
    subject.pass(250)
    expect(gates().slice(before)).toEqual([subject.fleet.rules.gate])
    expect(subject.fleet.rules.gate.open).toBe(true)
  })

  test("that was dropped is not sent twice after the broker connection has returned", async () => {
    const subject = new Subject()
    subject.open()
    subject.fleet.rules.setGate(CLOSED)
    subject.cut()
    await turns()
    const before = subject.published.length
    subject.open()
    subject.pass(250)
    expect(subject.published.slice(before).filter(({ type }) => type === "gate")).toHaveLength(1)
  })
})

describe("messages with the fields of the schema and values of any type", () => {
  const known = fc.constantFrom(
    ...[OTHER.from, OTHER.incarnation, CONNECTION, SELF.worker, "gw.9", "lock:1", "", "."],
    ...[0, 1, -1, 5, 2 ** 53 - 1, 0.5, true, false, null],
  )
  const row = fc.oneof(
    fc.tuple(known, known, known),
    fc.tuple(known, known),
    fc.dictionary(fc.constantFrom("device_id", "connection_id", "epoch", "reorder"), known),
    known,
  )
  const value = fc.oneof(known, fc.array(row, { maxLength: 4 }), fc.jsonValue())
  const types = ["alive", "leaving", "devices", "where", "there", "list", "listed"].concat(
    ...[["describe", "described", "kick", "kicked", "kept", "newer", "find", "found"]],
  )
  const fields = [
    ...["from", "incarnation", "asks", "here", "gone", "ask", "devices", "prefix", "after"],
    ...["limit", "total", "connection", "device", "clock_ms", "until_ms", "overdue", "n", "told"],
    ...["tells", "raised", "held", "absent", "keeps"],
  ]
  const message = fc
    .tuple(fc.constantFrom(...types), fc.dictionary(fc.constantFrom(...fields), value))
    .map(([type, content]) => ({ type, ...OTHER, ask: 0, ...content }))

  test("cause no exception, and have no effect when no member has sent them", async () => {
    const subject = new Subject()
    subject.open()
    subject.pass(600)
    await checkAsync(
      fc.asyncProperty(fc.array(message, { maxLength: 5 }), async (messages) => {
        const before = subject.fleet.gauges()
        const published = subject.published.length
        for (const each of messages) subject.hearAnything(each, "a stranger")
        expect([subject.fleet.gauges(), subject.published.length]).toEqual([before, published])
        // Questions that the messages may answer.
        subject.fleet.locator.locate("lock:1", false, () => undefined)
        void subject.fleet.fleetQuery.describe("lock:1")
        void subject.fleet.fleetQuery.list({ prefix: "", after: "", limit: 10 })
        await turns()
        for (const each of messages) subject.hearAnything(each, "a member")
        subject.pass(5_000)
        subject.script.published.length = 0
      }),
      CHEAP_RUNS,
    )
  })
})

test("a worker with another FLEET_SHARDS is told of once", () => {
  const subject = new Subject()
  subject.open()
  const keeps = { of: 8, since: 1, version: 1, shards: [] }
  subject.hear({ type: "alive", ...OTHER, asks: false, keeps })
  subject.hear({ type: "alive", ...OTHER, asks: false, keeps: { ...keeps, version: 2 } })
  subject.hear({ type: "alive", ...OTHER, asks: false, keeps: { ...keeps, of: 16 } })
  expect(subject.warnings).toHaveLength(1)
  expect(subject.warnings[0]).toContain("FLEET_SHARDS is 16 here and 8 on worker gw.1")
})
