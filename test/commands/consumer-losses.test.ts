/** Commands that are held, whose delivery is lost, or that wait for missing numbers. */

import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test"
import {
  GONE,
  MAX_HELD_BYTES,
  OTHER,
  OWN,
  PREFETCH,
  REPLIES,
  Subject,
  settled,
  TestDelivery,
} from "./consumer-subject.ts"

beforeEach(() => {
  jest.useFakeTimers()
})

afterEach(() => {
  jest.useRealTimers()
})

describe("what is held", () => {
  const held = { headers: { connection_id: OWN } }

  test("beyond its bound stops the reading, once, until half of it is left", async () => {
    const subject = await new Subject().start()
    const body = "x".repeat(MAX_HELD_BYTES / 4)
    for (let n = 0; n < 4; n += 1) await subject.deliver(held, body)
    expect(subject.broker.reading).toEqual([])
    await subject.deliver(held, body)
    await subject.deliver(held, body)
    expect(subject.broker.reading).toEqual(["pause"])
    expect(subject.unacknowledged.count).toBe(6)
    for (let n = 0; n < 3; n += 1) subject.connection.settle("written")
    await settled()
    expect(subject.broker.reading).toEqual(["pause"])
    subject.connection.settle("written")
    await settled()
    expect(subject.broker.reading).toEqual(["pause", "resume"])
    subject.connection.settle("written")
    subject.connection.settle("written")
    await settled()
    expect(subject.broker.reading).toEqual(["pause", "resume"])
    expect(subject.unacknowledged.count).toBe(0)
  })

  test("is released by a forward, a refusal and a repeated delivery too", async () => {
    const subject = await new Subject().start()
    const body = "x".repeat(60)
    await subject.deliver({ headers: { connection_id: OTHER } }, body)
    await subject.deliver({ headers: { connection_id: GONE } }, body)
    await subject.deliver({}, body)
    await subject.deliver(held, body)
    const repeated = subject.connection.offered.shift()
    repeated?.acknowledge()
    expect(subject.unacknowledged.count).toBe(0)
    await subject.deliver(held, "x".repeat(MAX_HELD_BYTES))
    expect(subject.broker.reading).toEqual([])
  })

  test("counts a dead letter as well", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("nacked")
    await subject.deliverDead({})
    expect(subject.unacknowledged.count).toBe(1)
    await subject.waitOut()
    expect(subject.unacknowledged.count).toBe(0)
  })
})

describe("a command whose delivery is lost", () => {
  const asked = { headers: { connection_id: OWN }, replyTo: REPLIES }

  test("before a byte was offered is dropped, and written when it is delivered again", async () => {
    const subject = await new Subject().start()
    const first = await subject.deliver(asked)
    await subject.lose(first)
    expect([subject.connection.offered.length, subject.unacknowledged.count]).toEqual([0, 0])
    expect(subject.counters.commandsDropped).toBe(1)
    const again = await subject.redeliver(first)
    subject.connection.settle("written")
    await settled()
    expect([first.acknowledged, again.acknowledged]).toEqual([0, 1])
    expect(subject.receipts()).toMatchObject([{ outcome: "written" }])
    // This worker knows that it did not write the command before.
    expect(subject.counters.commandsPossiblyRepeated).toBe(0)
  })

  test("after its bytes were offered is written once, though it has no id, and told once", async () => {
    const subject = await new Subject().start()
    const first = await subject.deliver(asked)
    subject.connection.writing = true
    await subject.lose(first)
    subject.connection.settle("written")
    await settled()
    const again = await subject.redeliver(first)
    expect([subject.connection.offered.length, again.acknowledged]).toEqual([0, 1])
    expect(subject.receipts().length).toBe(1)
    expect([subject.unacknowledged.count, subject.counters.commandsSettled.written]).toEqual([0, 1])
  })

  test("after it was superseded ends so at its next delivery too, and is not written", async () => {
    const subject = await new Subject().start()
    const headers = { connection_id: OWN, supersede_key: "k" }
    const first = await subject.deliver({ ...asked, headers })
    first.lost = true
    subject.connection.settle("superseded")
    await subject.lose(first)
    // Nothing of the outcome was published.
    expect([subject.receipts(), subject.unacknowledged.count]).toEqual([[], 0])
    const again = await subject.redeliver(first)
    expect([subject.connection.offered.length, again.acknowledged]).toEqual([0, 1])
    expect(subject.receipts()).toMatchObject([{ outcome: "superseded" }])
    expect(subject.counters.commandsSettled.superseded).toBe(1)
  })

  test("while it waits for a reply is not written again, and has one outcome", async () => {
    const subject = await new Subject().start()
    const headers = { connection_id: OWN, reply_next: true }
    const first = await subject.deliver({ ...asked, headers })
    subject.connection.writing = true
    await subject.lose(first)
    const again = await subject.redeliver(first)
    expect([subject.connection.offered.length, again.acknowledged]).toEqual([1, 0])
    subject.connection.settle("no_reply")
    await settled()
    expect(again.acknowledged).toBe(1)
    expect(subject.receipts()).toMatchObject([{ outcome: "no_reply" }])
  })

  test("is one of several that are alike: as many are written as there are", async () => {
    const subject = await new Subject().start()
    const [offered, waiting] = [await subject.deliver(asked), await subject.deliver(asked)]
    subject.connection.writing = true
    const [command] = subject.connection.offered.splice(1)
    await subject.lose(offered, waiting)
    command?.withdraw()
    const again = [await subject.redeliver(offered), await subject.redeliver(waiting)]
    expect(subject.connection.offered.length).toBe(2)
    subject.connection.settle("written")
    subject.connection.settle("written")
    await settled()
    expect(again.map(({ acknowledged }) => acknowledged)).toEqual([1, 1])
    expect(subject.receipts().length).toBe(2)
  })

  test("while its acknowledgement may be lost too is acknowledged again, and not written", async () => {
    const subject = await new Subject().start()
    const known = { ...asked, correlationId: "1" }
    const [processed, unsure] = [
      await subject.deliver(known, "a"),
      await subject.deliver(known, "b"),
    ]
    subject.connection.settle("written")
    subject.connection.settle("written")
    await settled()
    processed.settled = true
    await subject.lose(processed, unsure)
    const again = await subject.redeliver(unsure)
    expect([again.acknowledged, subject.connection.offered.length]).toEqual([1, 0])
    expect(subject.counters.commandsPossiblyRepeated).toBe(0)
    // The broker has processed the other acknowledgement: this is another command with the same
    // text.
    await subject.redeliver(processed)
    expect(subject.connection.offered.length).toBe(1)
    expect(subject.counters.commandsPossiblyRepeated).toBe(1)
  })

  test("while its acknowledgement may be lost, and like others of its text, is written rather than left out", async () => {
    const subject = await new Subject().start()
    const written = await subject.deliver(asked)
    subject.connection.settle("written")
    await settled()
    await subject.lose(written)
    // It may be another one that was still on its way.
    const again = await subject.redeliver(written)
    expect([again.acknowledged, subject.connection.offered.length]).toEqual([0, 1])
    expect(subject.counters.commandsPossiblyRepeated).toBe(1)
  })

  test.each(["expired", "delivery_limit"])(
    "and that the broker gives up as %s, after its bytes were offered, has one outcome",
    async (reason) => {
      const subject = await new Subject().start()
      const first = await subject.deliver({ ...asked, expiration: "60000" })
      subject.connection.writing = true
      await subject.lose(first)
      const death = [{ reason, queue: "to_device", count: 1, "original-expiration": "60000" }]
      const { expiration: _, ...properties } = first.properties
      const headers = { ...properties.headers, "x-death": death, "x-first-death-reason": reason }
      const dead = await subject.deliverDead({ ...properties, headers })
      expect([dead.acknowledged, subject.kept()]).toEqual([0, []])
      subject.connection.settle("written")
      await settled()
      expect([dead.acknowledged, subject.kept(), subject.receipts().length]).toEqual([1, [], 1])
    },
  )

  test("twice, and comes each time by another worker that found it left in the queue, is written once", async () => {
    const subject = await new Subject().start()
    const comes = (hops: number, left: object) => {
      const headers = { ...asked.headers, "owsla-command": "gw.1.x.0", "owsla-hops": hops, ...left }
      return subject.deliver({ ...asked, headers })
    }
    const first = await comes(1, {})
    subject.connection.writing = true
    await subject.lose(first)
    const second = await comes(2, { "owsla-left": 1 })
    await subject.lose(second)
    const third = await comes(3, { "owsla-left": 2 })
    subject.connection.settle("written")
    await settled()
    expect([first.acknowledged, second.acknowledged, third.acknowledged]).toEqual([0, 0, 1])
    expect([subject.connection.offered.length, subject.receipts().length]).toEqual([0, 1])
  })

  test("before anything of its outcome was published has none: the next delivery decides", async () => {
    const subject = await new Subject().start()
    // The broker takes nothing while the copy of another is tried again.
    subject.broker.results.push("nacked")
    const other = await subject.deliver({})
    const first = await subject.deliver(asked)
    subject.connection.settle("closed")
    await subject.lose(first)
    await subject.waitOut()
    expect(subject.kept().map(([outcome]) => outcome)).toEqual(["invalid"])
    expect([other.acknowledged, subject.receipts(), subject.unacknowledged.count]).toEqual([
      1,
      [],
      0,
    ])
    expect(subject.counters.commandsSettled.closed).toBe(0)
    await subject.redeliver(first)
    subject.connection.settle("written")
    await settled()
    expect(subject.receipts()).toMatchObject([{ outcome: "written" }])
  })

  test("and that is delivered again before its outcome is published keeps that outcome", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("nacked")
    await subject.deliver({})
    const first = await subject.deliver(asked)
    subject.connection.settle("closed")
    await subject.lose(first)
    const again = await subject.redeliver(first)
    await subject.waitOut()
    expect(subject.kept().map(([outcome]) => outcome)).toEqual(["invalid", "closed"])
    expect([again.acknowledged, subject.unacknowledged.count]).toEqual([1, 0])
    expect(subject.counters.commandsSettled.closed).toBe(1)
  })

  test("on its way to another worker is not sent after it was published, nor before", async () => {
    const subject = await new Subject().start()
    subject.broker.results.push("nacked")
    const published = await subject.deliver({ headers: { connection_id: OTHER } }, "a")
    const waiting = await subject.deliver({ headers: { connection_id: OTHER } }, "b")
    await subject.lose(published, waiting)
    const again = await subject.redeliver(published)
    await subject.waitOut()
    const bodies = subject.forwarded().map(({ body }) => Buffer.from(body).toString())
    expect(bodies).toEqual(["a", "a"])
    expect(again.acknowledged).toBe(1)
    expect(subject.unacknowledged.count).toBe(0)
  })
})

describe("commands that all wait for missing numbers", () => {
  test("and fill the prefetch of their queue give up the oldest gap, once nothing comes any more", async () => {
    const subject = await new Subject().start()
    subject.connection.atGap = true
    const numbered = (seq: number) => ({ headers: { connection_id: OWN, to_device_seq: seq } })
    const sweep = () => {
      subject.consumer.sweep()
      return subject.connection.gapsGivenUp
    }
    for (let seq = 1; seq < PREFETCH; seq += 1) await subject.deliver(numbered(seq))
    expect([sweep(), sweep()]).toEqual([0, 0])
    await subject.deliver(numbered(PREFETCH))
    // The missing one may be on its way by another queue.
    expect([sweep(), sweep()]).toEqual([0, 1])
    await subject.deliver({ headers: { device_id: "nobody" } })
    expect([sweep(), sweep()]).toEqual([1, 2])
    expect(subject.counters.gapsGivenUpEarly).toBe(2)
    // One that waits for something else will make room.
    subject.connection.atGap = false
    expect(sweep()).toBe(2)
  })
})

describe("commands that all wait for replies or for a device that takes no bytes", () => {
  test("and fill the prefetch of their queue end after five seconds, a quarter in one sweep", async () => {
    const subject = await new Subject().start()
    subject.connection.isStuck = true
    const deliver = () => subject.deliver({ headers: { connection_id: OWN } })
    const left = () => subject.connection.offered.length
    for (let number = 0; number < PREFETCH; number += 1) await deliver()
    subject.consumer.sweep()
    expect(left()).toBe(PREFETCH)
    subject.passedMs = 4_999
    subject.consumer.sweep()
    expect(left()).toBe(PREFETCH)
    subject.passedMs = 5_000
    subject.consumer.sweep()
    const ended = Math.ceil(PREFETCH / 4)
    expect(left()).toBe(PREFETCH - ended)
    expect(subject.counters.commandsGaveWay).toBe(ended)
    // There is room again.
    subject.consumer.sweep()
    expect(left()).toBe(PREFETCH - ended)
  })

  test("stay while one of the queue waits for neither: it will make room", async () => {
    const subject = await new Subject().start()
    for (let number = 0; number < PREFETCH; number += 1) {
      await subject.deliver({ headers: { connection_id: OWN } })
    }
    subject.passedMs = 60_000
    subject.consumer.sweep()
    expect(subject.connection.offered.length).toBe(PREFETCH)
  })
})

describe("a redelivered command by device_id", () => {
  test.each([
    ["has no id and no number", {}, 1],
    ["has an id that its connection remembers", { messageId: "known" }, 0],
    ["has an id, and the device may have had another connection", { messageId: "new" }, 1],
  ])("counts as possibly repeated when it %s: %j %i", async (_, properties, count) => {
    const subject = await new Subject().start()
    subject.connection.remembered.add("known")
    const delivery = new TestDelivery({ ...properties, headers: { device_id: "thermostat:7" } })
    await subject.redeliver(delivery)
    expect(subject.connection.offered.length).toBe(1)
    expect(subject.counters.commandsPossiblyRepeated).toBe(count)
  })
})
