/**
 * The gate and bans: whom they refuse, and that all workers come to know the same, whatever is lost,
 * repeated or overtaken on the way.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { AdmissionRules, type RulesContent } from "../../src/fleet/admission-rules.ts"
import { Flapping } from "../../src/fleet/flapping.ts"
import { check } from "../support/property.ts"

const FLAPPING = { limit: 3, windowMs: 10_000, banMs: 60_000 }

class Subject {
  nowMs = 1_000_000
  readonly banned: (readonly [string, number])[] = []
  /** Why their connections ended. */
  readonly reasons: string[] = []
  readonly told: RulesContent[] = []
  changes = 0
  readonly rules: AdmissionRules

  constructor(worker = "gw1.0", flapping: typeof FLAPPING | null = FLAPPING) {
    this.rules = new AdmissionRules({
      ...{ flapping, worker },
      nowMs: () => this.nowMs,
      broadcast: (content) => this.told.push(content),
      banned: (deviceId, retryAfterMs, reason) => {
        this.banned.push([deviceId, retryAfterMs])
        this.reasons.push(reason)
      },
      changed: () => {
        this.changes += 1
      },
    })
  }

  /** The reason, or null. */
  connect(deviceId: string, afterMs = 1_000): string | null {
    this.nowMs += afterMs
    return this.rules.refusalOf(deviceId, true)?.reason ?? null
  }
}

describe("the gate", () => {
  const CLOSED = { open: false, prefix: "", retry_after_ms: null }

  test("is open at first, and refuses everybody when it is closed", () => {
    const subject = new Subject()
    expect([subject.connect("lock:1"), subject.rules.isShut]).toEqual([null, false])
    subject.rules.setGate(CLOSED)
    expect([subject.connect("lock:1"), subject.rules.isShut]).toEqual(["gated", true])
    expect(subject.rules.refusalOf("a-connection-id", false)?.reason).toBe("gated")
    subject.rules.setGate({ ...CLOSED, open: true })
    expect([subject.connect("lock:1"), subject.rules.isShut]).toEqual([null, false])
  })

  test("closed for a prefix admits all other devices", () => {
    const subject = new Subject()
    subject.rules.setGate({ open: false, prefix: "lock:", retry_after_ms: 9_000 })
    const ids = ["lock:1", "lock:", "lock", "bell:1"]
    expect(ids.map((id) => subject.connect(id))).toEqual(["gated", "gated", null, null])
    expect(subject.rules.isShut).toBe(false)
    expect(subject.rules.refusalOf("lock:1", true)).toEqual({
      reason: "gated",
      detail: "the gate is closed for ids that start with lock:",
      retryAfterMs: 9_000,
    })
  })

  test("that was set later counts, even by a worker whose clock is behind", () => {
    const [first, second] = [new Subject("gw1.0"), new Subject("gw2.0")]
    first.nowMs += 3_600_000
    first.rules.setGate(CLOSED)
    for (const content of first.told) second.rules.heard(content)
    second.rules.setGate({ ...CLOSED, open: true })
    for (const content of second.told) first.rules.heard(content)
    expect([first.rules.isShut, second.rules.isShut]).toEqual([false, false])
  })
})

describe("a device that an operator denies", () => {
  test("is closed and refused everywhere until the time is over, also without FLAP_LIMIT", () => {
    const [first, second] = [new Subject("gw1.0", null), new Subject("gw2.0")]
    const ban = first.rules.deny("lock:1", 60_000)
    expect(ban).toMatchObject({ device_id: "lock:1", connects: 0 })
    for (const content of first.told) second.rules.heard(content)
    for (const subject of [first, second]) {
      expect(subject.banned).toEqual([["lock:1", 60_000]])
      expect(subject.reasons).toEqual(["denied"])
      expect(subject.connect("lock:1")).toBe("denied")
      expect(subject.connect("lock:2")).toBeNull()
      expect(subject.connect("lock:1", 60_000)).toBeNull()
    }
  })

  test("is admitted once that is lifted", () => {
    const subject = new Subject()
    subject.rules.deny("lock:1", 60_000)
    expect(subject.rules.lift("lock:1")?.connects).toBe(0)
    expect(subject.connect("lock:1")).toBeNull()
  })
})

describe("a device that connects too often", () => {
  test("is banned with the connection that is too many, until the ban ends", () => {
    const subject = new Subject()
    const tries = Array.from({ length: 5 }, () => subject.connect("lock:1"))
    expect(tries).toEqual([null, null, null, "flapping", "flapping"])
    expect(subject.connect("lock:2")).toBeNull()
    expect(subject.rules.bans()).toEqual([
      { device_id: "lock:1", at: 1_004_000, until: 1_064_000, connects: 4 },
    ])
    subject.nowMs = 1_064_000 - 1
    expect(subject.rules.refusalOf("lock:1", true)).toEqual({
      reason: "flapping",
      detail: "lock:1 connected 4 times within FLAP_WINDOW_MS, more than FLAP_LIMIT",
      retryAfterMs: 1,
    })
    expect(subject.connect("lock:1", 1)).toBeNull()
    expect(subject.rules.bans()).toEqual([])
  })

  test("is not banned when its connections are spread, or have no name", () => {
    const subject = new Subject()
    for (let n = 0; n < 20; n += 1) expect(subject.connect("lock:1", 4_000)).toBeNull()
    for (let n = 0; n < 20; n += 1) expect(subject.rules.refusalOf("c", false)).toBeNull()
    const unlimited = new Subject("gw1.0", null)
    for (let n = 0; n < 20; n += 1) expect(unlimited.connect("lock:1", 0)).toBeNull()
  })

  test("is counted on all workers, each connection once", () => {
    const subject = new Subject()
    for (const epoch of [1_000_000, 1_000_000, 1_000_000, 1_000_500]) {
      subject.rules.connectedElsewhere("lock:1", epoch)
    }
    expect(subject.connect("lock:1")).toBeNull()
    expect(subject.connect("lock:1")).toBe("flapping")
    expect(subject.told).toEqual([{ type: "bans", bans: subject.rules.bans() }])
  })

  test("may connect again once its ban is lifted, as often as any other", () => {
    const subject = new Subject()
    for (let n = 0; n < 4; n += 1) subject.connect("lock:1", 10)
    const [ban] = subject.rules.bans()
    expect(subject.rules.lift("lock:1")).toEqual(ban ?? null)
    expect(subject.rules.lift("lock:1")).toBeNull()
    const tries = Array.from({ length: 4 }, () => subject.connect("lock:1", 10))
    expect(tries).toEqual([null, null, null, "flapping"])
    expect(subject.rules.lift("lock:2")).toBeNull()
  })
})

test("a ban that is lifted elsewhere is over here too, and counting starts again", () => {
  const [first, second] = [new Subject("gw1.0"), new Subject("gw2.0")]
  for (let n = 0; n < 4; n += 1) first.connect("lock:1", 10)
  for (const epoch of [1_000_001, 1_000_002, 1_000_003]) {
    second.rules.connectedElsewhere("lock:1", epoch)
  }
  for (const content of first.told) second.rules.heard(content)
  expect(second.connect("lock:1", 20)).toBe("flapping")
  first.rules.lift("lock:1")
  for (const content of first.told) second.rules.heard(content)
  const tries = Array.from({ length: 4 }, () => second.connect("lock:1", 10))
  expect(tries).toEqual([null, null, null, "flapping"])
})

test("a device that goes on trying is refused for the ban and no longer", () => {
  const subject = new Subject()
  while (subject.connect("lock:1") === null);
  let refused = 0
  while (subject.connect("lock:1") !== null) refused += 1
  expect(refused).toBe(59)
})

test("a clock that is behind does not switch the counting off", () => {
  const subject = new Subject()
  subject.rules.connectedElsewhere("lock:1", subject.nowMs + 30_000)
  const tries = Array.from({ length: 3 }, () => subject.connect("lock:1", 10))
  expect(tries).toEqual([null, null, "flapping"])
})

test("bans that are over, and those lifted long ago, are sent to nobody", () => {
  const subject = new Subject()
  for (let n = 0; n < 4; n += 1) subject.connect("lock:1", 10)
  for (let n = 0; n < 4; n += 1) subject.connect("lock:2", 10)
  subject.rules.lift("lock:2")
  expect(subject.rules.all()).toHaveLength(1)
  subject.nowMs += 60_000
  expect(subject.rules.all()).toEqual([
    { type: "bans", bans: [expect.objectContaining({ device_id: "lock:2", until: 0 })] },
  ])
  subject.nowMs += 600_000
  expect(subject.rules.all()).toEqual([])
})

test("a device that is forgotten among 50,000 others starts again", () => {
  const flapping = new Flapping({ limit: 1, windowMs: 10_000 })
  flapping.connectedHere("lock:1", 1)
  for (let n = 0; n < 50_000; n += 1) flapping.connectedHere(`bell:${n}`, 2)
  expect(flapping.connectedHere("lock:1", 3)).toBe(false)
  expect(flapping.connectedHere("lock:1", 4)).toBe(true)
})

test("the keeper of a device counts its connections to other workers, and bans it", () => {
  const [keeper, holder] = [new Subject("gw1.0"), new Subject("gw2.0")]
  for (let n = 1; n <= FLAPPING.limit; n += 1) {
    keeper.rules.connectedElsewhere("lock:1", keeper.nowMs + n)
    // The same connection again does not count.
    keeper.rules.connectedElsewhere("lock:1", keeper.nowMs + n)
  }
  expect(keeper.told).toEqual([])
  keeper.rules.connectedElsewhere("lock:1", keeper.nowMs + FLAPPING.limit + 1)
  expect(keeper.rules.bans()).toMatchObject([{ device_id: "lock:1" }])
  for (const content of keeper.told) holder.rules.heard(content)
  expect(holder.banned).toEqual([["lock:1", FLAPPING.banMs]])
  // While it is banned it is not counted.
  keeper.rules.connectedElsewhere("lock:1", keeper.nowMs + FLAPPING.limit + 2)
  expect(keeper.told).toHaveLength(1)
})

test("a worker that joins is told all, in messages of at most 1,000 bans", () => {
  const subject = new Subject("gw1.0", { limit: 1, windowMs: 10_000, banMs: 60_000 })
  for (let n = 0; n < 2_500; n += 1) {
    subject.connect(`lock:${n}`, 0)
    subject.connect(`lock:${n}`, 1)
  }
  subject.rules.setGate({ open: false, prefix: "x", retry_after_ms: null })
  const sizes = subject.rules
    .all()
    .map((content) => (content.type === "gate" ? -1 : content.bans.length))
  expect(sizes).toEqual([-1, 1_000, 1_000, 500])
  const other = new Subject("gw2.0")
  other.nowMs = subject.nowMs
  for (const content of subject.rules.all()) other.rules.heard(content)
  expect(other.rules.bans()).toEqual(subject.rules.bans())
  expect(other.rules.gate).toEqual(subject.rules.gate)
  const { changes } = other
  for (const content of subject.rules.all()) other.rules.heard(content)
  expect([changes, other.changes]).toEqual([4, 4])
})

test("workers agree once each has heard the others, in any order, with losses and repeats before", () => {
  const worker = fc.nat(2)
  const step = fc.oneof(
    fc.record({ do: fc.constant("set" as const), worker, open: fc.boolean() }),
    fc.record({ do: fc.constant("connect" as const), worker, device: fc.nat(1) }),
    fc.record({ do: fc.constant("lift" as const), worker, device: fc.nat(1) }),
    fc.record({ do: fc.constant("hear" as const), worker, of: worker, at: fc.nat(9) }),
    fc.record({ do: fc.constant("pass" as const), worker, ms: fc.nat(3_000) }),
  )
  check(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const all = ["gw1.0", "gw1.1", "gw2.0"].map((id) => new Subject(id))
      const at = (n: number) => all[n] ?? new Subject()
      for (const action of steps) {
        const subject = at(action.worker)
        if (action.do === "set") {
          subject.rules.setGate({ open: action.open, prefix: "", retry_after_ms: null })
        } else if (action.do === "connect") subject.connect(`lock:${action.device}`, 1)
        else if (action.do === "lift") subject.rules.lift(`lock:${action.device}`)
        else if (action.do === "pass") subject.nowMs += action.ms
        else {
          const content = at(action.of).told.at(-1 - action.at)
          if (content !== undefined) subject.rules.heard(content)
        }
      }
      for (const from of all) {
        for (const to of all) for (const content of from.rules.all()) to.rules.heard(content)
      }
      const nowMs = Math.max(...all.map((subject) => subject.nowMs))
      for (const subject of all) subject.nowMs = nowMs
      const known = all.map(({ rules }) => ({
        gate: rules.gate,
        bans: rules.bans().sort((a, b) => (a.device_id < b.device_id ? -1 : 1)),
      }))
      expect(known[1]).toEqual(known[0] as (typeof known)[number])
      expect(known[2]).toEqual(known[0] as (typeof known)[number])
    }),
    500,
  )
})
