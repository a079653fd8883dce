/**
 * Devices that do not answer, and devices that take no bytes, get as many commands as the prefetch
 * allows. Commands to others must still be written: no back-end may stop a worker from consuming.
 */

import { afterEach, expect, test } from "bun:test"
import { createConnection } from "node:net"
import { connect as connectTls } from "node:tls"
import { ownQueues, startGateway, type TestGateway } from "../support/gateway.ts"
import { sharedRabbitMq, type TestBroker, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { pikaConsume, pikaPublish } from "../support/tools.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 60_000
const PREFETCH = 40
/** More than the 14 that the queue may have of it. */
const COMMANDS = 20
const stops: (() => unknown)[] = []

afterEach(async () => {
  for (const stop of stops.splice(0).reverse()) await stop()
}, LIMIT_MS)

interface Subject {
  readonly broker: TestBroker
  readonly gateway: TestGateway
  readonly queues: ReturnType<typeof ownQueues>
}

async function start(settings: Record<string, string> = {}): Promise<Subject> {
  const broker = await sharedRabbitMq()
  const queues = ownQueues(uniqueNames("stuck"))
  const gateway = await startGateway({
    ...{ AMQP_URL: broker.url, WORKERS: "1", PREFETCH: String(PREFETCH) },
    ...queues,
    ...settings,
  })
  stops.push(() => gateway.stop())
  await gateway.ready()
  return { broker, gateway, queues }
}

/** The connection id of the device that has sent the next line. */
async function nextConnectionId({ broker, queues }: Subject): Promise<string> {
  const [line] = await pikaConsume({ url: broker.url, queue: queues.FROM_DEVICE_QUEUE, count: 1 })
  return String(line?.headers["connection_id"])
}

async function connected(subject: Subject): Promise<{ device: TestDevice; id: string }> {
  const device = await connectDevice({ port: subject.gateway.devicePort })
  stops.push(() => device.end())
  await device.send("hello")
  return { device, id: await nextConnectionId(subject) }
}

async function publish(
  { broker, queues }: Subject,
  bodies: readonly string[],
  headers: Record<string, string | number>,
): Promise<void> {
  const routingKey = queues.TO_DEVICE_QUEUE
  const messages = bodies.map((body) => ({ routingKey, body, headers }))
  await pikaPublish({ url: broker.url, messages })
}

const manyCommands = (line: string) =>
  Array.from({ length: COMMANDS }, (_, number) => `${line} ${number}`)

test(
  "commands that wait for replies make room after five seconds",
  async () => {
    const subject = await start()
    const silent = await connected(subject)
    const other = await connected(subject)
    const asking = { connection_id: silent.id, reply_prefix: "done", reply_timeout_ms: 60_000 }
    await publish(subject, manyCommands("measure"), asking)
    await silent.device.waitLines(1)
    await publish(subject, ["open"], { connection_id: other.id })
    expect(await other.device.waitLines(1, 30_000)).toEqual(["open"])
    expect(await subject.gateway.metric("owsla_commands_total", "no_reply")).toBeGreaterThan(0)
    expect(await subject.gateway.metric("owsla_commands_gave_way_total")).toBeGreaterThan(0)
    // All are written, and a device that answers in time still has its reply.
    await silent.device.waitLines(COMMANDS, 30_000)
    await silent.device.send("done with the last one")
    await until(
      async () => (await subject.gateway.metric("owsla_commands_total", "answered")) === 1,
      { what: "the answer" },
    )
  },
  LIMIT_MS,
)

test(
  "commands for a device that takes no bytes make room long before SLOW_DEVICE_TIMEOUT_MS",
  async () => {
    const subject = await start({
      ...{ MAX_LINE_BYTES: "1048576", MAX_OUTGOING_BYTES: "67108864" },
      SLOW_DEVICE_TIMEOUT_MS: "600000",
    })
    const id = await connectedDeaf(subject)
    const other = await connected(subject)
    // More than the buffers of the kernel and of TLS take.
    await publish(subject, manyCommands("x".repeat(1_000_000)), { connection_id: id })
    await publish(subject, ["open"], { connection_id: other.id })
    expect(await other.device.waitLines(1, 45_000)).toEqual(["open"])
    expect(await subject.gateway.metric("owsla_commands_total", "slow_device")).toBeGreaterThan(0)
    // It stays connected: it may still take them.
    expect(await subject.gateway.metric("owsla_connections")).toBe(2)
  },
  LIMIT_MS,
)

/** A device that sends one line and reads nothing. */
async function connectedDeaf(subject: Subject): Promise<string> {
  const raw = createConnection({ port: subject.gateway.devicePort, host: "127.0.0.1" })
  const socket = connectTls({ socket: raw, rejectUnauthorized: false })
  stops.push(() => raw.destroy())
  socket.on("error", () => undefined)
  const { promise, resolve } = Promise.withResolvers<void>()
  socket.on("secureConnect", () => socket.write("hello\n", () => resolve()))
  await promise
  const id = await nextConnectionId(subject)
  socket.pause()
  raw.pause()
  return id
}
