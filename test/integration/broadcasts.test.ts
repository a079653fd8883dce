/**
 * Broadcasts over a real broker: two instances with two workers each, devices on both, asked by
 * HTTP and by the programs of others. And what happens when an instance is killed or stopped
 * meanwhile.
 */

import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test"
import { TestFleet } from "../support/fleet.ts"
import type { TestGateway } from "../support/gateway.ts"
import type { TestDevice } from "../support/tls-device.ts"
import { amqpPublish, pikaConsume, pikaPublish } from "../support/tools.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 60_000
const SEND_TIMEOUT_MS = 2_000
const EXCHANGE = "owsla.broadcast"
const WORKERS = 4
let fleet: TestFleet
let prefix = ""
let tests = 0

interface Counts {
  readonly workers: number
  readonly matched: number
  readonly outcomes: Readonly<Record<string, number>>
  readonly unfinished?: number
}

async function startFleet(): Promise<TestFleet> {
  return TestFleet.start(2, { SEND_TIMEOUT_MS: String(SEND_TIMEOUT_MS) })
}

/** Devices whose ids have a prefix of this test, by turns on both instances. */
async function devices(count: number): Promise<TestDevice[]> {
  const names = Array.from({ length: count }, (_, n) => [`${prefix}${n}`, n % 2] as const)
  const admitted = await Promise.all(names.map(([name, at]) => fleet.admit(at, name)))
  return admitted.map(({ device }) => device)
}

async function broadcast(gateway: TestGateway, body: object): Promise<Counts> {
  const headers = { "content-type": "application/json" }
  const request = { method: "POST", headers, body: JSON.stringify(body) }
  const response = await gateway.fetch("/broadcasts", request)
  expect(response.status).toBe(200)
  return (await response.json()) as Counts
}

async function declareReplies(): Promise<string> {
  const queue = `replies.${prefix}`
  const declare = `rabbit_amqqueue:declare(rabbit_misc:r(<<"/">>, queue, <<"${queue}">>), true, false, [], none, <<"test">>).`
  await fleet.broker.ctl("eval", declare)
  return queue
}

async function receiptFrom(queue: string): Promise<Counts & { outcome?: string }> {
  const [message] = await pikaConsume({ url: fleet.broker.url, queue, count: 1 })
  expect(message?.properties).toMatchObject({ correlation_id: "c1", type: "owsla.receipt" })
  return JSON.parse(message?.body.toString() ?? "")
}

async function publish(headers: Record<string, unknown>, replyTo: string, body = "reboot") {
  const properties = { reply_to: replyTo, correlation_id: "c1" }
  const message = { exchange: EXCHANGE, routingKey: "", body, headers, properties }
  expect(await pikaPublish({ url: fleet.broker.url, messages: [message] })).toEqual(["confirmed"])
}

beforeEach(() => {
  tests += 1
  prefix = `b${tests}:`
})

describe("a broadcast to the fleet", () => {
  beforeAll(async () => {
    fleet = await startFleet()
  }, LIMIT_MS)

  afterEach(() => fleet.releaseDevices())

  afterAll(() => fleet?.stop(), LIMIT_MS)

  test(
    "by HTTP reaches all devices of all instances, once",
    async () => {
      const all = await devices(12)
      for (const at of [0, 1]) {
        const counts = await broadcast(fleet.instance(at), { to: "all", line: `to all ${at}` })
        expect(counts).toEqual({ workers: WORKERS, matched: 12, outcomes: { written: 12 } })
      }
      for (const device of all) {
        await device.waitLines(2)
        expect(device.lines.map(String)).toEqual(["to all 0", "to all 1"])
      }
      expect(await fleet.counted("owsla_broadcasts_total")).toBe(2)
    },
    LIMIT_MS,
  )

  test(
    "by HTTP reaches those with a prefix, or with these ids, only",
    async () => {
      const all = await devices(6)
      const to = { ids: [0, 3, 9].map((n) => `${prefix}${n}`) }
      const listed = await broadcast(fleet.instance(0), { to, line: "by id" })
      expect(listed).toEqual({ workers: WORKERS, matched: 2, outcomes: { written: 2 } })
      const named = await broadcast(fleet.instance(1), { to: { prefix }, line: "by prefix" })
      expect(named).toMatchObject({ matched: 6, outcomes: { written: 6 } })
      const others = await broadcast(fleet.instance(1), { to: { prefix: "x" }, line: "to nobody" })
      expect(others).toEqual({ workers: WORKERS, matched: 0, outcomes: { written: 0 } })
      for (const [n, device] of all.entries()) {
        const expected = n === 0 || n === 3 ? ["by id", "by prefix"] : ["by prefix"]
        await device.waitLines(expected.length)
        expect(device.lines.map(String)).toEqual(expected)
      }
    },
    LIMIT_MS,
  )

  test(
    "by HTTP that takes longer than SEND_TIMEOUT_MS goes on after the answer",
    async () => {
      const all = await devices(8)
      const to = { prefix }
      const counts = await broadcast(fleet.instance(0), { to, line: "slowly", per_s: 2 })
      expect(counts).toMatchObject({ workers: WORKERS, matched: 8 })
      const { unfinished = 0, outcomes } = counts
      expect(unfinished + (outcomes["written"] ?? 0)).toBe(8)
      // At most two lines a second.
      expect(unfinished).toBeGreaterThanOrEqual(2)
      for (const device of all) await device.waitLines(1)
      expect(all.flatMap(({ lines }) => lines.map(String))).toEqual(all.map(() => "slowly"))
    },
    LIMIT_MS,
  )

  test(
    "by pika reaches its devices, and has one receipt with the counts",
    async () => {
      const all = await devices(6)
      const replies = await declareReplies()
      await publish({ to_prefix: prefix }, replies)
      expect(await receiptFrom(replies)).toEqual({
        ...{ workers: WORKERS, matched: 6, outcomes: { written: 6 } },
        ...({ at: expect.any(Number) } as object),
      })
      const ids = [1, 2].map((n) => `${prefix}${n}`)
      await publish({ to_ids: ids, per_s: 100, supersede_key: "k" }, replies, "by id")
      expect(await receiptFrom(replies)).toMatchObject({ matched: 2, outcomes: { written: 2 } })
      await Promise.all(all.map((device, n) => device.waitLines(n === 1 || n === 2 ? 2 : 1)))
      expect(all.flatMap(({ lines }) => lines)).toHaveLength(8)
    },
    LIMIT_MS,
  )

  test(
    "by a command-line publisher reaches its devices",
    async () => {
      const all = await devices(2)
      const headers = { to_ids: `${prefix}0,${prefix}1`, per_s: "50" }
      const { url } = fleet.broker
      await amqpPublish({ url, exchange: EXCHANGE, routingKey: "any", body: "by shell", headers })
      for (const device of all) {
        await device.waitLines(1)
        expect(device.lines.map(String)).toEqual(["by shell"])
      }
    },
    LIMIT_MS,
  )

  test(
    "that is not valid is kept, with a receipt",
    async () => {
      const replies = await declareReplies()
      await publish({ to: "some" }, replies, `invalid ${prefix}`)
      expect(await receiptFrom(replies)).toMatchObject({ outcome: "invalid" })
      const kept = () => fleet.backEnd.undelivered.some(({ body }) => body === `invalid ${prefix}`)
      await until(kept, { what: "the copy" })
      // A receipt there would be taken for a command.
      await publish({ to: "all" }, fleet.queues.TO_DEVICE_QUEUE, `forged ${prefix}`)
      const refused = () => fleet.backEnd.undelivered.find(({ body }) => body.startsWith("forged"))
      expect(await until(refused, { what: "the copy" })).toMatchObject({ outcome: "invalid" })
    },
    LIMIT_MS,
  )
})

describe("while a broadcast is written", () => {
  beforeEach(async () => {
    fleet = await startFleet()
  }, LIMIT_MS)

  afterEach(() => fleet.stop(), LIMIT_MS)

  test(
    "the instance that coordinates it is killed: the other one sends the receipt, and repeats no line",
    async () => {
      const all = await devices(16)
      const replies = await declareReplies()
      // Slow enough that it has not ended before the kill.
      await publish({ to_prefix: prefix, per_s: 1 }, replies)
      await until(() => all.some(({ lines }) => lines.length > 0), { what: "the first line" })
      const counted = await Promise.all(
        [0, 1].map((at) => fleet.instance(at).metric("owsla_broadcasts_total")),
      )
      const at = counted.indexOf(1)
      await fleet.kill(at)
      const receipt = await receiptFrom(replies)
      expect(receipt).toMatchObject({ matched: 8, outcomes: { written: 8 } })
      const left = all.filter((_, n) => n % 2 !== at)
      await Promise.all(left.map((device) => device.waitLines(1)))
      for (const { lines } of all) expect(lines.length).toBeLessThanOrEqual(1)
      expect(left.flatMap(({ lines }) => lines)).toHaveLength(8)
    },
    LIMIT_MS,
  )

  test(
    "an instance is stopped: it drains, and the receipt has what is unfinished",
    async () => {
      await devices(12)
      const replies = await declareReplies()
      await publish({ to_prefix: prefix, per_s: 1 }, replies)
      const begun = async () => (await fleet.counted("owsla_commands_total", "written")) > 0
      await until(begun, { what: "the first line" })
      expect(await fleet.instance(0).stop()).toBe(0)
      const { matched, outcomes, unfinished = 0 } = await receiptFrom(replies)
      expect(matched).toBe(12)
      expect(Object.values(outcomes).reduce((sum, n) => sum + n, unfinished)).toBe(12)
      expect(outcomes["written"]).toBeLessThan(12)
    },
    LIMIT_MS,
  )
})
