/** Commands with `hold_ms` at the consumer: which of them go to their keeper. */

import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test"
import { workerQueue } from "../../src/broker/topology.ts"
import { HERE, NOW_MS, OTHER_QUEUE, OWN, REPLIES, Subject, settled } from "./consumer-subject.ts"

const HOLD = { headers: { device_id: "lock:1", hold_ms: 1_000 } }
const HELD = {
  headers: {
    ...{ connection_id: OWN, device_id: "thermostat:7", hold_ms: 1_000 },
    ...{ "owsla-command": "gw.1.x.y.0", "owsla-hops": 1, "owsla-held": true },
  },
  replyTo: REPLIES,
  correlationId: "random",
}

beforeEach(() => {
  jest.useFakeTimers()
})

afterEach(() => {
  jest.useRealTimers()
})

async function started(keeperQueue: string | null): Promise<Subject> {
  const subject = await new Subject().start()
  subject.keeperQueue = keeperQueue
  return subject
}

describe("a command for a device that no worker holds", () => {
  test("goes to the worker that keeps its shard, which is asked to hold it", async () => {
    const subject = await started(OTHER_QUEUE)
    const delivery = await subject.deliver(HOLD)
    const [forward] = subject.forwarded()
    expect(forward?.properties.headers).toMatchObject({ hold_ms: 1_000, "owsla-hold": true })
    expect(delivery.acknowledged).toBe(1)
    expect(subject.kept()).toEqual([])
  })

  test("is held here when this worker keeps its shard, and acknowledged once it is stored", async () => {
    const subject = await started(workerQueue(HERE))
    const delivery = await subject.deliver(HOLD)
    const [request] = subject.held
    expect(request).toMatchObject({ holdMs: 1_000, redelivered: false })
    expect(request?.command).toMatchObject({ deviceId: "lock:1", messageId: null })
    expect(delivery.acknowledged).toBe(0)
    request?.stored(NOW_MS + 1_000)
    await settled()
    expect(delivery.acknowledged).toBe(1)
  })

  test("waits while no keeper is known", async () => {
    const subject = await started(null)
    const delivery = await subject.deliver(HOLD)
    expect(delivery.acknowledged).toBe(0)
    subject.keeperQueue = OTHER_QUEUE
    subject.consumer.sweep()
    await settled()
    expect(delivery.acknowledged).toBe(1)
    expect(subject.forwarded()).toHaveLength(1)
  })

  test("is offline without hold_ms", async () => {
    const subject = await started(OTHER_QUEUE)
    await subject.deliver({ headers: { device_id: "lock:1" } })
    expect(subject.kept().map(([outcome]) => outcome)).toEqual(["offline"])
  })

  test("ends as the keeper says", async () => {
    const subject = await started(workerQueue(HERE))
    const delivery = await subject.deliver({ ...HOLD, replyTo: REPLIES })
    subject.held[0]?.refused("hold_full", "too many")
    await settled()
    expect(subject.receipts()).toMatchObject([{ outcome: "hold_full", detail: "too many" }])
    expect(subject.kept()).toEqual([["hold_full", "too many"]])
    expect(delivery.acknowledged).toBe(1)
  })
})

describe("a command that waits at a connection that ends", () => {
  test("is held, unless bytes of it were offered", async () => {
    const subject = await started(workerQueue(HERE))
    const headers = { device_id: "thermostat:7", hold_ms: 1_000 }
    await subject.deliver({ headers })
    await subject.deliver({ headers })
    const [, second] = subject.connection.offered
    if (second !== undefined) second.isOffered = true
    subject.connection.settle("closed")
    subject.connection.settle("closed")
    await settled()
    expect(subject.held).toHaveLength(1)
    expect(subject.kept().map(([outcome]) => outcome)).toEqual(["closed"])
  })
})

describe("a held command that its keeper forwards", () => {
  test("has a receipt that tells whether bytes were offered, and no copy", async () => {
    const subject = await started(OTHER_QUEUE)
    await subject.deliver(HELD)
    expect(subject.connection.offered).toMatchObject([{ wasHeld: true }])
    subject.connection.settle("closed")
    await settled()
    expect(subject.receipts()).toMatchObject([{ outcome: "closed", offered: false }])
    expect(subject.kept()).toEqual([])
    expect(subject.counters.commandsSettled.closed).toBe(0)
  })

  test("is not written again when it is repeated, and its receipt is sent again", async () => {
    const subject = await started(OTHER_QUEUE)
    await subject.deliver(HELD)
    subject.connection.settle("written")
    await settled()
    const again = { ...HELD, headers: { ...HELD.headers, "owsla-hops": 2 } }
    const delivery = await subject.deliver(again)
    expect(delivery.acknowledged).toBe(1)
    expect(subject.connection.offered).toEqual([])
    expect(subject.receipts().map(({ outcome }) => outcome)).toEqual(["written", "written"])
  })
})

test("hold_ms is for devices, and without a number", async () => {
  const subject = await started(OTHER_QUEUE)
  await subject.deliver({ headers: { connection_id: OWN, hold_ms: 1 } })
  await subject.deliver({ headers: { device_id: OWN, hold_ms: 1 } })
  await subject.deliver({ headers: { device_id: "lock:1", hold_ms: 1, to_device_seq: 0 } })
  await subject.deliver({ headers: { device_id: "lock:1", hold_ms: 60_001 } })
  expect(subject.kept().map(([outcome]) => outcome)).toEqual(Array(4).fill("invalid"))
})

test("a back-end cannot pass a command off as held, or have a worker hold it at once", async () => {
  const subject = await started(OTHER_QUEUE)
  const forged = { ...HOLD.headers, "owsla-hold": true, "owsla-held": true }
  await subject.deliverFromAnybody({ headers: { ...forged, device_id: "thermostat:7" } })
  expect(subject.connection.offered).toMatchObject([{ wasHeld: false }])
})

describe("commands that wait for held ones", () => {
  /** They fill the prefetch of their queue. */
  async function waiting(): Promise<Awaited<ReturnType<typeof started>>> {
    const subject = await started(OTHER_QUEUE)
    subject.connection.heldBack = true
    for (let n = 0; n < 4; n += 1) await subject.deliver({ headers: { device_id: "thermostat:7" } })
    return subject
  }

  test("are released when they fill the prefetch of their queue for long", async () => {
    const subject = await waiting()
    subject.consumer.sweep()
    subject.passedMs = 4_999
    subject.consumer.sweep()
    expect(subject.connection.heldBackReleased).toBe(0)
    subject.passedMs = 5_000
    subject.consumer.sweep()
    expect(subject.connection.heldBackReleased).toBe(1)
  })

  test("wait for their own replies as long as others do once they are released", async () => {
    const subject = await waiting()
    subject.passedMs = 5_000
    subject.consumer.sweep()
    subject.connection.heldBack = false
    subject.connection.isStuck = true
    subject.passedMs = 9_999
    subject.consumer.sweep()
    expect(subject.counters.commandsGaveWay).toBe(0)
    subject.passedMs = 10_000
    subject.consumer.sweep()
    expect(subject.counters.commandsGaveWay).toBe(1)
  })
})
