/**
 * Devices with length-prefixed messages: the real program, real TLS, a real RabbitMQ. What a back-end
 * gets of them, what they get of a back-end, and the example in Python.
 */

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { helloLine } from "../../src/device/hello.ts"
import { connectFramed, type FramedDevice } from "../support/framed-device.ts"
import { ownQueues, startGateway, type TestGateway, testCaFile } from "../support/gateway.ts"
import { sharedRabbitMq, type TestBroker, uniqueNames } from "../support/rabbitmq.ts"
import { pikaConsume, pikaPublish, pythonDevice } from "../support/tools.ts"
import { until, within } from "../support/wait.ts"

const LIMIT_MS = 60_000
const SECRET = "5f0c3a9be1d24768a1b0c2d3e4f56789"
const MAX_LINE_BYTES = 1_000
const ROOT = join(import.meta.dir, "../..")
const EXAMPLE = join(ROOT, "docs/examples/devices/python/device-u16.py")

describe.each([
  ["u16", 2],
  ["u32", 4],
] as const)("DEVICE_FRAMING=%s", (framing, lengthBytes) => {
  const queues = ownQueues(uniqueNames(`framing_${framing}`))
  let broker: TestBroker
  let gateway: TestGateway

  beforeAll(async () => {
    broker = await sharedRabbitMq()
    gateway = await startGateway({
      ...{ AMQP_URL: broker.url, ...queues, DEVICE_FRAMING: framing },
      ...{ DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET, DEVICE_ACK: "seq" },
      ...{ MAX_LINE_BYTES: String(MAX_LINE_BYTES), LINE_TIMEOUT_MS: "1000" },
    })
    await gateway.ready()
  }, LIMIT_MS)

  afterAll(() => gateway?.stop(), LIMIT_MS)

  const connect = () => connectFramed(lengthBytes, { port: gateway.devicePort })

  /** A device that has identified itself. */
  async function admitted(deviceId: string): Promise<FramedDevice> {
    const device = await connect()
    await device.send(helloLine(deviceId, SECRET))
    return device
  }

  const take = (count: number) =>
    pikaConsume({ url: broker.url, queue: queues.FROM_DEVICE_QUEUE, count })

  const closedAs = (reason: string) => gateway.metric("owsla_connections_closed_total", reason)

  async function expectClosed(device: FramedDevice, reason: string): Promise<void> {
    const { by } = await within(device.closed, { what: `the connection to be closed: ${reason}` })
    expect(by).toBe("peer")
    await until(async () => (await closedAs(reason)) === 1, { what: `it to be counted: ${reason}` })
  }

  test(
    "a message with LF in it is one AMQP message, and its acknowledgement is length-prefixed",
    async () => {
      const device = await admitted("lock:1")
      await device.send("temperature 21.5\r\nhumidity 40\n")
      await device.send("x".repeat(MAX_LINE_BYTES))
      const messages = await take(2)
      expect(messages.map(({ body }) => body.toString())).toEqual([
        "temperature 21.5\r\nhumidity 40\n",
        "x".repeat(MAX_LINE_BYTES),
      ])
      expect(
        messages.map(({ headers }) => [headers["device_id"], headers["from_device_seq"]]),
      ).toEqual([
        ["lock:1", 0],
        ["lock:1", 1],
      ])
      expect(await device.waitCommands(2)).toEqual(["ACK 0", "ACK 1"])
      device.end()
    },
    LIMIT_MS,
  )

  test(
    "commands with LF in them arrive length-prefixed, by AMQP and by HTTP",
    async () => {
      const device = await admitted("lock:2")
      await device.send("hello")
      await take(1)
      expect(await device.waitCommands(1)).toEqual(["ACK 0"])
      const headers = { device_id: "lock:2" }
      const body = "open\nclose\r\n"
      const message = { routingKey: queues.TO_DEVICE_QUEUE, body, headers }
      expect(await pikaPublish({ url: broker.url, messages: [message] })).toEqual(["confirmed"])
      expect(await device.waitCommands(2)).toEqual(["ACK 0", body])
      const send = (text: string) =>
        gateway.fetch("/devices/lock:2/send", {
          method: "POST",
          headers: { "content-type": "text/plain" },
          body: text,
        })
      expect((await send("\n")).status).toBe(200)
      expect((await send("")).status).toBe(200)
      expect((await send("x".repeat(MAX_LINE_BYTES + 1))).status).toBe(413)
      expect((await send("last")).status).toBe(200)
      expect(await device.waitCommands(5)).toEqual(["ACK 0", body, "\n", "", "last"])
      device.end()
    },
    LIMIT_MS,
  )

  test(
    "an empty message is counted and not published",
    async () => {
      const device = await admitted("lock:3")
      await device.sendLength(0)
      await device.send("only")
      await device.sendLength(0)
      const [message] = await take(1)
      expect([message?.body.toString(), message?.headers["from_device_seq"]]).toEqual(["only", 0])
      await until(async () => (await gateway.metric("owsla_empty_lines_total")) === 2, {
        what: "the empty messages to be counted",
      })
      device.end()
    },
    LIMIT_MS,
  )

  test(
    "a length above MAX_LINE_BYTES closes the connection before the message comes",
    async () => {
      const device = await admitted("lock:4")
      await device.sendLength(MAX_LINE_BYTES + 1)
      await expectClosed(device, "line_too_long")
      expect(await broker.queueDepth(queues.FROM_DEVICE_QUEUE)).toBe(0)
    },
    LIMIT_MS,
  )

  test(
    "a length of which a byte is missing closes the connection after LINE_TIMEOUT_MS",
    async () => {
      const device = await admitted("lock:5")
      await device.sendBytes(new Uint8Array(lengthBytes - 1))
      await expectClosed(device, "line_timeout")
    },
    LIMIT_MS,
  )

  test(
    "a HELLO with LF and without a length identifies no device",
    async () => {
      const device = await connect()
      await device.sendBytes(Buffer.from(`${helloLine("lock:6", SECRET)}\n`))
      await expectClosed(device, "not_identified")
    },
    LIMIT_MS,
  )

  if (framing === "u16")
    test(
      "the example of the documentation sends a message, prints commands and answers them",
      async () => {
        const hello = helloLine("lock:7", SECRET)
        const port = String(gateway.devicePort)
        const device = pythonDevice(EXAMPLE, ["localhost", port, testCaFile(), hello])
        const [message] = await take(1)
        expect(message?.body.toString()).toBe("temperature 21.5\nhumidity 40")
        expect(message?.headers["device_id"]).toBe("lock:7")
        expect(await device.waitLines(1)).toEqual(["b'ACK 0'"])
        const body = "open\nclose"
        const command = {
          routingKey: queues.TO_DEVICE_QUEUE,
          body,
          headers: { device_id: "lock:7" },
        }
        await pikaPublish({ url: broker.url, messages: [command] })
        const [answer] = await take(1)
        expect(answer?.body.toString()).toBe("done: open\nclose")
        expect((await device.waitLines(2))[1]).toBe("b'open\\nclose'")
        const response = await gateway.fetch("/devices/lock:7/connection", { method: "DELETE" })
        expect(response.status).toBe(200)
        const { exitCode, diagnostics } = await device.closed
        expect([exitCode, diagnostics]).toEqual([1, "the gateway closed the connection\n"])
      },
      LIMIT_MS,
    )
})

test("docs/PROTOCOL.md shows the functions of the example", () => {
  const [, shown] = /```python\n([\s\S]*?)```/.exec(
    readFileSync(join(ROOT, "docs/PROTOCOL.md"), "utf8"),
  ) ?? ["", "no Python in docs/PROTOCOL.md"]
  expect(readFileSync(EXAMPLE, "utf8")).toContain(shown ?? "")
})
