/**
 * From a back-end to a device: real RabbitMQ, the real program with two workers, real TLS. Each
 * command ends in its one outcome, told by a receipt and, where it was not written, by the
 * undelivered queue.
 */

import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test"
import { ownQueues, startGateway, type TestGateway } from "../support/gateway.ts"
import { sharedRabbitMq, type TestBroker, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { type PikaPublication, pikaConsume, pikaPublish } from "../support/tools.ts"
import { until } from "../support/wait.ts"

const START_LIMIT_MS = 60_000
/** Longer than a command takes to the worker that has its device, on a busy machine too. */
const GAP_TIMEOUT_MS = 2_000
const name = uniqueNames("commands")
const queues = ownQueues(name)
/** A queue of the gateway's that is made for it here, so that receipts have somewhere to go. */
const RECEIPTS = name("receipts")
let broker: TestBroker
let gateway: TestGateway

beforeAll(async () => {
  broker = await sharedRabbitMq()
  gateway = await startGateway({
    AMQP_URL: broker.url,
    ...queues,
    SEQ_GAP_TIMEOUT_MS: String(GAP_TIMEOUT_MS),
  })
  // Declares the queue for receipts by being a gateway of that name.
  const other = await startGateway({
    AMQP_URL: broker.url,
    WORKERS: "1",
    FROM_DEVICE_QUEUE: RECEIPTS,
    TO_DEVICE_QUEUE: name("unused"),
  })
  await gateway.ready()
  await other.ready()
  await other.stop()
}, START_LIMIT_MS)

afterAll(() => gateway?.stop(), START_LIMIT_MS)

beforeEach(async () => {
  expect(await broker.queueDepth(queues.UNDELIVERED_QUEUE)).toBe(0)
})

interface KnownDevice {
  readonly device: TestDevice
  readonly connectionId: string
  /** The queue of its worker. */
  readonly replyTo: string
}

/** A connected device and what its first line told about it. */
async function knownDevice(): Promise<KnownDevice> {
  const device = await connectDevice({ port: gateway.devicePort })
  await device.send("hello")
  const [message] = await pikaConsume({
    url: broker.url,
    queue: queues.FROM_DEVICE_QUEUE,
    count: 1,
  })
  return {
    device,
    connectionId: String(message?.headers["connection_id"]),
    replyTo: String(message?.properties["reply_to"]),
  }
}

function command(
  body: string | Uint8Array,
  headers: Record<string, unknown>,
  properties: Record<string, unknown> = {},
): PikaPublication {
  return { routingKey: queues.TO_DEVICE_QUEUE, body, headers, properties }
}

async function publish(...messages: PikaPublication[]): Promise<void> {
  const outcomes = await pikaPublish({ url: broker.url, messages })
  expect(outcomes).toEqual(messages.map(() => "confirmed" as const))
}

async function receipts(count: number): Promise<Record<string, unknown>[]> {
  const messages = await pikaConsume({ url: broker.url, queue: RECEIPTS, count })
  return messages
    .sort((a, b) => Number(a.properties["correlation_id"]) - Number(b.properties["correlation_id"]))
    .map(({ body }) => JSON.parse(body.toString()))
}

function undelivered(count: number) {
  return pikaConsume({ url: broker.url, queue: queues.UNDELIVERED_QUEUE, count })
}

function send(id: string, line: string): Promise<Response> {
  const headers = { "content-type": "text/plain" }
  return gateway.fetch(`/devices/${id}/send`, { method: "POST", headers, body: line })
}

/** Checks that the device got these lines and no other: sends one more line and waits for it. */
async function expectLines(device: TestDevice, connectionId: string, lines: readonly string[]) {
  expect((await send(connectionId, "after")).status).toBe(200)
  expect(await device.waitLines(lines.length + 1)).toEqual([...lines, "after"])
}

describe("a command reaches its device", () => {
  test("by connection id, by device id and by the worker's own queue", async () => {
    const { device, connectionId, replyTo } = await knownDevice()
    await publish(command("by connection", { connection_id: connectionId }))
    expect(await device.nextLine()).toBe("by connection")
    await publish(command("by device", { device_id: connectionId }))
    expect(await device.nextLine()).toBe("by device")
    await publish({ routingKey: replyTo, body: "direct", headers: { connection_id: connectionId } })
    expect(await device.nextLine()).toBe("direct")
    device.end()
  })

  test("whichever worker takes it from the queue", async () => {
    const devices = await Promise.all(
      Array.from({ length: 8 }, () => connectDevice({ port: gateway.devicePort })),
    )
    await Promise.all(devices.map((device, index) => device.send(String(index))))
    const messages = await pikaConsume({
      url: broker.url,
      queue: queues.FROM_DEVICE_QUEUE,
      count: devices.length,
    })
    const commands = messages.flatMap(({ headers, body }) =>
      Array.from({ length: 10 }, (_, n) =>
        command(`${body} ${n}`, { connection_id: headers["connection_id"], to_device_seq: n }),
      ),
    )
    await publish(...commands)
    for (const [index, device] of devices.entries()) {
      expect(await device.waitLines(10)).toEqual(
        Array.from({ length: 10 }, (_, n) => `${index} ${n}`),
      )
      device.end()
    }
    await until(async () => (await gateway.metric("owsla_commands_forwarded_total")) > 0, {
      what: "a command to be forwarded",
    })
  })

  test("forwarded to another worker, however far away its expiration is", async () => {
    const devices = await Promise.all(
      Array.from({ length: 6 }, () => connectDevice({ port: gateway.devicePort })),
    )
    await Promise.all(devices.map((device, index) => device.send(String(index))))
    const messages = await pikaConsume({
      url: broker.url,
      queue: queues.FROM_DEVICE_QUEUE,
      count: devices.length,
    })
    const losses = await gateway.metric("owsla_broker_losses_total")
    // A timestamp in milliseconds, as some back-ends write it, is 50,000 years ahead.
    const properties = { timestamp: Date.now(), expiration: "60000" }
    const each = 8
    const commands = messages.flatMap(({ headers }) =>
      Array.from({ length: each }, () =>
        command("far", { connection_id: headers["connection_id"] }, properties),
      ),
    )
    await publish(...commands)
    for (const device of devices) {
      await device.waitLines(each)
      device.end()
    }
    await until(async () => (await gateway.metric("owsla_broker_losses_total")) === losses, {
      what: "no connection to be lost",
    })
  })

  test("as its bytes and one LF, nothing else", async () => {
    const { device, connectionId } = await knownDevice()
    const bytes = Buffer.from([0, 255, 9, 32, 0])
    await publish(command(bytes, { connection_id: connectionId }))
    await device.waitLines(1)
    expect(Buffer.from(device.lineBytes[0] ?? []).equals(bytes)).toBe(true)
    expect(device.rest.length).toBe(0)
    device.end()
  })

  test("and its receipt tells so", async () => {
    const { device, connectionId } = await knownDevice()
    await publish(
      command("x", { connection_id: connectionId }, { reply_to: RECEIPTS, correlation_id: "7" }),
    )
    const [message] = await pikaConsume({ url: broker.url, queue: RECEIPTS, count: 1 })
    expect(message?.properties["correlation_id"]).toBe("7")
    const told = JSON.parse(String(message?.body))
    expect(Object.keys(told)).toEqual([
      "outcome",
      "device_id",
      "connection_id",
      "epoch",
      "at",
      "detail",
    ])
    expect(told).toMatchObject({
      outcome: "written",
      device_id: connectionId,
      connection_id: connectionId,
    })
    device.end()
  })
})

describe("numbered commands", () => {
  test("end as late or duplicate when their number was given up or used", async () => {
    const { device, connectionId } = await knownDevice()
    const numbered = (n: number) =>
      command(
        `${n}`,
        { connection_id: connectionId, to_device_seq: n },
        { reply_to: RECEIPTS, correlation_id: "0" },
      )
    const gaps = await gateway.metric("owsla_gaps_skipped_total")
    await publish(numbered(0), numbered(2))
    expect(await device.waitLines(2)).toEqual(["0", "2"])
    await until(async () => (await gateway.metric("owsla_gaps_skipped_total")) === gaps + 1, {
      what: "one gap to be given up",
    })
    expect((await receipts(2)).map(({ outcome }) => outcome)).toEqual(["written", "written"])
    await publish(numbered(1))
    expect((await receipts(1))[0]?.["outcome"]).toBe("late")
    await publish(numbered(2))
    expect((await receipts(1))[0]?.["outcome"]).toBe("duplicate")
    const [late] = await undelivered(1)
    expect(late?.headers).toMatchObject({ "owsla-outcome": "late", to_device_seq: 1 })
    await expectLines(device, connectionId, ["0", "2"])
    device.end()
  })
})

describe("a number more than 1,000,000 beyond the next", () => {
  test("makes the command invalid, and the connection's numbering goes on", async () => {
    const { device, connectionId } = await knownDevice()
    const numbered = (n: string | number) =>
      command(
        `${n}`,
        { connection_id: connectionId, to_device_seq: n },
        { reply_to: RECEIPTS, correlation_id: String(n) },
      )
    const gaps = await gateway.metric("owsla_gaps_skipped_total")
    const last = String(2 ** 53 - 1)
    await publish(numbered(0), numbered(last), numbered(1_000_002))
    const [, far, farthest] = await receipts(3)
    for (const [receipt, n] of [
      [far, 1_000_002],
      [farthest, last],
    ] as const) {
      const detail = `to_device_seq ${n} is more than 1000000 beyond the next number, `
      expect(receipt).toMatchObject({ outcome: "invalid", connection_id: connectionId })
      expect(receipt?.["detail"]).toStartWith(detail)
    }
    expect((await undelivered(2)).map(({ headers }) => headers["owsla-outcome"])).toEqual([
      "invalid",
      "invalid",
    ])
    await publish(numbered(1), numbered(2))
    expect((await receipts(2)).map(({ outcome }) => outcome)).toEqual(["written", "written"])
    expect(await gateway.metric("owsla_gaps_skipped_total")).toBe(gaps)
    await expectLines(device, connectionId, ["0", "1", "2"])
    device.end()
  })
})

describe("a command that cannot be written", () => {
  test("is kept with its outcome, its headers and its properties, and its receipt tells so", async () => {
    const { device, connectionId } = await knownDevice()
    const asks = (n: number) => ({ reply_to: RECEIPTS, correlation_id: String(n) })
    const past = Math.floor(Date.now() / 1000) - 60
    await publish(
      command("nobody", { device_id: "nobody", note: "mine" }, { ...asks(0), message_id: "m-0" }),
      command("gone", { connection_id: `${connectionId}zzz` }, asks(1)),
      command("a\nb", { connection_id: connectionId }, asks(2)),
      command("no id", {}, asks(3)),
      command("odd id", { device_id: "a b" }, asks(4)),
      command("odd number", { connection_id: connectionId, to_device_seq: "1.5" }, asks(5)),
      command("negative", { connection_id: connectionId, to_device_seq: -1 }, asks(6)),
      command(Buffer.alloc(65_537, "x"), { connection_id: connectionId }, asks(7)),
      command(Buffer.alloc(1_000_000, "x"), { connection_id: connectionId }, asks(8)),
      command(
        "old",
        { connection_id: connectionId },
        { ...asks(9), timestamp: past, expiration: "5000" },
      ),
    )
    const outcomes = (await receipts(10)).map(({ outcome }) => outcome)
    expect(outcomes).toEqual([
      "offline",
      "offline",
      "invalid",
      "invalid",
      "invalid",
      "invalid",
      "invalid",
      "too_large",
      "too_large",
      "expired",
    ])
    const kept = await undelivered(10)
    const byCorrelation = new Map(kept.map((m) => [Number(m.properties["correlation_id"]), m]))
    for (const [n, outcome] of outcomes.entries()) {
      expect(byCorrelation.get(n)?.headers["owsla-outcome"]).toBe(outcome)
      expect(byCorrelation.get(n)?.headers["owsla-detail"]).toBeString()
    }
    const first = byCorrelation.get(0)
    expect(first?.body.toString()).toBe("nobody")
    expect(first?.headers).toMatchObject({ device_id: "nobody", note: "mine" })
    expect(first?.properties["message_id"]).toBe("m-0")
    expect(byCorrelation.get(8)?.body.length).toBe(1_000_000)
    await expectLines(device, connectionId, [])
    device.end()
  })
})

describe("the same message id", () => {
  test("is written once", async () => {
    const { device, connectionId } = await knownDevice()
    const twice = command(
      "once",
      { connection_id: connectionId },
      { message_id: "order-1", reply_to: RECEIPTS, correlation_id: "0" },
    )
    await publish(twice)
    await receipts(1)
    await publish(twice)
    expect((await receipts(1))[0]?.["outcome"]).toBe("duplicate")
    await expectLines(device, connectionId, ["once"])
    device.end()
  })
})

describe("POST /devices/:id/send", () => {
  test("reaches the device from whichever worker answers", async () => {
    const { device, connectionId } = await knownDevice()
    for (let n = 0; n < 10; n += 1) {
      const answer = await send(connectionId, `http ${n}`)
      expect(await answer.json()).toEqual({
        outcome: "written",
        connection_id: connectionId,
        epoch: expect.any(Number),
      })
    }
    expect(await device.waitLines(10)).toEqual(Array.from({ length: 10 }, (_, n) => `http ${n}`))
    device.end()
  })

  test("answers 404 for a device that is not there and keeps the command", async () => {
    const answer = await send("nobody", "x")
    expect(answer.status).toBe(404)
    expect(await answer.json()).toMatchObject({ error: { code: "offline" } })
    const [kept] = await undelivered(1)
    expect(kept?.headers).toMatchObject({ device_id: "nobody", "owsla-outcome": "offline" })
  })
})
