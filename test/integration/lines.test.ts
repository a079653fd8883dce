/**
 * From a device to a back-end: real TLS, the real program, a real RabbitMQ. What a line becomes, in
 * which order lines come out, and what happens to bytes that are no line.
 */

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { ownQueues, startGateway, type TestGateway } from "../support/gateway.ts"
import { sharedRabbitMq, type TestBroker, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice } from "../support/tls-device.ts"
import { pikaConsume } from "../support/tools.ts"
import { until } from "../support/wait.ts"

const START_LIMIT_MS = 60_000
const name = uniqueNames("lines")
const queues = ownQueues(name)
let broker: TestBroker
let gateway: TestGateway

beforeAll(async () => {
  broker = await sharedRabbitMq()
  gateway = await startGateway({ AMQP_URL: broker.url, ...queues, DEVICE_ACK: "seq" })
  await gateway.ready()
}, START_LIMIT_MS)

afterAll(() => gateway?.stop(), START_LIMIT_MS)

function take(count: number) {
  return pikaConsume({ url: broker.url, queue: queues.FROM_DEVICE_QUEUE, count })
}

describe("a line", () => {
  test("becomes one message with every field of the contract", async () => {
    const before = Date.now()
    const device = await connectDevice({ port: gateway.devicePort })
    await device.send("temperature 21.5")
    const [message] = await take(1)
    const headers = message?.headers ?? {}
    const properties = message?.properties ?? {}
    const connectionId = String(headers["connection_id"])

    expect(message?.body.toString()).toBe("temperature 21.5")
    expect(message?.exchange).toBe("")
    expect(message?.routingKey).toBe(queues.FROM_DEVICE_QUEUE)
    expect(connectionId).toMatch(/^[A-Za-z0-9._-]{1,64}$/)
    expect(headers["device_id"]).toBe(connectionId)
    expect(headers["from_device_seq"]).toBe(0)
    expect(headers["epoch"]).toBeNumber()
    expect(Number(headers["epoch"])).toBeWithin(before - 1, Date.now() + 1)
    expect(properties["message_id"]).toBe(`${connectionId}:0`)
    expect(properties["reply_to"]).toMatch(/^owsla\.worker\..+\.[01]$/)
    expect(properties["app_id"]).toBe("owsla")
    expect(properties["delivery_mode"]).toBe(2)
    expect(Number(properties["timestamp"])).toBeWithin(
      Math.floor(before / 1000),
      Math.ceil(Date.now() / 1000) + 1,
    )
    device.end()
  })

  test("is opaque bytes: NUL, invalid UTF-8 and spaces come out as they went in", async () => {
    const device = await connectDevice({ port: gateway.devicePort })
    const bytes = Buffer.from([0, 255, 254, 32, 9, 13, 0, 32])
    await device.sendBytes(Buffer.concat([bytes, Buffer.from("\r\n")]))
    const [message] = await take(1)
    expect(message?.body.equals(bytes)).toBe(true)
    device.end()
  })

  test("of MAX_LINE_BYTES passes", async () => {
    const device = await connectDevice({ port: gateway.devicePort })
    const line = "x".repeat(65_536)
    await device.send(line)
    const [message] = await take(1)
    expect(message?.body.toString() === line).toBe(true)
    device.end()
  })

  test("that is empty shows life and is not forwarded", async () => {
    const device = await connectDevice({ port: gateway.devicePort })
    await device.sendBytes(Buffer.from("\n\r\n\nonly\n"))
    const [message] = await take(1)
    expect(message?.body.toString()).toBe("only")
    expect(message?.headers["from_device_seq"]).toBe(0)
    await until(async () => (await gateway.metric("owsla_empty_lines_total")) >= 3, {
      what: "the empty lines to be counted",
    })
    device.end()
  })

  test("is acknowledged to the device once the broker has it, with DEVICE_ACK=seq", async () => {
    const device = await connectDevice({ port: gateway.devicePort })
    for (let n = 0; n < 50; n += 1) await device.send(`line ${n}`)
    const acknowledged = await device.waitLines(50)
    expect(acknowledged).toEqual(Array.from({ length: 50 }, (_, n) => `ACK ${n}`))
    await take(50)
    device.end()
  })
})

describe("many lines", () => {
  test("come out once each and in the order of their connection", async () => {
    const devices = await Promise.all(
      Array.from({ length: 20 }, () => connectDevice({ port: gateway.devicePort })),
    )
    const each = 200
    await Promise.all(
      devices.map((device, d) =>
        device.sendBytes(
          Buffer.from(Array.from({ length: each }, (_, n) => `${d} ${n}\n`).join("")),
        ),
      ),
    )
    const messages = await take(devices.length * each)
    const next = new Map<string, number>()
    for (const { headers, body } of messages) {
      const connectionId = String(headers["connection_id"])
      const expected = next.get(connectionId) ?? 0
      expect(headers["from_device_seq"]).toBe(expected)
      expect(body.toString().split(" ")[1]).toBe(String(expected))
      next.set(connectionId, expected + 1)
    }
    expect(next.size).toBe(devices.length)
    for (const device of devices) device.end()
  })
})

describe("at the end of a connection", () => {
  test("bytes after the last LF are counted and never published", async () => {
    const before = await gateway.metric("owsla_unterminated_bytes_total")
    const device = await connectDevice({ port: gateway.devicePort })
    await device.sendBytes(Buffer.from("whole\nhalf a li"))
    const [message] = await take(1)
    expect(message?.body.toString()).toBe("whole")
    device.end()
    await until(
      async () => (await gateway.metric("owsla_unterminated_bytes_total")) === before + 9,
      { what: "nine unterminated bytes" },
    )
    expect(await broker.queueDepth(queues.FROM_DEVICE_QUEUE)).toBe(0)
  })

  test("lines sent just before it are published", async () => {
    const device = await connectDevice({ port: gateway.devicePort })
    await device.sendBytes(Buffer.from("last words 1\nlast words 2\n"))
    device.end()
    const messages = await take(2)
    expect(messages.map(({ body }) => body.toString())).toEqual(["last words 1", "last words 2"])
  })
})
