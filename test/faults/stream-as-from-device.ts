/**
 * A stream that the operator declared as `from_device`: the gateway uses it as it is, and a
 * back-end reads it from its first message on, by offset.
 */

import { expect } from "bun:test"
import { AMQPClient, type AMQPMessage } from "@cloudamqp/amqp-client"
import { AmqpProxy } from "../support/amqp-proxy.ts"
import { ownQueues, startGateway } from "../support/gateway.ts"
import type { TestBroker } from "../support/rabbitmq.ts"
import { uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"
import { fault, sized } from "./fault.ts"

const DEVICES = 20
const LINES = sized(5_000, 200)

interface StreamLine {
  readonly connection: string
  readonly seq: number
  readonly body: string
  readonly offset: number
}

/** Declares the fault. */
export function streamAsFromDevice(name: string, broker: () => TestBroker, limitMs: number): void {
  fault(
    {
      fault: name,
      made: "from_device declared beforehand with x-queue-type stream; connections closed halfway",
      promise: "it is used as it is, with a warning; read by offset lost 0, in order",
    },
    () => streamFault(broker()),
    limitMs,
  )
}

async function streamFault(broker: TestBroker) {
  const queues = ownQueues(uniqueNames("stream"))
  const queue = queues.FROM_DEVICE_QUEUE
  const client = new AMQPClient(broker.url)
  await client.connect()
  const channel = await client.channel()
  await channel.queueDeclare(queue, { durable: true }, { "x-queue-type": "stream" })
  const proxy = await AmqpProxy.start(broker.port)
  const url = new URL(broker.url)
  url.port = String(proxy.port)
  const gateway = await startGateway({ AMQP_URL: url.href, ...queues })
  try {
    await gateway.ready()
    expect(gateway.log.some(({ msg }) => msg.includes("other arguments"))).toBe(true)
    const devices = await Promise.all(
      Array.from({ length: DEVICES }, () => connectDevice({ port: gateway.devicePort })),
    )
    const confirmed = () => gateway.metric("owsla_lines_confirmed_total")
    const half = (from: number) =>
      Buffer.from(Array.from({ length: LINES / 2 }, (_, n) => `line ${from + n}\n`).join(""))
    await Promise.all(devices.map((device) => device.sendBytes(half(0))))
    await until(async () => (await confirmed()) > 0, { what: "lines to be confirmed" })
    proxy.closeConnections()
    await Promise.all(devices.map((device) => device.sendBytes(half(LINES / 2))))
    const sent = DEVICES * LINES
    const all = async () => (await confirmed()) === sent
    await until(all, { what: "every line to be confirmed", timeoutMs: 60_000 })
    const stay = async () => (await gateway.metric("owsla_connections")) === DEVICES
    await until(stay, { what: "every device to be there still" })
    const lines = await readStream(broker.url, queue, sent)
    expectInOrder(lines)
    for (const device of devices) device.end()
    return { "lines sent": sent, lost: 0, repeated: lines.length - sent }
  } finally {
    await gateway.stop()
    proxy.stop()
    await channel.queueDelete(queue)
    await client.close()
  }
}

/** Reads a stream from its first message until it has seen this many distinct lines. */
async function readStream(url: string, queue: string, wanted: number): Promise<StreamLine[]> {
  const client = new AMQPClient(url)
  await client.connect()
  const channel = await client.channel()
  await channel.basicQos(500)
  const lines: StreamLine[] = []
  const seen = new Set<string>()
  const take = (message: AMQPMessage) => {
    const { headers = {} } = message.properties
    const connection = String(headers["connection_id"])
    const seq = Number(headers["from_device_seq"])
    const offset = Number(headers["x-stream-offset"])
    lines.push({ connection, seq, body: message.bodyString() ?? "", offset })
    seen.add(`${connection}:${seq}`)
    void message.ack()
  }
  const from = { "x-stream-offset": "first" }
  await channel.basicConsume(queue, { noAck: false, args: from }, take)
  const read = () => seen.size === wanted
  await until(read, { what: "every line to be read", timeoutMs: 60_000 })
  await client.close()
  return lines
}

/**
 * Offsets rise, and a back-end that takes only the next number of each connection gets every line.
 */
function expectInOrder(lines: readonly StreamLine[]): void {
  const offsets = lines.map(({ offset }) => offset)
  expect(offsets).toEqual(offsets.toSorted((a, b) => a - b))
  const next = new Map<string, number>()
  for (const { connection, seq, body } of lines) {
    const expected = next.get(connection) ?? 0
    if (seq !== expected) continue
    expect(body).toBe(`line ${seq}`)
    next.set(connection, expected + 1)
  }
  expect([...next.values()]).toEqual(Array(DEVICES).fill(LINES))
}
