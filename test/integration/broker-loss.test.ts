/**
 * The broker slow, cut off, mute or full while devices send: nothing that was read is lost, order
 * holds, devices stay connected and memory stays bounded.
 */

import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "bun:test"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { type PrivateBroker, startRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { type PikaMessage, pikaConsume } from "../support/tools.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 90_000
const DEVICES = 20
const LINES = 1_000
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
  await gateway.ready()
}, LIMIT_MS)

afterAll(async () => {
  await gateway?.stop()
  await broker?.dispose()
}, LIMIT_MS)

let devices: TestDevice[] = []
/** What each of these devices has sent, and what all devices of the file have. */
let sentEach = 0
let sentInAll = 0

beforeEach(async () => {
  sentEach = 0
  devices = await Promise.all(
    Array.from({ length: DEVICES }, () => connectDevice({ port: gateway.devicePort })),
  )
}, LIMIT_MS)

afterEach(async () => {
  for (const device of devices) device.terminate()
  await until(async () => (await gateway.metric("owsla_connections")) === 0, { what: "no device" })
}, LIMIT_MS)

/** Resolves when the sockets took so many more lines of each device. */
async function send(count = LINES): Promise<void> {
  const lines = Array.from({ length: count }, (_, n) => `${n} ${"x".repeat(90)}\n`).join("")
  sentEach += count
  sentInAll += count * DEVICES
  await Promise.all(devices.map((device) => device.sendBytes(Buffer.from(lines))))
}

function allConfirmed(): Promise<unknown> {
  return until(async () => (await gateway.metric("owsla_lines_confirmed_total")) === sentInAll, {
    what: `${sentInAll} lines to be confirmed`,
    timeoutMs: 60_000,
  })
}

/** Takes everything once all lines are confirmed, and checks the promise: none lost, in order. */
async function expectNothingLost(): Promise<{ repeats: number }> {
  await allConfirmed()
  expect(await gateway.metric("owsla_connections")).toBe(DEVICES)
  const count = await broker.queueDepth(queue)
  const messages = await pikaConsume({ url: broker.url, queue, count, timeoutMs: 60_000 })
  const byConnection = Map.groupBy(messages, ({ headers }) => String(headers["connection_id"]))
  expect(byConnection.size).toBe(DEVICES)
  for (const ofOne of byConnection.values()) expect(inOrder(ofOne)).toBe(sentEach)
  return { repeats: messages.length - DEVICES * sentEach }
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
    // Bursts, one as soon as the last is confirmed, so that a loss meets lines on their way.
    let flooding = true
    const flood = (async () => {
      for (; flooding; await allConfirmed()) await send(100)
    })()
    const republished = () => gateway.metric("owsla_lines_republished_total")
    for (let losses = 0; losses < 3 || (await republished()) === 0; losses += 1) {
      const connects = await gateway.metric("owsla_broker_connects_total")
      await broker.closeAllConnections("test")
      await until(
        async () => (await gateway.metric("owsla_broker_connects_total")) >= connects + 2,
        { what: "both workers to be back" },
      )
    }
    flooding = false
    await flood
    await expectNothingLost()
  },
  LIMIT_MS,
)

test(
  "a memory alarm holds the lines back, keeps the devices and loses nothing",
  async () => {
    await broker.ctl("set_vm_memory_high_watermark", "0")
    const sending = send()
    await until(async () => (await gateway.fetch("/ready")).status === 503, {
      what: "not to be ready",
    })
    expect((await gateway.fetch("/health")).status).toBe(200)
    await broker.ctl("set_vm_memory_high_watermark", "0.4")
    await sending
    const { repeats } = await expectNothingLost()
    expect(repeats).toBe(0)
  },
  LIMIT_MS,
)

test(
  "a mute broker is noticed, memory stays bounded, and nothing is lost when it speaks again",
  async () => {
    broker.pause()
    const sending = send()
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
  },
  LIMIT_MS,
)

test(
  "a queue that is deleted is declared again, and the lines that were returned arrive",
  async () => {
    await broker.ctl("delete_queue", queue)
    await send()
    await expectNothingLost()
    expect(await gateway.metric("owsla_lines_returned_total")).toBeGreaterThan(0)
  },
  LIMIT_MS,
)
