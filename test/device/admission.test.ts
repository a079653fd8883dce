/**
 * Admission: which connections are refused or wait, and how the limit of concurrent handshakes
 * adapts.
 */

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { Admission, type AdmissionLimits, type AdmissionState } from "../../src/device/admission.ts"
import { CHEAP_RUNS, check, RUNS } from "../support/property.ts"

const LIMITS: AdmissionLimits = { maxConnections: 100, maxWaiting: 10, perS: 0 }
const QUIET = {
  ...{ connections: 0, waiting: 0, suspended: false, draining: false },
  ...{ oldestBeganAtMs: null, steadyMs: 0 },
}
const FIRST_HANDSHAKE_LIMIT = 64
const MIN_HANDSHAKE_LIMIT = 8

function admission(limits: Partial<AdmissionLimits> = {}): Admission {
  return new Admission({ ...LIMITS, ...limits })
}

/** Handshakes one after the other that each take so long; returns the time after them. */
function handshakes(subject: Admission, count: number, tookMs: number, fromMs = 0): number {
  let atMs = fromMs
  for (let n = 0; n < count; n += 1) {
    subject.began(atMs)
    atMs += tookMs
    subject.completed(tookMs, true, atMs)
  }
  return atMs
}

describe("refused connections", () => {
  test.each([
    [0, 0, null],
    [99, 0, null],
    [100, 0, "overloaded"],
    [91, 9, "overloaded"],
    [0, 9, null],
    [0, 10, "overloaded"],
  ] as const)("with %d connections and %d waiting: %p", (connections, waiting, expected) => {
    expect(reasonOf({ ...QUIET, connections, waiting })).toBe(expected)
  })

  test("all connections while reading is suspended", () => {
    expect(reasonOf({ ...QUIET, suspended: true })).toBe("overloaded")
    const stalled = { connections: 100, oldestBeganAtMs: 0, steadyMs: 1_000 }
    expect(reasonOf({ ...QUIET, ...stalled, suspended: true })).toBe("overloaded")
  })

  test("drained is the reason in every other state too", () => {
    check(
      fc.property(fc.nat(200), fc.nat(20), fc.boolean(), (connections, waiting, suspended) => {
        const stalled = { oldestBeganAtMs: 0, steadyMs: 1_000 }
        const state = { connections, waiting, suspended, draining: true, ...stalled }
        expect(reasonOf(state)).toBe("drained")
      }),
      CHEAP_RUNS,
    )
  })
})

function reasonOf(state: AdmissionState, subject = admission()): string | null {
  const decision = subject.decide(state)
  return decision.kind === "refuse" ? decision.reason : null
}

describe("a new connection on a full worker", () => {
  const FULL = { ...QUIET, connections: 95, waiting: 5 }

  test("replaces the oldest unadmitted connection once that has stalled, and not before", () => {
    const subject = admission()
    expect(subject.decide({ ...FULL, steadyMs: 9_999 })).toMatchObject({ reason: "overloaded" })
    const at = (steadyMs: number) => subject.decide({ ...FULL, oldestBeganAtMs: 1_000, steadyMs })
    expect(at(1_000 + subject.stalledAfterMs)).toMatchObject({ reason: "overloaded" })
    expect(at(1_001 + subject.stalledAfterMs)).toEqual({ kind: "replace_oldest" })
  })

  test("replaces none while there is room, or when too many wait", () => {
    const stalled = { oldestBeganAtMs: 0, steadyMs: 60_000 }
    const room = { ...FULL, ...stalled, connections: 94 }
    expect(admission().decide(room)).toEqual({ kind: "accept" })
    const waiting = { ...FULL, ...stalled, waiting: 10 }
    expect(admission().decide(waiting)).toMatchObject({ reason: "overloaded" })
  })

  test("replaces later while no handshake completes: the time doubles for each 100 replaced, up to four seconds", () => {
    const subject = admission()
    const times = []
    for (let n = 0; n < 600; n += 1) {
      if (n % 100 === 0) times.push(subject.overdueAfterMs)
      subject.replaced()
    }
    expect(times).toEqual([250, 500, 1_000, 2_000, 4_000, 4_000])
    handshakes(subject, 1, 50)
    expect(subject.overdueAfterMs).toBe(250)
    for (let n = 0; n < 99; n += 1) subject.replaced()
    handshakes(subject, 1, 50)
    for (let n = 0; n < 99; n += 1) subject.replaced()
    expect(subject.overdueAfterMs).toBe(250)
  })

  test("on a slow network leaves each connection four times the fastest recent handshake, at most four seconds", () => {
    const subject = admission()
    for (let n = 0; n < 200; n += 1) subject.replaced()
    subject.completedLate(600, 1_000)
    expect([subject.inProgress, subject.stalledAfterMs, subject.overdueAfterMs]).toEqual([
      0, 2_400, 2_400,
    ])
    const slow = admission()
    slow.completedLate(9_000, 9_000)
    expect([slow.stalledAfterMs, slow.overdueAfterMs]).toEqual([4_000, 4_000])
  })

  test("in an endless storm does not keep honest devices out, however long their handshakes take", () => {
    const storm = fc.record({
      places: fc.integer({ min: 10, max: 400 }),
      handshakeMs: fc.integer({ min: 1, max: 3_500 }),
      newcomersPerS: fc.integer({ min: 100, max: 3_000 }),
      maxWaiting: fc.integer({ min: 1, max: 500 }),
    })
    check(
      fc.property(storm, (about) => {
        expect(filledAfterMs(about)).toBeLessThan(60_000)
      }),
      RUNS,
    )
  })
})

/**
 * A worker in a storm of honest devices, each of which tries again at once; until it holds as many
 * as it can.
 */
function filledAfterMs(storm: {
  readonly places: number
  readonly handshakeMs: number
  readonly newcomersPerS: number
  readonly maxWaiting: number
}): number {
  const { places, handshakeMs, newcomersPerS, maxWaiting } = storm
  const subject = admission({ maxConnections: places, maxWaiting })
  const STEP_MS = 10
  const begun: { readonly atMs: number; stalled: boolean }[] = []
  let waiting = 0
  let devices = 0
  let owed = 0
  for (let nowMs = 0; nowMs < 60_000; nowMs += STEP_MS) {
    const beginSome = () => {
      while (waiting > 0 && subject.beginsInMs(nowMs) === 0) {
        waiting -= 1
        begun.push({ atMs: nowMs, stalled: false })
        subject.began(nowMs)
      }
    }
    while (begun[0] !== undefined && nowMs - begun[0].atMs >= handshakeMs) {
      if (begun.shift()?.stalled === false) subject.completed(handshakeMs, true, nowMs)
      else subject.completedLate(handshakeMs, nowMs)
      devices += 1
    }
    if (devices === places) return nowMs
    if (nowMs % 250 === 0) {
      let stalled = 0
      for (const each of begun) {
        if (each.stalled || each.atMs > nowMs - subject.stalledAfterMs) continue
        each.stalled = true
        stalled += 1
      }
      subject.look(0, stalled, nowMs)
    }
    beginSome()
    for (owed += (newcomersPerS * STEP_MS) / 1_000; owed >= 1; owed -= 1) {
      const state = {
        ...{ connections: devices + begun.length, waiting, suspended: false, draining: false },
        ...{ oldestBeganAtMs: begun[0]?.atMs ?? null, steadyMs: nowMs },
      }
      const { kind } = subject.decide(state)
      if (kind === "refuse") continue
      if (kind === "replace_oldest") {
        if (begun.shift()?.stalled === false) subject.ended()
        subject.replaced()
      }
      waiting += 1
      beginSome()
    }
  }
  return Number.POSITIVE_INFINITY
}

describe("the limit of concurrent handshakes", () => {
  test("a handshake beyond the limit waits until one has ended, completed or not", () => {
    const subject = admission()
    for (let n = 0; n < FIRST_HANDSHAKE_LIMIT; n += 1) {
      expect(subject.beginsInMs(0)).toBe(0)
      subject.began(0)
    }
    expect(subject.beginsInMs(0)).toBe(Number.POSITIVE_INFINITY)
    subject.ended()
    expect(subject.beginsInMs(0)).toBe(0)
    subject.began(0)
    subject.completed(1, true, 1)
    expect(subject.beginsInMs(1)).toBe(0)
  })

  test("grows while handshakes are as fast as the fastest recent one", () => {
    const subject = admission()
    handshakes(subject, 8, 5)
    expect(subject.handshakeLimit).toBe(FIRST_HANDSHAKE_LIMIT + 1)
  })

  test("does not shrink on a network that is slow for all", () => {
    const subject = admission()
    handshakes(subject, 80, 300)
    expect(subject.handshakeLimit).toBe(FIRST_HANDSHAKE_LIMIT + 10)
  })

  test("shrinks when handshakes delay each other, once for each such delay", () => {
    const subject = admission()
    const atMs = handshakes(subject, 1, 5)
    const before = subject.handshakeLimit
    for (let n = 0; n < 10; n += 1) {
      subject.began(atMs)
      subject.completed(200, true, atMs + n)
    }
    expect(subject.handshakeLimit).toBe(Math.floor((FIRST_HANDSHAKE_LIMIT + 1 / 8) * 0.8))
    expect(subject.handshakeLimit).toBeLessThan(before)
  })

  test("grows in a storm of far devices beside a near one, while the event loop has time", () => {
    const subject = admission({ maxWaiting: 20_000 })
    let waiting = 20_000
    const endsAtMs: number[] = []
    let nowMs = 0
    for (; waiting + endsAtMs.length > 0 && nowMs < 60_000; nowMs += 1) {
      while (endsAtMs[0] !== undefined && endsAtMs[0] <= nowMs) {
        endsAtMs.shift()
        subject.completed(150, false, nowMs)
      }
      if (nowMs % 1_000 === 0) {
        subject.began(nowMs)
        subject.completed(1, false, nowMs)
      }
      if (nowMs % 250 === 0) subject.look(0, 0, nowMs)
      for (; waiting > 0 && subject.beginsInMs(nowMs) === 0; waiting -= 1) {
        subject.began(nowMs)
        endsAtMs.push(nowMs + 150)
      }
    }
    expect(nowMs).toBeLessThan(6_000)
  })

  test("shrinks when the event loop lags during handshakes, and not otherwise", () => {
    const subject = admission()
    subject.look(200, 0, 1_000)
    expect(subject.handshakeLimit).toBe(FIRST_HANDSHAKE_LIMIT)
    subject.began(1_000)
    subject.look(200, 0, 1_250)
    expect(subject.handshakeLimit).toBe(Math.floor(FIRST_HANDSHAKE_LIMIT * 0.8))
  })

  test("forgets the fastest handshake after a time, so a network that became slower does not shrink it", () => {
    const subject = admission()
    let atMs = handshakes(subject, 10, 1)
    atMs = handshakes(subject, 200, 300, atMs)
    const shrunk = subject.handshakeLimit
    atMs = handshakes(subject, 400, 300, atMs)
    expect(subject.handshakeLimit).toBeGreaterThan(shrunk)
  })

  test("stalled handshakes do not count, and double the limit", () => {
    const subject = admission()
    expect(subject.stalledAfterMs).toBe(250)
    for (let n = 0; n < FIRST_HANDSHAKE_LIMIT; n += 1) subject.began(0)
    expect(subject.beginsInMs(300)).toBe(Number.POSITIVE_INFINITY)
    subject.look(0, FIRST_HANDSHAKE_LIMIT, 300)
    expect([subject.inProgress, subject.handshakeLimit]).toEqual([0, 2 * FIRST_HANDSHAKE_LIMIT])
    expect(subject.beginsInMs(300)).toBe(0)
  })

  test("a slow network does not count as a stall", () => {
    const subject = admission()
    handshakes(subject, 1, 300)
    expect(subject.stalledAfterMs).toBe(1_200)
  })

  test("any order of events: stays within its bounds and counts handshakes in progress", () => {
    const event = fc.oneof(
      fc.record({ kind: fc.constant("begin" as const), ms: fc.nat(50) }),
      fc.record({ kind: fc.constant("complete" as const), ms: fc.nat(2_000) }),
      fc.record({ kind: fc.constant("end" as const), ms: fc.nat(50) }),
      fc.record({ kind: fc.constant("look" as const), ms: fc.nat(500) }),
    )
    check(
      fc.property(fc.array(event, { maxLength: 200 }), (events) => {
        const subject = admission()
        let atMs = 0
        let inProgress = 0
        for (const { kind: what, ms } of events) {
          atMs += ms
          if (what === "look") subject.look(ms, 0, atMs)
          else if (what === "begin") {
            if (subject.beginsInMs(atMs) > 0) continue
            subject.began(atMs)
            inProgress += 1
          } else if (inProgress > 0) {
            inProgress -= 1
            if (what === "complete") subject.completed(ms, ms % 2 === 0, atMs)
            else subject.ended()
          }
          expect(subject.inProgress).toBe(inProgress)
          expect(subject.handshakeLimit).toBeGreaterThanOrEqual(MIN_HANDSHAKE_LIMIT)
          expect(subject.handshakeLimit).toBeLessThanOrEqual(4_096)
        }
      }),
      CHEAP_RUNS,
    )
  })
})

describe("a fixed rate", () => {
  test("spreads the starts of handshakes, and does not accumulate unused ones", () => {
    const subject = admission({ perS: 100 })
    subject.began(0)
    expect(subject.beginsInMs(0)).toBe(10)
    expect(subject.beginsInMs(4)).toBe(6)
    expect(subject.beginsInMs(10)).toBe(0)
    subject.began(1_000)
    expect(subject.beginsInMs(1_000)).toBe(10)
  })
})

describe("the estimated wait", () => {
  test("of the last waiting connection, by the rate of the last second", () => {
    const subject = admission()
    expect([subject.waitMs(0), subject.waitMs(5)]).toEqual([0, null])
    handshakes(subject, 100, 1)
    subject.look(0, 0, 1_000)
    expect(subject.ratePerS).toBe(100)
    expect(subject.waitMs(50)).toBe(500)
  })
})
