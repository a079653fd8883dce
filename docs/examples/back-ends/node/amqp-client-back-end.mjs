// A back-end: takes each line once, answers it by a command, reads the receipt of the command. Needs @cloudamqp/amqp-client.
//
// usage: AMQP_URL=amqp://guest:guest@localhost node amqp-client-back-end.mjs

import { setTimeout as sleep } from "node:timers/promises"
import { AMQPClient } from "@cloudamqp/amqp-client"

const { AMQP_URL, FROM_DEVICE = "from_device", RECEIPTS = "backend.receipts" } = process.env
const { BACKOFF_MS = 1_000 } = process.env
const MAX_BACKOFF_MS = 30_000
const PREFETCH = 100
const MAX_SEEN = 10_000

/** The ids of the last lines. Store them together with the effect of the line when it must survive this process. */
const seen = new Set()
let attempt = 0

async function takeLine(channel, message) {
  attempt = 0
  // <connection_id>:<from_device_seq>. The same line comes again when its acknowledgement was lost.
  const { messageId, replyTo, headers } = message.properties
  if (!seen.has(messageId)) {
    seen.add(messageId)
    if (seen.size > MAX_SEEN) seen.delete(seen.values().next().value)
    console.log(`line ${messageId} ${message.bodyString()}`)
  }
  // The device's answer to a command. If it were answered, the two would talk without end.
  if (message.bodyString().startsWith("done: ")) return await message.ack()
  const command = `thank you for ${message.bodyString()}`
  const properties = {
    headers: { connection_id: headers.connection_id },
    // The gateway writes a command with the same id once, however often it is published.
    messageId: `answer-${messageId}`,
    replyTo: RECEIPTS,
    correlationId: messageId,
    deliveryMode: 2,
  }
  // `replyTo` of the line is the queue of the worker with the connection. Waits for the confirm of the broker.
  await channel.basicPublish("owsla.commands", replyTo, command, properties, true)
  await message.ack()
}

async function takeReceipt(message) {
  const { outcome } = JSON.parse(message.bodyString())
  console.log(`receipt ${message.properties.correlationId} ${outcome}`)
  await message.ack()
}

/** Rejects when the connection ends. */
async function consume() {
  // A new client for each connection. The heartbeat is off by default.
  const client = new AMQPClient(AMQP_URL)
  client.heartbeat = 10
  const ended = new Promise((_, reject) => {
    client.ondisconnect = (error) => reject(error ?? new Error("the connection is closed"))
  })
  ended.catch(() => {})
  await client.connect()
  try {
    const channel = await client.channel()
    // Returned: that worker has gone, and its connections too.
    channel.onReturn = ({ properties }) => console.log(`gone ${properties.correlationId}`)
    await channel.confirmSelect()
    await channel.prefetch(PREFETCH)
    await channel.queueDeclare(RECEIPTS, { durable: true })
    // By default this client does not acknowledge (`noAck`). A failure to publish is reported by `ended`.
    await channel.basicConsume(RECEIPTS, { noAck: false }, (message) =>
      takeReceipt(message).catch(() => {}),
    )
    await channel.basicConsume(FROM_DEVICE, { noAck: false }, (message) =>
      takeLine(channel, message).catch(() => {}),
    )
    console.log("consuming")
    await ended
  } finally {
    if (!client.closed) await client.close().catch(() => {})
  }
}

while (true) {
  try {
    await consume()
  } catch (error) {
    console.log(`broker lost: ${error.message}`)
  }
  // Full jitter: back-ends that lost the broker together do not return together.
  await sleep(Math.random() * Math.min(MAX_BACKOFF_MS, BACKOFF_MS * 2 ** attempt++))
}
