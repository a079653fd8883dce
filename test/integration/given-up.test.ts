/**
 * Commands that wait: in the reorder buffer of a connection that closes, in a queue until they
 * expire, in the queue of a worker that is no more. Each still ends in its one outcome.
 *
 * The gateway waits a minute for a missing number, so that each of these is certain and none is a
 * race.
 */

import { afterAll, beforeAll, expect, test } from "bun:test"
import { ownQueues, startGateway, type TestGateway } from "../support/gateway.ts"
import { sharedRabbitMq, type TestBroker, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice } from "../support/tls-device.ts"
import { pikaConsume, pikaPublish } from "../support/tools.ts"
import { until } from "../support/wait.ts"

const START_LIMIT_MS = 60_000
const name = uniqueNames("given-up")
const queues = ownQueues(name)
let broker: TestBroker
let gateway: TestGateway

function environment(): Record<string, string> {
  return { AMQP_URL: broker.url, WORKERS: "1", ...queues, SEQ_GAP_TIMEOUT_MS: "60000" }
}

beforeAll(async () => {
  broker = await sharedRabbitMq()
  gateway = await startGateway(environment())
  await gateway.ready()
}, START_LIMIT_MS)

afterAll(() => gateway?.stop(), START_LIMIT_MS)

async function connected() {
  const device = await connectDevice({ port: gateway.devicePort })
  await device.send("hello")
  const [line] = await pikaConsume({ url: broker.url, queue: queues.FROM_DEVICE_QUEUE, count: 1 })
  return {
    device,
    connectionId: String(line?.headers["connection_id"]),
    replyTo: String(line?.properties["reply_to"]),
  }
}

/** A command that waits for the numbers before it. */
async function publishHeld(connectionId: string): Promise<void> {
  const headers = { connection_id: connectionId, to_device_seq: 5 }
  const messages = [{ routingKey: queues.TO_DEVICE_QUEUE, body: "held", headers }]
  await pikaPublish({ url: broker.url, messages })
  await until(async () => (await gateway.metric("owsla_commands_waiting_for_number")) === 1, {
    what: "the command to wait for a number",
  })
}

async function outcomeOfNextUndelivered() {
  const queue = queues.UNDELIVERED_QUEUE
  const [kept] = await pikaConsume({ url: broker.url, queue, count: 1 })
  return { outcome: kept?.headers["owsla-outcome"], body: kept?.body.toString() }
}

test("a command that waits for a number ends as closed with its connection", async () => {
  const { device, connectionId } = await connected()
  await publishHeld(connectionId)
  device.terminate()
  expect(await outcomeOfNextUndelivered()).toEqual({ outcome: "closed", body: "held" })
})

test(
  "a command that expires in the queue ends as expired",
  async () => {
    await gateway.stop()
    const headers = { device_id: "lock:1" }
    const properties = { expiration: "50" }
    const messages = [{ routingKey: queues.TO_DEVICE_QUEUE, body: "expires", headers, properties }]
    await pikaPublish({ url: broker.url, messages })
    await until(async () => (await broker.queueDepth(queues.TO_DEVICE_QUEUE)) === 0, {
      what: "the broker to give it up",
    })
    gateway = await startGateway(environment())
    await gateway.ready()
    expect(await outcomeOfNextUndelivered()).toEqual({ outcome: "expired", body: "expires" })
  },
  START_LIMIT_MS,
)

test(
  "a command left in the queue of a dead worker ends as offline",
  async () => {
    const dead = await startGateway({ AMQP_URL: broker.url, WORKERS: "1", INSTANCE_ID: name("i") })
    await dead.ready()
    await dead.stop()
    const instance = String(dead.log.find((line) => line.msg === "listening")?.["name"])
    const headers = { connection_id: `${instance}.aaaaaaaaaaaa.0` }
    const messages = [{ routingKey: queues.TO_DEVICE_QUEUE, body: "left", headers }]
    await pikaPublish({ url: broker.url, messages })
    const queue = queues.UNDELIVERED_QUEUE
    const [kept] = await pikaConsume({ url: broker.url, queue, count: 1, timeoutMs: 30_000 })
    expect(kept?.body.toString()).toBe("left")
    expect(kept?.headers).toMatchObject({
      "owsla-outcome": "offline",
      "owsla-detail": expect.stringContaining("left in owsla.worker."),
    })
  },
  START_LIMIT_MS,
)
