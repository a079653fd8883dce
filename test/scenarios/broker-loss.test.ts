/**
 * The broker slow, cut off, mute or full while devices send: nothing that was read is lost, order
 * holds, devices stay connected and memory stays bounded.
 */

import { afterAll, beforeAll, expect, test } from "bun:test"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { type PrivateBroker, startRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { type PikaMessage, pikaConsume } from "../support/tools.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 90_000
const DEVICES = 20
/** 40,000 lines take longer than it takes to close connections three times. */
const LINES = 2_000
const name = uniqueNames("loss")
let broker: PrivateBroker
let gateway: TestGateway
let queue: string

beforeAll(async () => {
  // Its own node: these tests pause and alarm it.
  broker = await startRabbitMq()
  queue = name("from_device")
  gateway = await startGateway({
    AMQP_URL: broker.url,
    FROM_DEVICE_QUEUE: queue,
    TO_DEVICE_QUEUE: name("to_device"),
    UNDELIVERED_QUEUE: name("undelivered"),
    CONFIRM_TIMEOUT_MS: "3000",
    // 4 MB of lines against less than one of buffers.
    PUBLISH_WINDOW_BYTES: "65536",
    MAX_HELD_BYTES: "262144",
  })
}, LIMIT_MS)

afterAll(async () => {
  await gateway?.stop()
  await broker?.dispose()
}, LIMIT_MS)

async function connectDevices(): Promise<TestDevice[]> {
  return Promise.all(
    Array.from({ length: DEVICES }, () => connectDevice({ port: gateway.devicePort })),
  )
}

function sendAll(devices: readonly TestDevice[]): Promise<unknown> {
  const lines = Array.from({ length: LINES }, (_, n) => `${n} ${"x".repeat(90)}\n`).join("")
  return Promise.all(devices.map((device) => device.sendBytes(Buffer.from(lines))))
}

/** Takes everything once all lines are confirmed, and checks the promise: none lost, in order. */
async function expectNothingLost(): Promise<{ repeats: number }> {
  await until(async () => (await gateway.metric("owsla_window_lines")) === 0, {
    what: "every line to be confirmed",
    timeoutMs: 60_000,
  })
  const count = await broker.queueDepth(queue)
  const messages = await pikaConsume({ url: broker.url, queue, count, timeoutMs: 60_000 })
  const byConnection = Map.groupBy(messages, ({ headers }) => String(headers["connection_id"]))
  expect(byConnection.size).toBe(DEVICES)
  for (const ofOne of byConnection.values()) expect(inOrder(ofOne)).toBe(LINES)
  return { repeats: messages.length - DEVICES * LINES }
}

/** How far a back-end that takes only the next number gets. */
function inOrder(messages: readonly PikaMessage[]): number {
  let next = 0
  for (const { headers } of messages) if (headers["from_device_seq"] === next) next += 1
  return next
}

test(
  "connections closed by the broker in the middle of a flood lose nothing",
  async () => {
    const devices = await connectDevices()
    const sending = sendAll(devices)
    await until(async () => (await gateway.metric("owsla_lines_in_total")) > 0, {
      what: "the flood to begin",
    })
    for (let n = 0; n < 3; n += 1) {
      const connects = await gateway.metric("owsla_broker_connects_total")
      await broker.closeAllConnections("test")
      await until(
        async () => (await gateway.metric("owsla_broker_connects_total")) >= connects + 2,
        { what: "both workers to be back" },
      )
    }
    await sending
    await expectNothingLost()
    expect(await gateway.metric("owsla_lines_republished_total")).toBeGreaterThan(0)
    expect(await gateway.metric("owsla_connections")).toBe(DEVICES)
    for (const device of devices) device.end()
  },
  LIMIT_MS,
)

test(
  "a memory alarm holds the lines back, keeps the devices and loses nothing",
  async () => {
    await broker.ctl("set_vm_memory_high_watermark", "0")
    const devices = await connectDevices()
    const sending = sendAll(devices)
    await until(async () => (await gateway.fetch("/ready")).status === 503, {
      what: "not to be ready",
    })
    expect((await gateway.fetch("/health")).status).toBe(200)
    await broker.ctl("set_vm_memory_high_watermark", "0.4")
    await sending
    const { repeats } = await expectNothingLost()
    expect(repeats).toBe(0)
    expect(await gateway.metric("owsla_connections")).toBe(DEVICES)
    for (const device of devices) device.end()
  },
  LIMIT_MS,
)

test(
  "a mute broker is noticed, memory stays bounded, and nothing is lost when it speaks again",
  async () => {
    const devices = await connectDevices()
    broker.pause()
    const sending = sendAll(devices)
    await until(() => gateway.log.some(({ msg }) => msg.includes("confirms nothing")), {
      what: "the broker to be taken for mute",
    })
    const workers = gateway.workers().size
    expect(await gateway.metric("owsla_window_bytes")).toBeLessThan(workers * (65_536 + 1_000))
    // Beyond the bound comes what one turn of the event loop had read already.
    const held = await gateway.metric("owsla_held_bytes")
    expect(held).toBeLessThan(workers * (262_144 + DEVICES * 131_072))
    expect(await gateway.metric("owsla_connections")).toBe(DEVICES)
    broker.resume()
    await sending
    await expectNothingLost()
    for (const device of devices) device.end()
  },
  LIMIT_MS,
)

test(
  "a queue that is deleted is declared again, and the lines that were returned arrive",
  async () => {
    const devices = await connectDevices()
    await broker.ctl("delete_queue", queue)
    await sendAll(devices)
    await expectNothingLost()
    expect(await gateway.metric("owsla_lines_returned_total")).toBeGreaterThan(0)
    for (const device of devices) device.end()
  },
  LIMIT_MS,
)
