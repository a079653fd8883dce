/**
 * The gateway passes on headers and properties byte for byte: real RabbitMQ, the real program, and
 * Python's pika, which has types that JavaScript does not have.
 */

import { afterAll, beforeAll, expect, test } from "bun:test"
import { AMQPClient } from "@cloudamqp/amqp-client"
import { ownQueues, startGateway, type TestGateway } from "../support/gateway.ts"
import { sharedRabbitMq, type TestBroker, uniqueNames } from "../support/rabbitmq.ts"
import { pikaConsume, pikaPublish } from "../support/tools.ts"

const LIMIT_MS = 60_000
const name = uniqueNames("types")
const queues = ownQueues(name)
/** The queue of a worker that does not exist, and the queue for receipts. */
const GHOST = `g${crypto.randomUUID().slice(0, 8)}`
const GHOSTS_QUEUE = `owsla.worker.${GHOST}.0`
const RECEIPTS = name("receipts")
let broker: TestBroker
let gateway: TestGateway

beforeAll(async () => {
  broker = await sharedRabbitMq()
  const client = new AMQPClient(broker.url)
  await client.connect()
  const channel = await client.channel()
  const args = { "x-queue-type": "quorum", "x-expires": 300_000 }
  for (const queue of [GHOSTS_QUEUE, RECEIPTS]) {
    await channel.queueDeclare(queue, { durable: true, autoDelete: false }, args)
  }
  await client.close()
  gateway = await startGateway({ AMQP_URL: broker.url, WORKERS: "1", ...queues })
  await gateway.ready()
}, LIMIT_MS)

afterAll(() => gateway?.stop(), LIMIT_MS)

/** Of each type that pika can write, and their bytes on the wire. */
const HEADERS = {
  small: -3,
  long: { pika: "long", text: "-3" },
  great: { pika: "long", text: "9007199254740993" },
  decimal: { pika: "decimal", text: "-1.25" },
  bytes: { pika: "bytes", hex: "00ff" },
  string: { pika: "string", hex: "ff41" },
  nested: { b: { a: -3 }, list: [-3, { pika: "decimal", text: "0.5" }, null, true, "é"] },
}
const ENTRIES = Buffer.concat([
  entry("small", "49 fffffffd"),
  entry("long", "6c fffffffffffffffd"),
  entry("great", "6c 0020000000000001"),
  entry("decimal", "44 02 ffffff83"),
  entry("bytes", "78 00000002 00ff"),
  entry("string", "53 00000002 ff41"),
  entry(
    "nested",
    "46 0000002d 0162 46 00000007 0161 49 fffffffd " +
      "046c697374 41 00000015 49 fffffffd 44 01 00000005 56 74 01 53 00000002 c3a9",
  ),
]).toString("hex")

function entry(name: string, value: string): Buffer {
  const bytes = Buffer.from(value.replaceAll(" ", ""), "hex")
  return Buffer.concat([Buffer.from([name.length]), Buffer.from(name), bytes])
}

/** A command for a connection that its worker does not have, or that no worker has. */
function publish(connectionId: string) {
  const properties = {
    reply_to: RECEIPTS,
    correlation_id: { pika: "bytes", hex: "fffe" },
    message_id: { pika: "bytes", hex: "80" },
    type: { pika: "bytes", hex: "c3" },
  }
  const headers = { ...HEADERS, connection_id: connectionId }
  const routingKey = queues.TO_DEVICE_QUEUE
  return pikaPublish({
    url: broker.url,
    messages: [{ routingKey, body: "a command", headers, properties }],
  })
}

/** As pika shows bytes that are not UTF-8. */
const PROPERTIES = { correlation_id: "b'\\xff\\xfe'", message_id: "b'\\x80'", type: "b'\\xc3'" }

test(
  "a command that is kept has the headers and properties that it came with, its receipt the correlation id",
  async () => {
    expect(await publish("nobody.0.0000000000.1")).toEqual(["confirmed"])
    const queue = queues.UNDELIVERED_QUEUE
    const [kept] = await pikaConsume({ url: broker.url, queue, count: 1 })
    expect(kept?.headersHex.slice(8)).toStartWith(ENTRIES)
    expect(kept?.headers["owsla-outcome"]).toBe("offline")
    expect(kept?.properties).toMatchObject(PROPERTIES)
    const [receipt] = await pikaConsume({ url: broker.url, queue: RECEIPTS, count: 1 })
    expect(receipt?.properties["correlation_id"]).toBe(PROPERTIES.correlation_id)
  },
  LIMIT_MS,
)

test(
  "a command that is forwarded has the headers and properties that it came with",
  async () => {
    expect(await publish(`${GHOST}.0.0000000000.1`)).toEqual(["confirmed"])
    const [forwarded] = await pikaConsume({ url: broker.url, queue: GHOSTS_QUEUE, count: 1 })
    expect(forwarded?.headersHex.slice(8)).toStartWith(ENTRIES)
    expect(forwarded?.headers["owsla-hops"]).toBe(1)
    expect(forwarded?.properties).toMatchObject(PROPERTIES)
  },
  LIMIT_MS,
)
