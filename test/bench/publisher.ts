/**
 * A lone publisher: the AMQP client as it comes, with confirms and a window of unconfirmed
 * messages, each with the fields of a line's message.
 *
 *   stdout {"ready": 1} ─► stdin "publish" ─► stdout {"published": n, "ms": all} ─► again
 */

import { parseArgs } from "node:util"
import { AMQPClient } from "@cloudamqp/amqp-client"
import { report } from "./child.ts"

const { values } = parseArgs({
  options: {
    url: { type: "string", default: "" },
    queue: { type: "string", default: "" },
    messages: { type: "string", default: "1000" },
    bytes: { type: "string", default: "100" },
    window: { type: "string", default: "2000" },
  },
})
const messages = Number(values.messages)
const window = Number(values.window)
const body = Buffer.from("x".repeat(Number(values.bytes)))
const connectionId = "bench.0.mb2k3f9zq7x2.1"

const client = new AMQPClient(values.url)
await client.connect()
const channel = await client.channel()
await channel.confirmSelect()

async function publishAll(): Promise<number> {
  let next = 0
  let confirmed = 0
  // As many publish channels as the window has places, each with one message on its way.
  const publishChannel = async () => {
    while (next < messages) {
      const seq = next
      next += 1
      const headers = {
        connection_id: connectionId,
        device_id: connectionId,
        from_device_seq: BigInt(seq),
        epoch: 1_750_000_000_000n,
      }
      const properties = {
        headers,
        deliveryMode: 2,
        messageId: `${connectionId}:${seq}`,
        replyTo: "owsla.worker.bench.0",
        timestamp: new Date(),
        appId: "owsla",
      }
      await channel.basicPublish("", values.queue, body, properties, true)
      confirmed += 1
    }
  }
  await Promise.all(Array.from({ length: window }, publishChannel))
  return confirmed
}

report({ ready: 1 })
for await (const line of console) {
  if (line !== "publish") continue
  const startedAtMs = performance.now()
  const published = await publishAll()
  report({ published, ms: performance.now() - startedAtMs })
}
process.exit(0)
