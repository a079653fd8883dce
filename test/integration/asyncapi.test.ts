/**
 * Messages of a gateway with a real broker, as a plain AMQP client gets them, against
 * docs/asyncapi.yaml: each header, property and field of a payload must be described.
 */

import { afterAll, beforeAll, expect, test } from "bun:test"
import { AMQPClient, type AMQPMessage, type AMQPProperties } from "@cloudamqp/amqp-client"
import { helloLine } from "../../src/device/hello.ts"
import { MESSAGES } from "../support/asyncapi.ts"
import {
  type DescribedMessage,
  describedMessage,
  messageFault,
} from "../support/described-messages.ts"
import { ownQueues, startGateway, type TestGateway } from "../support/gateway.ts"
import { sharedRabbitMq, type TestBroker, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice, type TestDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 60_000
const SECRET = "a-secret-of-the-tests-0123456789"
const TRACE = { traceparent: "00-4bf92f35-00f067aa-01", tracestate: "a=1" }
const name = uniqueNames("asyncapi")
const queues = ownQueues(name)
const names = { there: name("there"), away: name("away") }

let broker: TestBroker
let gateway: TestGateway
let client: AMQPClient
let channel: Awaited<ReturnType<AMQPClient["channel"]>>
let receipts = ""
let device: TestDevice
const got = {
  line: [] as AMQPMessage[],
  receipt: [] as AMQPMessage[],
  undelivered: [] as AMQPMessage[],
  presence: [] as AMQPMessage[],
}

beforeAll(async () => {
  broker = await sharedRabbitMq()
  gateway = await startGateway({
    ...{ AMQP_URL: broker.url, WORKERS: "1", ...queues },
    ...{ DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET },
  })
  await gateway.ready()
  client = new AMQPClient(broker.url)
  await client.connect()
  channel = await client.channel()
  await channel.confirmSelect()
  const presence = await channel.queueDeclare("", { exclusive: true })
  await channel.queueBind(presence.name, "owsla.presence", "device.*")
  receipts = (await channel.queueDeclare("", { exclusive: true })).name
  const consume = (queue: string, into: AMQPMessage[]) =>
    channel.basicConsume(queue, { noAck: true }, (message) => void into.push(message))
  await consume(presence.name, got.presence)
  await consume(receipts, got.receipt)
  await consume(queues.FROM_DEVICE_QUEUE, got.line)
  await consume(queues.UNDELIVERED_QUEUE, got.undelivered)
  device = await connect(names.there)
}, LIMIT_MS)

afterAll(async () => {
  device?.end()
  await client?.close()
  await gateway?.stop()
}, LIMIT_MS)

async function connect(id: string): Promise<TestDevice> {
  const connected = await connectDevice({ port: gateway.devicePort })
  await connected.send(helloLine(id, SECRET))
  return connected
}

async function publish(
  exchange: string,
  key: string,
  body: string,
  properties: AMQPProperties,
): Promise<void> {
  await channel.basicPublish(exchange, key, body, { replyTo: receipts, ...properties })
}

function send(
  headers: Record<string, string | number | boolean | string[]>,
  properties: AMQPProperties = {},
) {
  const all = { headers: { ...headers, ...TRACE }, ...properties }
  const command = { headers: all.headers, properties: {}, body: new Uint8Array() }
  expect(messageFault(MESSAGES.command, command)).toBeNull()
  return publish("", queues.TO_DEVICE_QUEUE, "open", all)
}

/** The message with this correlation id. */
function receiptOf(correlationId: string): Promise<DescribedMessage> {
  const found = () =>
    got.receipt.find(({ properties }) => properties.correlationId === correlationId)
  return until(found, { what: `the receipt ${correlationId}` }).then(describedMessage)
}

function payload({ body }: DescribedMessage): Record<string, unknown> {
  return JSON.parse(Buffer.from(body).toString())
}

test(
  "a line, and one that answers a command, with its receipt",
  async () => {
    await device.send("hello")
    await until(() => got.line.length === 1, { what: "the line" })
    const about = { messageId: "m1", correlationId: "answered" }
    await send({ device_id: names.there, reply_token: "r1" }, about)
    expect(await device.nextLine()).toBe("open")
    await device.send("r1 on")
    await until(() => got.line.length === 2, { what: "the line that answers" })
    const [first, second] = got.line.map(describedMessage)
    if (first === undefined || second === undefined) throw new Error("two lines were consumed")
    expect(messageFault(MESSAGES.line, first, "closed")).toBeNull()
    expect(first.headers).not.toContainKey("in_reply_to")
    expect(messageFault(MESSAGES.line, second, "closed")).toBeNull()
    expect(second.headers).toMatchObject({ in_reply_to: "m1", ...TRACE })
    const receipt = await receiptOf("answered")
    expect(payload(receipt)).toMatchObject({ outcome: "answered", reply: { line: "r1 on" } })
    expect(messageFault(MESSAGES.receipt, receipt, "closed")).toBeNull()
  },
  LIMIT_MS,
)

test(
  "a command that was not written: its copy and its receipt",
  async () => {
    const userId = decodeURIComponent(new URL(broker.url).username)
    const headers = { device_id: names.away, CC: ["nowhere"], more: 1, to_device_seq: 0 }
    await send(headers, { correlationId: "offline", userId, expiration: "30000" })
    const receipt = await receiptOf("offline")
    expect(payload(receipt)).toMatchObject({ outcome: "offline" })
    expect(messageFault(MESSAGES.receipt, receipt, "closed")).toBeNull()
    const [copy] = got.undelivered.map(describedMessage)
    if (copy === undefined) throw new Error("no copy of the command")
    expect(messageFault(MESSAGES.undelivered, copy)).toBeNull()
    const kept = Object.keys(copy.headers).filter((header) => header.startsWith("owsla-"))
    const described = Object.keys(MESSAGES.undelivered.headers.properties ?? {})
    expect(kept.filter((header) => !described.includes(header))).toEqual([])
    expect(kept).toEqual(expect.arrayContaining(["owsla-outcome", "owsla-cc", "owsla-user-id"]))
  },
  LIMIT_MS,
)

test(
  "a command that was held: one receipt when it was written",
  async () => {
    await send({ device_id: names.away, hold_ms: 60_000 }, { correlationId: "held" })
    const isHeld = async () => (await gateway.metric("owsla_held_commands")) === 1
    await until(isHeld, { what: "the command to be held" })
    const away = await connect(names.away)
    expect(await away.nextLine()).toBe("open")
    const receipt = await receiptOf("held")
    expect(payload(receipt)).toMatchObject({ outcome: "written" })
    expect(messageFault(MESSAGES.receipt, receipt, "closed")).toBeNull()
    away.end()
  },
  LIMIT_MS,
)

test(
  "a broadcast, and one that is not valid: their receipts",
  async () => {
    const headers = { to_ids: [names.there], per_s: 10, ...TRACE }
    const command = { headers, properties: {}, body: new Uint8Array() }
    expect(messageFault(MESSAGES.broadcast, command)).toBeNull()
    await publish("owsla.broadcast", "", "all", { headers, correlationId: "broadcast" })
    expect(await device.nextLine()).toBe("all")
    const receipt = await receiptOf("broadcast")
    expect(payload(receipt)).toMatchObject({ matched: 1, outcomes: { written: 1 } })
    expect(messageFault(MESSAGES.broadcastReceipt, receipt, "closed")).toBeNull()
    await publish("owsla.broadcast", "", "all", { headers: TRACE, correlationId: "refused" })
    const refused = await receiptOf("refused")
    expect(payload(refused)).toMatchObject({ outcome: "invalid" })
    expect(messageFault(MESSAGES.receipt, refused, "closed")).toBeNull()
  },
  LIMIT_MS,
)

test(
  "presence: a device that has connected and disconnected",
  async () => {
    const of = (key: string) =>
      got.presence.filter(
        (message) =>
          message.routingKey === key &&
          payload(describedMessage(message))["device_id"] === names.away,
      )
    const disconnected = await until(() => of("device.disconnected")[0], {
      what: "the device to disconnect",
    })
    const [connected] = of("device.connected")
    if (connected === undefined) throw new Error("no event that the device has connected")
    expect(messageFault(MESSAGES.connected, describedMessage(connected))).toBeNull()
    expect(messageFault(MESSAGES.disconnected, describedMessage(disconnected))).toBeNull()
    for (const event of [connected, disconnected])
      expect(event.properties.headers ?? {}).toEqual({})
  },
  LIMIT_MS,
)
