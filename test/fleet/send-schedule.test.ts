/** The send schedule: what is sent at once, what is gathered, and how long it waits. */

import { describe, expect, test } from "bun:test"
import { GATHER_MS, SendSchedule } from "../../src/fleet/send-schedule.ts"
import { until } from "../support/wait.ts"

/** A timer of the runtime counts whole milliseconds of a clock of its own. */
const TIMER_MS = 2

/** Senders that note when they were called. */
function subject(count: number) {
  const schedule = new SendSchedule()
  const startedAtMs = performance.now()
  const sent: { sender: number; atMs: number }[] = []
  const senders = Array.from({ length: count }, (_, sender) => () => {
    sent.push({ sender, atMs: performance.now() - startedAtMs })
  })
  const soon = (sender: number) => schedule.soon(senders[sender] as () => void)
  return { soon, sent }
}

describe("the send schedule", () => {
  test("sends what is due in one tick together at its end, each sender once", async () => {
    const { soon, sent } = subject(2)
    soon(0)
    soon(1)
    soon(0)
    expect(sent).toEqual([])
    await new Promise((done) => setImmediate(done))
    expect(sent.map(({ sender }) => sender)).toEqual([0, 1])
  })

  test("sends what comes later together, not before the gathering time has passed", async () => {
    const { soon, sent } = subject(3)
    soon(0)
    await until(() => sent.length === 1, { what: "the first" })
    soon(1)
    await Bun.sleep(1)
    soon(2)
    await until(() => sent.length === 3, { what: "the others" })
    const [first, second, third] = sent.map(({ atMs }) => atMs) as [number, number, number]
    expect(second - first).toBeGreaterThan(GATHER_MS - TIMER_MS)
    // Nothing runs between the two.
    expect(third - second).toBeLessThan(GATHER_MS)
    expect(sent.map(({ sender }) => sender)).toEqual([0, 1, 2])
  })

  test("sends at once again after a time without anything due", async () => {
    const { soon, sent } = subject(2)
    soon(0)
    await until(() => sent.length === 1, { what: "the first" })
    await Bun.sleep(GATHER_MS + 2 * TIMER_MS)
    soon(1)
    await new Promise((done) => setImmediate(done))
    expect(sent).toHaveLength(2)
  })

  test("goes on with the others when a sender makes itself due again", async () => {
    const schedule = new SendSchedule()
    let rounds = 0
    let others = 0
    const again = () => {
      rounds += 1
      if (rounds < 3) schedule.soon(again)
    }
    schedule.soon(again)
    schedule.soon(() => {
      others += 1
    })
    await until(() => rounds === 3, { what: "three rounds" })
    expect(others).toBe(1)
  })
})
