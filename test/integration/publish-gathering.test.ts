/** Messages that are gathered for one write: fewer writes, all confirmed, in order. */

import { expect, test } from "bun:test"
import net from "node:net"
import { AmqpBroker } from "../../src/amqp/broker.ts"
import { callbackListener } from "../support/publish-channels.ts"
import { until } from "../support/wait.ts"
import { closers, LOCALHOST, queue, rabbit, setUpBroker, User } from "./amqp-harness.ts"

setUpBroker()

const MESSAGES = 400

/** A relay that counts what it reads from the gateway. */
async function relay(): Promise<{ port: number; reads: () => number }> {
  let reads = 0
  const server = net.createServer((client) => {
    client.setNoDelay(true)
    const upstream = net.connect(rabbit.port, LOCALHOST)
    client.on("data", (chunk) => {
      reads += 1
      upstream.write(chunk)
    })
    upstream.pipe(client)
    for (const [socket, other] of [
      [client, upstream],
      [upstream, client],
    ] as const) {
      socket.on("error", () => undefined)
      socket.on("close", () => other.destroy())
    }
  })
  await new Promise<void>((resolve) => server.listen(0, LOCALHOST, resolve))
  closers.push(() => server.close())
  return { port: (server.address() as net.AddressInfo).port, reads: () => reads }
}

/** Publishes one message in each tick of a millisecond, and resolves with the reads meanwhile. */
async function readsFor(gatherMs: number): Promise<number> {
  const lines = queue(`gathered-${gatherMs}`)
  const { port, reads } = await relay()
  const user = new User(`amqp://guest:guest@${LOCALHOST}:${port}`, "gathering test", gatherMs)
  user.start([lines])
  await user.ready()
  const before = reads()
  const results: Promise<unknown>[] = []
  for (let n = 0; n < MESSAGES; n += 1) {
    results.push(user.publish(lines.name, String(n)))
    await Bun.sleep(1)
  }
  expect(new Set(await Promise.all(results))).toEqual(new Set(["confirmed"]))
  const during = reads() - before
  const consumer = new User(rabbit.url)
  consumer.start([], [lines])
  await consumer.delivered(MESSAGES)
  expect(consumer.bodies()).toEqual(Array.from({ length: MESSAGES }, (_, n) => String(n)))
  return during
}

test("arrive in order, with fewer writes than messages", async () => {
  expect(await readsFor(20)).toBeLessThan(MESSAGES / 2)
}, 30_000)

test("are confirmed when nothing else is written", async () => {
  const lines = queue("last")
  const user = new User(rabbit.url, "gathering test", 100)
  user.start([lines])
  await user.ready()
  await Promise.all(Array.from({ length: 1_000 }, () => user.publish(lines.name)))
  expect(await user.publish(lines.name, "the last")).toBe("confirmed")
}, 30_000)

test("are written before the connection closes", async () => {
  const lines = queue("closing")
  const broker = new AmqpBroker(rabbit.url, "gathering test", null, 100)
  let confirmed = 0
  const publishChannel = broker.publishChannel(callbackListener(() => undefined))
  broker.start(
    { exchanges: [], queues: [lines], subscriptions: [] },
    { stateChanged: () => undefined, warning: () => undefined },
  )
  await until(() => broker.state.kind === "ready", { what: "the broker to be ready" })
  const publish = (id: string) =>
    publishChannel.publish(
      { id, exchange: "", routingKey: lines.name, body: Buffer.from(id), properties: {} },
      {
        id,
        settled: (result) => {
          if (result === "confirmed") confirmed += 1
        },
      },
    )
  for (let n = 0; n < 1_000; n += 1) publish(`m${n}`)
  // RabbitMQ discards messages that it has received and not routed when their connection closes.
  await until(() => confirmed === 1_000, { what: "the burst to be confirmed" })
  // The rate is that of the burst, so the last message waits for later ones.
  publish("the last")
  await broker.close()
  await until(async () => (await rabbit.queueDepth(lines.name)) === 1_001, {
    what: "all messages to be in the queue",
  })
}, 30_000)
