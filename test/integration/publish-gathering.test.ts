/** Messages that are gathered for one write: fewer writes, all confirmed, in order. */

import { expect, test } from "bun:test"
import net from "node:net"
import { AmqpBroker } from "../../src/amqp/broker.ts"
import { METHOD } from "../../src/amqp/protocol.ts"
import { callbackListener } from "../support/publish-channels.ts"
import { until } from "../support/wait.ts"
import { closers, LOCALHOST, queue, rabbit, setUpBroker, User } from "./amqp-harness.ts"

setUpBroker()

const MESSAGES = 400

/** The start of the frame of `connection.close`: its length, class and method. */
const CONNECTION_CLOSE = Buffer.from([METHOD, 0, 0, 0, 0, 0, 11, 0, 10, 0, 50])

/** A relay that keeps what it reads from the gateway: for each connection, the chunks. */
async function relay(): Promise<{ port: number; read: readonly Buffer[][] }> {
  const read: Buffer[][] = []
  const server = net.createServer((client) => {
    client.setNoDelay(true)
    const upstream = net.connect(rabbit.port, LOCALHOST)
    const chunks: Buffer[] = []
    read.push(chunks)
    client.on("data", (chunk: Buffer) => {
      chunks.push(chunk)
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
  return { port: (server.address() as net.AddressInfo).port, read }
}

function urlOf(port: number): string {
  return `amqp://guest:guest@${LOCALHOST}:${port}`
}

/** Publishes one message in each tick of a millisecond, and resolves with the reads meanwhile. */
async function readsFor(gatherMs: number): Promise<number> {
  const lines = queue(`gathered-${gatherMs}`)
  const { port, read } = await relay()
  const user = new User(urlOf(port), "gathering test", gatherMs)
  user.start([lines])
  await user.ready()
  const reads = () => read.flat().length
  const before = reads()
  const results: Promise<unknown>[] = []
  for (let n = 0; n < MESSAGES; n += 1) {
    results.push(user.publish(lines.name, String(n)))
    // The period of the messages, not a wait for anything.
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

// The broker discards unconfirmed messages of a closed connection now and then, even those that it
// has received. So this test checks what the gateway writes, and not what is in the queue.
test("are written before the connection closes", async () => {
  const lines = queue("closing")
  const { port, read } = await relay()
  const broker = new AmqpBroker(urlOf(port), "gathering test", null, 100)
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
  await until(() => confirmed === 1_000, { what: "the burst to be confirmed" })
  // The rate is that of the burst, so the last message waits for later ones.
  publish("the last")
  await broker.close()
  const written = read.map((chunks) => Buffer.concat(chunks))
  const publishing = written.find((bytes) => bytes.includes("m999"))
  const lastAt = publishing?.lastIndexOf("the last") ?? -1
  expect(lastAt).not.toBe(-1)
  expect(publishing?.indexOf(CONNECTION_CLOSE)).toBeGreaterThan(lastAt)
}, 30_000)
