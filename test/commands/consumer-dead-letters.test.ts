/** Dead letters: commands that the broker gave up. */

import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test"
import type { HeaderValue } from "../../src/broker/broker.ts"
import { WORKER_QUEUE_TTL_MS, workerQueue } from "../../src/broker/topology.ts"
import { MAX_HOPS } from "../../src/commands/routing.ts"
import {
  HERE,
  NOW_MS,
  OTHER,
  OTHER_QUEUE,
  OWN,
  REPLIES,
  SECOND_MS,
  Subject,
} from "./consumer-subject.ts"

beforeEach(() => {
  jest.useFakeTimers()
})

afterEach(() => {
  jest.useRealTimers()
})

describe("a dead letter", () => {
  const death = (queue: string, reason = "expired", expiration?: string) => {
    const original = expiration === undefined ? {} : { "original-expiration": expiration }
    return { "x-death": [{ reason, queue, count: 1, ...original }] }
  }
  const OWN_QUEUE = workerQueue(HERE)
  const LONG = String(WORKER_QUEUE_TTL_MS * 4)

  test("that expired before anybody took it ends as expired and is kept", async () => {
    const subject = await new Subject().start()
    const headers = { connection_id: OWN, ...death("to_device", "expired", "50") }
    const delivery = await subject.deliverDead({ headers, replyTo: REPLIES })
    expect(subject.kept()).toEqual([["expired", expect.stringContaining("to_device")]])
    expect(subject.receipts()).toMatchObject([{ outcome: "expired", connection_id: OWN }])
    expect([delivery.acknowledged, subject.unacknowledged.count]).toEqual([1, 0])
    const { deadLettersReceived, commandsReceived } = subject.counters
    expect([deadLettersReceived, commandsReceived]).toEqual([1, 0])
  })

  test("that was left in a worker's queue is routed again", async () => {
    const subject = await new Subject().start()
    await subject.deliverDead({ headers: { device_id: "thermostat:7", ...death(OWN_QUEUE) } })
    expect(subject.connection.offered.length).toBe(1)
    const elsewhere = death(workerQueue("gw.5"))
    const delivery = await subject.deliverDead({ headers: { connection_id: OTHER, ...elsewhere } })
    const [forwarded] = subject.forwarded()
    expect(forwarded?.properties.headers?.["x-death"]).toBeUndefined()
    expect(Number(forwarded?.properties.headers?.["owsla-hops"])).toBe(1)
    expect([delivery.acknowledged, subject.kept()]).toEqual([1, []])
  })

  test("that was left in the queue of the only worker that could take it ends as offline", async () => {
    const subject = await new Subject().start()
    const headers = { connection_id: OTHER, ...death(OTHER_QUEUE) }
    await subject.deliverDead({ headers, replyTo: REPLIES })
    expect(subject.forwarded()).toEqual([])
    expect(subject.kept()).toEqual([["offline", expect.stringContaining(OTHER_QUEUE)]])
    expect(subject.receipts()).toMatchObject([{ outcome: "offline", connection_id: OTHER }])
  })

  test("that was left in the queue of a worker that was heard since is sent there again", async () => {
    const subject = await new Subject().start()
    subject.heard.add("gw.1")
    const headers = { connection_id: OTHER, ...death(OTHER_QUEUE) }
    const delivery = await subject.deliverDead({ headers })
    expect(subject.forwarded().length).toBe(1)
    expect([delivery.acknowledged, subject.kept()]).toEqual([1, []])
  })

  const GIVEN_UP: [string, string][] = [
    ["expired", "expired"],
    ["delivery_limit", "closed"],
    ["maxlen", "closed"],
  ]
  test.each(GIVEN_UP)(
    "of a device elsewhere, given up as %s, ends at the worker that may have written it, as %s",
    async (reason, outcome) => {
      const subject = await new Subject().start()
      subject.place = { kind: "worker", worker: "gw.1" }
      const headers = { device_id: "lock:1", ...death("to_device", reason, "5000") }
      const delivery = await subject.deliverDead({ headers, replyTo: REPLIES })
      expect([delivery.acknowledged, subject.kept(), subject.receipts()]).toEqual([1, [], []])
      const [forwarded] = subject.forwarded()
      expect(forwarded?.properties.expiration).toBeUndefined()

      const holder = await new Subject().start()
      const { properties = {} } = forwarded ?? {}
      const arrived = await holder.deliver(properties)
      expect(holder.connection.offered).toEqual([])
      expect(holder.kept()).toEqual([
        [outcome, expect.stringContaining(reason === "expired" ? "to_device" : reason)],
      ])
      expect(holder.receipts()).toMatchObject([{ outcome }])
      expect([arrived.acknowledged, holder.unacknowledged.count]).toEqual([1, 0])
      // The worker was gone, and its queue dead-lettered the command.
      const orphan = { ...properties, headers: { ...properties.headers, ...death(OTHER_QUEUE) } }
      subject.place = { kind: "nowhere", detail: "nobody holds it" }
      await subject.deliverDead(orphan)
      expect(subject.kept().map(([kept]) => kept)).toEqual([outcome])
    },
  )

  test("that has been to too many workers ends as offline", async () => {
    const subject = await new Subject().start()
    const elsewhere = death(workerQueue("gw.5"))
    const headers = { connection_id: OTHER, "owsla-hops": MAX_HOPS, ...elsewhere }
    await subject.deliverDead({ headers })
    expect(subject.forwarded()).toEqual([])
    expect(subject.kept().map(([outcome]) => outcome)).toEqual(["offline"])
  })

  test("whose own time was over in a worker's queue ends as expired", async () => {
    const subject = await new Subject().start()
    const own = { device_id: "thermostat:7" }
    const at = (atMs: number) => ({ "owsla-expires-at": BigInt(atMs) })
    // Its expiration was shorter than a worker's queue waits.
    await subject.deliverDead({ headers: { ...own, ...death(OWN_QUEUE, "expired", "5000") } })
    // It was longer, but the time has come since.
    const late = { ...own, ...at(NOW_MS), ...death(OWN_QUEUE, "expired", LONG) }
    await subject.deliverDead({ headers: late })
    const timestamp = new Date(SECOND_MS - Number(LONG) - 1_000)
    await subject.deliverDead({
      headers: { ...own, ...death(OWN_QUEUE, "expired", LONG) },
      timestamp,
    })
    expect(subject.connection.offered).toEqual([])
    expect(subject.kept().map(([outcome]) => outcome)).toEqual(["expired", "expired", "expired"])
  })

  test("with time left is routed with what is left of it", async () => {
    const subject = await new Subject().start()
    const own = { device_id: "thermostat:7", ...death(OWN_QUEUE, "expired", LONG) }
    const timestamp = new Date(SECOND_MS - WORKER_QUEUE_TTL_MS)
    await subject.deliverDead({ headers: own, timestamp })
    await subject.deliverDead({ headers: { ...own, "owsla-expires-at": BigInt(NOW_MS + 7) } })
    expect(subject.connection.offered.map(({ expiresAtMs }) => expiresAtMs)).toEqual([
      SECOND_MS + 999 + Number(LONG) - WORKER_QUEUE_TTL_MS,
      NOW_MS + 7,
    ])
  })

  test("with an expiration and no timestamp has waited as long as the worker's queue lets it", async () => {
    const subject = await new Subject().start()
    // A back-end published it to that queue itself (reply_to), so nobody has noted when it expires.
    await subject.deliverDead({
      headers: { device_id: "thermostat:7", ...death(OWN_QUEUE, "expired", LONG) },
    })
    const left = Number(LONG) - WORKER_QUEUE_TTL_MS
    expect(subject.connection.offered[0]?.expiresAtMs).toBeLessThanOrEqual(NOW_MS + left)
  })

  test("that the broker gave up for another reason ends as closed, with that reason", async () => {
    const subject = await new Subject().start()
    const headers = { connection_id: OWN, ...death(OWN_QUEUE, "delivery_limit") }
    await subject.deliverDead({ headers })
    await subject.deliverDead({ headers: { connection_id: OWN, ...death("q", "maxlen") } })
    expect(subject.connection.offered).toEqual([])
    expect(subject.kept()).toEqual([
      ["closed", expect.stringContaining("delivery_limit")],
      ["closed", expect.stringContaining("maxlen")],
    ])
  })

  test("that does not say why is kept", async () => {
    const subject = await new Subject().start()
    for (const xDeath of [undefined, null, "x", [], ["x"], [null], {}, [[{}]]]) {
      const headers = { connection_id: OWN, "x-death": xDeath as HeaderValue }
      const delivery = await subject.deliverDead({ headers })
      expect(delivery.acknowledged).toBe(1)
    }
    expect(subject.kept().map(([outcome]) => outcome)).toEqual(Array(8).fill("closed"))
  })

  test("that is no command ends as invalid", async () => {
    const subject = await new Subject().start()
    await subject.deliverDead({ headers: death("to_device") })
    expect(subject.kept().map(([outcome]) => outcome)).toEqual(["invalid"])
  })
})
