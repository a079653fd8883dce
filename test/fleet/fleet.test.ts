/**
 * Questions to the fleet whose caller has hung up: nothing is done for them, whatever the broker does meanwhile.
 * Also what setting a clock must not change. With a real fleet of one worker; the test plays the broker and the
 * other workers.
 */

import { describe, expect, test } from "bun:test"
import type { Broker, Delivery, LaneListener, OutgoingMessage } from "../../src/broker/broker.ts"
import { Counters } from "../../src/counters.ts"
import { Connections } from "../../src/device/connections.ts"
import { Fleet } from "../../src/fleet/fleet.ts"
import type { FleetMessage } from "../../src/fleet/messages.ts"
import { FLEET_KEYS } from "../support/fleet-keys.ts"

const SELF = { worker: "gw.0", incarnation: "mb2k3f9zq7x2" }
const OTHER = { from: "gw.1", incarnation: "mb2k3f9zzzzz" }
const CONNECTION = `${OTHER.from}.${OTHER.incarnation}.1`

/** A broker on which the test opens and cuts the channel between workers. */
class Subject {
  nowMs = 1_750_000_000_000
  steadyMs = 5_000
  state: "open" | "closed" = "closed"
  readonly published: FleetMessage[] = []
  readonly warnings: string[] = []
  readonly fleet: Fleet
  #settle: ((result: "confirmed" | "cut") => void)[] = []
  #opened: LaneListener[] = []

  constructor() {
    const lane = (listener: LaneListener) => {
      this.#opened.push(listener)
      const subject = this
      return {
        get state() {
          return subject.state
        },
        publish: (message: OutgoingMessage, settled: (result: "confirmed" | "cut") => void) => {
          this.published.push(JSON.parse(Buffer.from(message.body).toString()))
          this.#settle.push(settled)
        },
      }
    }
    const limits = { handshakeTimeoutMs: 1, identifyTimeoutMs: 1, idleTimeoutMs: 1 }
    const clock = { nowMs: () => this.nowMs, steadyMs: () => this.steadyMs }
    const broker = { lane } as Partial<Broker> as Broker
    const options = {
      self: SELF,
      ...clock,
      counters: new Counters(),
      keys: FLEET_KEYS,
      warn: (message: string) => void this.warnings.push(message),
    }
    this.fleet = new Fleet(broker, new Connections(limits), options)
  }

  open(): void {
    this.state = "open"
    for (const listener of this.#opened) listener.opened()
    this.fleet.connected()
    this.hear({ type: "alive", ...OTHER, asks: false })
  }

  cut(): void {
    this.state = "closed"
    for (const settle of this.#settle.splice(0)) settle("cut")
  }

  hear(message: FleetMessage): void {
    const body = Buffer.from(JSON.stringify(message))
    const delivery: Partial<Delivery> = {
      body,
      properties: { headers: { "owsla-mac": FLEET_KEYS.mac(body) } },
    }
    this.fleet.deliver(delivery as Delivery)
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
  test("is answered when the broker is lost, and not carried out when it is back", async () => {
    const subject = new Subject()
    subject.open()
    subject.pass(600)
    const answers: unknown[] = []
    void subject.fleet.census[act]("lock:1").then((answer) => answers.push(answer))
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

describe.each([3_600_000, -3_600_000])("a clock that is set by %d ms", (ms) => {
  test("makes no member unknown, and no device nowhere before it has answered", async () => {
    const subject = new Subject()
    subject.open()
    subject.pass(600)
    subject.nowMs += ms
    subject.pass(250)
    expect(subject.fleet.gauges().members).toBe(1)
    const places: string[] = []
    subject.fleet.locator.locate("lock:1", false, ({ is }) => places.push(is))
    await turns()
    subject.nowMs += ms
    subject.pass(250)
    expect(places).toEqual([])
    const ask = subject.where()?.ask ?? 0
    subject.hear({ type: "there", ...OTHER, ask, devices: [["lock:1", CONNECTION, 5]] })
    expect(places).toEqual(["with"])
  })
})
