/** A publisher in every order of events. */

import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test"
import fc from "fast-check"
import { BROKER_BACKOFF } from "../../src/backoff.ts"
import type { PublishResult } from "../../src/broker/broker.ts"

/** No wait between tries is shorter: half of `firstMs`. */
import { type Options, type Send, Subject } from "./publisher-harness.ts"

beforeEach(() => {
  jest.useFakeTimers()
})

afterEach(() => {
  jest.useRealTimers()
})

describe("in every order of events", () => {
  const GROUPS = ["a", "b", "c"]
  const MAX_IN_FLIGHT = 4

  type Event =
    | { kind: "publish"; group: string }
    /** Ends one of those in flight; `stored` tells what the broker made of one that was cut. */
    | { kind: "settle"; at: number; result: PublishResult; stored: boolean }
    | { kind: "lose"; stored: number }
    | { kind: "reopen" | "block" }
    | { kind: "wait"; ms: number }

  const event: fc.Arbitrary<Event> = fc.oneof(
    {
      weight: 5,
      arbitrary: fc.record({ kind: fc.constant("publish"), group: fc.constantFrom(...GROUPS) }),
    },
    {
      weight: 5,
      arbitrary: fc.record({
        kind: fc.constant("settle"),
        at: fc.nat(MAX_IN_FLIGHT - 1),
        result: fc.oneof(
          { weight: 6, arbitrary: fc.constant("confirmed") },
          { weight: 3, arbitrary: fc.constantFrom("nacked", "returned", "cut") },
        ),
        stored: fc.boolean(),
      }),
    },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant("lose"), stored: fc.nat(15) }) },
    { weight: 3, arbitrary: fc.record({ kind: fc.constantFrom("reopen", "block") }) },
    {
      weight: 2,
      arbitrary: fc.record({ kind: fc.constant("wait"), ms: fc.nat(BROKER_BACKOFF.maxMs) }),
    },
  ) as fc.Arbitrary<Event>

  const limits = fc.record({
    maxCount: fc.integer({ min: 1, max: 10 }),
    maxInFlight: fc.integer({ min: 1, max: MAX_IN_FLIGHT }),
  })
  const events = fc.array(event, { maxLength: 80, size: "max" })

  function run(
    { maxCount, maxInFlight }: Required<Pick<Options, "maxCount" | "maxInFlight">>,
    events: readonly Event[],
  ) {
    const subject = new Subject({ maxCount, maxInFlight })
    const { publishChannel, publisher } = subject
    const published: string[] = []
    const counts = new Map<string, number>()
    let owesRelief = false
    let failures = 0
    subject.onRelieved = () => {
      expect(owesRelief).toBe(true)
      expect(publisher.count).toBeLessThanOrEqual(maxCount / 2)
      owesRelief = false
    }
    const stored = new Set<Send>()
    const settle = (send: Send | undefined, result: PublishResult, isStored: boolean) => {
      if (send === undefined) return
      if (result !== "confirmed") failures += 1
      if (isStored) stored.add(send)
      send.settle(result)
    }
    const perform = (event: Event) => {
      switch (event.kind) {
        case "publish": {
          if (!publisher.window.hasRoom) break
          const number = counts.get(event.group) ?? 0
          counts.set(event.group, number + 1)
          published.push(`${event.group}${number}`)
          subject.publish(`${event.group}${number}`)
          if (!publisher.window.hasRoom) owesRelief = true
          break
        }
        case "settle": {
          // A broker that confirmed has stored; one that refused has not; of a cut nobody knows.
          const { result } = event
          const isStored = result === "confirmed" || (result === "cut" && event.stored)
          settle(publishChannel.inFlight[event.at], result, isStored)
          break
        }
        case "lose": {
          publishChannel.state = "closed"
          const cut = [...publishChannel.inFlight].entries()
          for (const [n, send] of cut) settle(send, "cut", ((event.stored >> n) & 1) === 1)
          break
        }
        case "reopen":
          subject.reopen()
          break
        case "block":
          if (publishChannel.state === "open") publishChannel.state = "blocked"
          break
        case "wait":
          jest.advanceTimersByTime(event.ms)
          break
      }
      expect(publishChannel.inFlight.length).toBeLessThanOrEqual(maxInFlight)
    }
    for (const event of events) perform(event)

    // From here on the broker is well.
    subject.reopen()
    for (let n = 0; n < 100 && publisher.count > 0; n += 1) {
      for (const send of [...publishChannel.inFlight]) settle(send, "confirmed", true)
      jest.advanceTimersByTime(BROKER_BACKOFF.maxMs)
    }
    return { subject, published, stored, failures, owesRelief: () => owesRelief }
  }

  test("each message is done exactly once and in order, and nothing is lost", () => {
    fc.assert(
      fc.property(limits, events, (limits, events) => {
        const { subject, published, failures, owesRelief } = run(limits, events)
        expect(subject.done).toEqual(published)
        expect([subject.publisher.count, subject.publisher.bytes]).toEqual([0, 0])
        expect(owesRelief()).toBe(false)
        expect(subject.failed.length).toBe(failures)
        if (failures === 0) expect(subject.publishChannel.sent()).toEqual(published)
      }),
      { numRuns: 5_000 },
    )
  })

  test("what the broker stored of each group holds all of it in order", () => {
    fc.assert(
      fc.property(limits, events, (limits, events) => {
        const { subject, published, stored } = run(limits, events)
        for (const group of GROUPS) {
          // As a back-end reads it: each number once its predecessor was there, repeats skipped.
          let next = 0
          for (const send of subject.publishChannel.sends) {
            if (stored.has(send) && send.id === `${group}${next}`) next += 1
          }
          expect(next).toBe(published.filter((id) => id.startsWith(group)).length)
        }
      }),
      { numRuns: 5_000 },
    )
  })
})
