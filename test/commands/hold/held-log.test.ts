/**
 * The log of held commands on a simulated broker: one keeper after the other, with lost connections
 * and killed processes, in every order of events.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { OutboundMessages } from "../../../src/broker/outbound-messages.ts"
import { heldQueue } from "../../../src/broker/topology.ts"
import {
  HeldLog,
  REFRESH_MS,
  SPARE_TOMBSTONES,
  TOMBSTONES_EACH,
} from "../../../src/commands/hold/held-log.ts"
import { Counters } from "../../../src/counters.ts"
import { FLEET_KEYS } from "../../support/fleet-keys.ts"
import { check } from "../../support/property.ts"
import {
  type Link,
  SimulatedBroker,
  type SimulatedClient,
  type Step,
} from "../../support/simulated-broker.ts"
import { SimulatedProcess } from "../../support/simulated-process.ts"
import { QUEUES } from "../../support/simulated-worker.ts"
import { heldCommand } from "./held-commands.ts"

const QUEUE = heldQueue(QUEUES, 0)
const PREFETCH = 2
/** Longer than a keeper waits before it looks for a delivery again. */
const LONG_MS = 60_000
const SWEEP_EVERY_MS = 500

/** A process that may be the keeper. */
class Member {
  readonly known = new Set<string>()
  readonly client: SimulatedClient
  readonly log: HeldLog
  readonly #process: SimulatedProcess
  readonly #broker: SimulatedBroker
  #markers = 0
  foreign = 0

  constructor(broker: SimulatedBroker, name: string) {
    this.#broker = broker
    const nowMs = () => broker.nowMs
    this.#process = new SimulatedProcess(name, nowMs)
    this.client = broker.client(name, this.#process.run)
    const outboundMessages = new OutboundMessages(this.client, new Counters(), nowMs)
    const mintMarker = () => `${name}.${this.#markers++}`
    this.log = new HeldLog(
      {
        ...{ queue: QUEUE, prefetch: PREFETCH, broker: this.client, outboundMessages },
        ...{ keys: FLEET_KEYS, mintMarker, steadyMs: nowMs },
      },
      {
        entry: ({ id }) => this.known.add(id),
        gone: (id) => this.known.delete(id),
        read: () => undefined,
        lost: () => undefined,
        foreign: (delivery) => {
          this.foreign += 1
          delivery.acknowledge()
        },
      },
    )
    const setup = { exchanges: [], queues: [], subscriptions: [] }
    const listener = { stateChanged: () => undefined, warning: () => undefined }
    this.run(() => {
      this.client.start(setup, listener)
      this.log.open()
    })
  }

  run(act: () => void): void {
    this.#process.run(act)
  }

  append(id: string, stored: () => void): void {
    this.known.add(id)
    this.run(() =>
      this.log.append(heldCommand(id), {
        wanted: () => true,
        done: (result) => {
          if (result === "confirmed") stored()
        },
      }),
    )
  }

  end(id: string, ended: () => void): void {
    this.known.delete(id)
    this.run(() => this.log.end(id, ended))
  }

  sweep(): void {
    this.run(() => this.log.sweep(this.#broker.nowMs))
  }

  /** Gives the queue to another one; what it has published goes on. */
  close(): void {
    this.run(() => this.log.close())
  }

  kill(): void {
    this.client.kill()
    this.#process.end()
  }

  pending(): Step[] {
    const steps: Step[] = []
    if (this.#process.turnIsDue) {
      steps.push({ what: () => "turn", run: () => this.#process.endTurn() })
    }
    if (this.#process.nextTimerMs <= this.#broker.nowMs) {
      steps.push({ what: () => "timer", run: () => this.#process.runNextTimer() })
    }
    return steps
  }
}

class Subject {
  readonly broker = new SimulatedBroker()
  readonly members: Member[] = []
  readonly stored = new Set<string>()
  readonly ended = new Set<string>()
  /** All that were to be ended, whether that is known to be stored or not. */
  readonly ending = new Set<string>()
  #appended = 0

  constructor() {
    this.open()
  }

  get keeper(): Member {
    const keeper = this.members.at(-1)
    if (keeper === undefined) throw new Error("no keeper")
    return keeper
  }

  open(): void {
    this.members.push(new Member(this.broker, `m${this.members.length}`))
  }

  append(): string {
    const id = `c${this.#appended}`
    this.#appended += 1
    this.keeper.append(id, () => this.stored.add(id))
    return id
  }

  end(id: string): void {
    this.ending.add(id)
    this.keeper.end(id, () => this.ended.add(id))
  }

  run(count: number, seed: number): void {
    let drawn = seed
    for (let n = 0; n < count; n += 1) {
      const steps = this.#steps()
      drawn = (Math.imul(drawn, 1_664_525) + 1_013_904_223) >>> 0
      const step = steps[Math.floor((drawn / 2 ** 32) * steps.length)]
      if (step === undefined) return
      step.run()
    }
  }

  pass(ms: number): void {
    const untilMs = this.broker.nowMs + ms
    for (;;) {
      for (let steps = this.#steps(); steps.length > 0; steps = this.#steps()) steps[0]?.run()
      for (const member of this.members) member.sweep()
      if (this.broker.nowMs >= untilMs) return
      this.broker.nowMs = Math.min(untilMs, this.broker.nowMs + SWEEP_EVERY_MS)
    }
  }

  #steps(): Step[] {
    return [...this.broker.pending(), ...this.members.flatMap((member) => member.pending())]
  }

  get length(): number {
    return this.broker.waiting(QUEUE.name).length + this.broker.unacknowledged(QUEUE.name).length
  }
}

describe("a log", () => {
  test("gives the next keeper the commands that have not ended", () => {
    const subject = new Subject()
    subject.pass(LONG_MS)
    const ids = [1, 2, 3, 4, 5].map(() => subject.append())
    subject.pass(1_000)
    subject.end(ids[1] ?? "")
    subject.pass(1_000)
    subject.keeper.kill()
    subject.open()
    subject.pass(LONG_MS)
    expect(subject.keeper.log.isRead).toBe(true)
    expect([...subject.keeper.known].sort()).toEqual(["c0", "c2", "c3", "c4"])
  })

  test("leaves nothing unacknowledged for long, and grows by nothing that stays", () => {
    const subject = new Subject()
    subject.pass(1_000)
    for (let n = 0; n < 5; n += 1) subject.append()
    subject.pass(1_000)
    const first = subject.broker.unacknowledged(QUEUE.name).map(({ number }) => number)
    expect(first.length).toBe(PREFETCH)
    subject.pass(REFRESH_MS + SWEEP_EVERY_MS)
    const later = subject.broker.unacknowledged(QUEUE.name).map(({ number }) => number)
    expect(later.filter((number) => first.includes(number))).toEqual([])
    subject.pass(10 * REFRESH_MS)
    expect(subject.length).toBe(5)
  })

  test("is freed of tombstones behind the prefetch", () => {
    const subject = new Subject()
    subject.pass(1_000)
    for (let n = 0; n <= PREFETCH; n += 1) subject.append()
    subject.pass(1_000)
    const enough = SPARE_TOMBSTONES + TOMBSTONES_EACH * (PREFETCH + 1)
    for (let n = 0; n <= enough; n += 1) {
      const id = subject.append()
      subject.pass(SWEEP_EVERY_MS / 10)
      subject.end(id)
    }
    subject.pass(2_000)
    expect(subject.length).toBe(PREFETCH + 1)
    subject.pass(LONG_MS)
    expect([...subject.keeper.known].sort()).toEqual(["c0", "c1", "c2"])
  })

  test("shows what no member has stored, and does not take it for a command", () => {
    const subject = new Subject()
    subject.pass(1_000)
    subject.broker.publish(QUEUE.name, "forged", { headers: { "owsla-command": "x" } })
    subject.pass(1_000)
    expect(subject.keeper.foreign).toBe(1)
    expect(subject.keeper.known.size).toBe(0)
  })
})

const LINKS: readonly (readonly Link[])[] = [
  ["publishing"],
  ["consuming"],
  ["publishing", "consuming"],
]
const step = fc.oneof(
  { weight: 5, arbitrary: fc.constant({ kind: "append" as const }) },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant("end" as const), which: fc.nat(100) }) },
  {
    weight: 8,
    arbitrary: fc.record({
      kind: fc.constant("run" as const),
      count: fc.integer({ min: 1, max: 40 }),
      seed: fc.nat(),
    }),
  },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("pass" as const), ms: fc.nat(30_000) }) },
  {
    weight: 2,
    arbitrary: fc.record({ kind: fc.constant("cut" as const), links: fc.constantFrom(...LINKS) }),
  },
  {
    weight: 1,
    arbitrary: fc.constantFrom({ kind: "kill" as const }, { kind: "hand_over" as const }),
  },
)

test("the last keeper knows each stored command that has not ended, in every order of events", () => {
  check(
    fc.property(fc.array(step, { maxLength: 60, size: "max" }), (steps) => {
      const subject = new Subject()
      for (const step of steps) {
        switch (step.kind) {
          case "append":
            subject.append()
            break
          case "end": {
            // As its keeper does: only what it knows, and while no other one may have the queue.
            const known = [...subject.keeper.known].filter((id) => subject.stored.has(id))
            const id = known[step.which % Math.max(1, known.length)]
            if (id !== undefined && subject.keeper.log.isRead) subject.end(id)
            break
          }
          case "run":
            subject.run(step.count, step.seed)
            break
          case "pass":
            subject.pass(step.ms)
            break
          case "cut":
            for (const link of step.links) {
              if (subject.keeper.client.isUp(link)) subject.keeper.client.cut(link)
            }
            break
          case "kill":
            subject.keeper.kill()
            subject.open()
            break
          case "hand_over":
            subject.keeper.close()
            subject.open()
            break
        }
      }
      subject.keeper.close()
      subject.open()
      subject.pass(LONG_MS)
      const { known, log } = subject.keeper
      expect(log.isRead).toBe(true)
      for (const id of subject.stored) {
        if (!subject.ending.has(id)) expect([id, known.has(id)]).toEqual([id, true])
      }
      for (const id of subject.ended) expect([id, known.has(id)]).toEqual([id, false])
    }),
  )
})
