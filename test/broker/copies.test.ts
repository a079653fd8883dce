/**
 * The copies of forwarded commands: which of the deliveries that carry one command is gone on with, and
 * that every other is acknowledged, whatever is lost in between.
 */

import { describe, expect, test } from "bun:test"
import type { Delivery, MessageProperties } from "../../src/broker/broker.ts"
import { Copies } from "../../src/broker/copies.ts"

const REMEMBERED_ENDS = 65_536
const ID = "gw.1.mb2k3f9zq7.0"

class TestDelivery implements Delivery {
  readonly queue = "owsla.worker.gw.0"
  readonly body: Buffer
  readonly properties: MessageProperties = { messageId: "m" }
  readonly redelivered = true
  lost = false
  acknowledged = 0

  constructor(body = "on") {
    this.body = Buffer.from(body)
  }

  acknowledge(): void {
    this.acknowledged += 1
  }
}

/** Copies, and one in hand. */
function inHand() {
  const copies = new Copies()
  const first = new TestDelivery()
  const taken = copies.take(ID, 1, first)
  if (taken === null) throw new Error("the first delivery was taken for a copy")
  return { copies, first, taken }
}

describe("a command that is new", () => {
  test("is gone on with as it came", () => {
    const { first, taken } = inHand()
    const { queue, body, properties, redelivered, lost } = taken
    expect({ queue, body, properties, redelivered, lost }).toEqual({
      queue: first.queue,
      body: first.body,
      properties: first.properties,
      redelivered: true,
      lost: false,
    })
    expect(first.acknowledged).toBe(0)
  })

  test("is acknowledged by whoever has ended it", () => {
    const { first, taken } = inHand()
    taken.acknowledge()
    expect(first.acknowledged).toBe(1)
  })

  test("is told to be lost when its delivery is", () => {
    const { first, taken } = inHand()
    first.lost = true
    expect(taken.lost).toBe(true)
  })
})

describe("a copy", () => {
  test("of what is in hand is acknowledged and ignored", () => {
    const { copies, first } = inHand()
    const copy = new TestDelivery()
    expect(copies.take(ID, 1, copy)).toBeNull()
    expect([first.acknowledged, copy.acknowledged]).toEqual([0, 1])
  })

  test("of what has ended is acknowledged and ignored, however many come", () => {
    const { copies, first, taken } = inHand()
    taken.acknowledge()
    for (let n = 0; n < 3; n += 1) {
      const copy = new TestDelivery()
      expect(copies.take(ID, 1, copy)).toBeNull()
      expect(copy.acknowledged).toBe(1)
    }
    expect(first.acknowledged).toBe(1)
  })

  test("is none when it has another id", () => {
    const { copies } = inHand()
    expect(copies.take("gw.1.mb2k3f9zq7.1", 1, new TestDelivery())).not.toBeNull()
  })

  test("is none when it comes by on another hop, after its device", () => {
    const { copies, taken } = inHand()
    taken.acknowledge()
    const again = new TestDelivery()
    expect(copies.take(ID, 3, again)).not.toBeNull()
    expect(again.acknowledged).toBe(0)
  })

  test("is none when another's id and hops only read alike", () => {
    const copies = new Copies()
    expect(copies.take("a", 11, new TestDelivery())).not.toBeNull()
    expect(copies.take("a 1", 1, new TestDelivery())).not.toBeNull()
    expect(copies.take("a1", 1, new TestDelivery())).not.toBeNull()
  })
})

describe("a delivery that was lost", () => {
  test("and came again is gone on with by the new one, once", () => {
    const { copies, first, taken } = inHand()
    first.lost = true
    const again = new TestDelivery()
    expect(copies.take(ID, 1, again)).toBeNull()
    expect([taken.lost, again.acknowledged]).toEqual([false, 0])
    taken.acknowledge()
    expect([first.acknowledged, again.acknowledged]).toEqual([0, 1])
  })

  test("and came twice is acknowledged for the second", () => {
    const { copies, first } = inHand()
    first.lost = true
    const [again, copy] = [new TestDelivery(), new TestDelivery()]
    copies.take(ID, 1, again)
    expect(copies.take(ID, 1, copy)).toBeNull()
    expect([again.acknowledged, copy.acknowledged]).toEqual([0, 1])
  })

  test("may be lost, and come, any number of times", () => {
    const { copies, first, taken } = inHand()
    let current = first
    for (let n = 0; n < 5; n += 1) {
      current.lost = true
      current = new TestDelivery()
      expect(copies.take(ID, 1, current)).toBeNull()
    }
    taken.acknowledge()
    expect([first.acknowledged, current.acknowledged]).toEqual([0, 1])
  })

  test("after its command had ended is acknowledged when it comes again", () => {
    const { copies, first, taken } = inHand()
    first.lost = true
    taken.acknowledge()
    const again = new TestDelivery()
    expect(copies.take(ID, 1, again)).toBeNull()
    expect(again.acknowledged).toBe(1)
  })

  test("and dropped begins anew when it comes again", () => {
    const { copies, first, taken } = inHand()
    first.lost = true
    copies.drop(taken)
    const again = new TestDelivery()
    const anew = copies.take(ID, 1, again)
    expect([anew === null, again.acknowledged]).toEqual([false, 0])
    anew?.acknowledge()
    expect(again.acknowledged).toBe(1)
  })
})

test("dropping a delivery that never was a forwarded command's changes nothing", () => {
  const { copies } = inHand()
  copies.drop(new TestDelivery())
  const copy = new TestDelivery()
  expect(copies.take(ID, 1, copy)).toBeNull()
  expect(copy.acknowledged).toBe(1)
})

test("the end that is longest ago is forgotten beyond the bound, and no other", () => {
  const copies = new Copies()
  const end = (id: string) => {
    const taken = copies.take(id, 1, new TestDelivery())
    taken?.acknowledge()
    return taken !== null
  }
  for (let n = 0; n <= REMEMBERED_ENDS; n += 1) end(`c${n}`)
  expect([end("c1"), end(`c${REMEMBERED_ENDS}`), end("c0")]).toEqual([false, false, true])
})
