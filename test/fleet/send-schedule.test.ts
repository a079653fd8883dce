/** The send schedule: what is sent at once, what is gathered, and how long it waits. */

import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test"
import { GATHER_MS, SendSchedule } from "../../src/fleet/send-schedule.ts"

// Timers only: a tick of the event loop is a real one.
beforeEach(() => {
  jest.useFakeTimers()
})

afterEach(() => {
  jest.useRealTimers()
})

/** Senders that note when they were called. */
function subject(count: number) {
  const schedule = new SendSchedule()
  const sent: number[] = []
  const senders = Array.from({ length: count }, (_, sender) => () => {
    sent.push(sender)
  })
  const soon = (sender: number) => schedule.soon(senders[sender] as () => void)
  return { soon, sent }
}

/** Waits for the end of this tick. */
function turn(): Promise<void> {
  return new Promise((done) => setImmediate(done))
}

describe("the send schedule", () => {
  test("sends what is due in one tick together at its end, each sender once", async () => {
    const { soon, sent } = subject(2)
    soon(0)
    soon(1)
    soon(0)
    expect(sent).toEqual([])
    await turn()
    expect(sent).toEqual([0, 1])
  })

  test("sends what comes later together, not before the gathering time has passed", async () => {
    const { soon, sent } = subject(3)
    soon(0)
    await turn()
    soon(1)
    jest.advanceTimersByTime(GATHER_MS - 1)
    soon(2)
    await turn()
    expect(sent).toEqual([0])
    jest.advanceTimersByTime(1)
    expect(sent).toEqual([0, 1, 2])
  })

  test("sends at once again after a time without anything due", async () => {
    const { soon, sent } = subject(2)
    soon(0)
    await turn()
    jest.advanceTimersByTime(GATHER_MS)
    soon(1)
    await turn()
    expect(sent).toEqual([0, 1])
  })

  test("goes on with the others when a sender makes itself due again", async () => {
    const schedule = new SendSchedule()
    const sent: string[] = []
    const again = () => {
      sent.push("again")
      if (sent.length < 4) schedule.soon(again)
    }
    schedule.soon(again)
    schedule.soon(() => sent.push("other"))
    await turn()
    expect(sent).toEqual(["again", "other"])
    jest.advanceTimersByTime(GATHER_MS)
    jest.advanceTimersByTime(GATHER_MS)
    expect(sent).toEqual(["again", "other", "again", "again"])
  })
})
