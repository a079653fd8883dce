// A back-end: takes each line once, answers it by a command, reads the receipt of the command. Needs amqplib.
//
// usage: AMQP_URL=amqp://guest:guest@localhost node amqplib-back-end.mjs

import { setTimeout as sleep } from "node:timers/promises"
import amqplib from "amqplib"

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
    console.log(`line ${messageId} ${message.content}`)
  }
  // The device's answer to a command. If it were answered, the two would talk without end.
  if (`${message.content}`.startsWith("done: ")) return channel.ack(message)
  const command = Buffer.from(`thank you for ${message.content}`)
  const options = {
    headers: { connection_id: headers.connection_id },
    // The gateway writes a command with the same id once, however often it is published.
    messageId: `answer-${messageId}`,
    replyTo: RECEIPTS,
    correlationId: messageId,
    persistent: true,
    mandatory: true,
  }
  // `replyTo` of the line is the queue of the worker with the connection. Waits for the confirm of the broker.
  await new Promise((resolve, reject) => {
    const confirmed = (error) => (error === null ? resolve() : reject(error))
    channel.publish("owsla.commands", replyTo, command, options, confirmed)
  })
  channel.ack(message)
}

function takeReceipt(channel, message) {
  const { outcome } = JSON.parse(message.content)
  console.log(`receipt ${message.properties.correlationId} ${outcome}`)
  channel.ack(message)
}

/** Rejects when the connection ends. */
async function consume() {
  const connection = await amqplib.connect(AMQP_URL)
  try {
    const channel = await connection.createConfirmChannel()
    const ended = new Promise((_, reject) => {
      connection.on("error", reject)
      connection.on("close", () => reject(new Error("the connection is closed")))
      channel.on("error", reject)
    })
    // Returned: that worker has gone, and its connections too.
    channel.on("return", ({ properties }) => console.log(`gone ${properties.correlationId}`))
    const consuming = async () => {
      await channel.assertQueue(RECEIPTS, { durable: true })
      await channel.prefetch(PREFETCH)
      await channel.consume(RECEIPTS, (message) => takeReceipt(channel, message))
      // Several lines may wait for confirms at a time. A failure is reported by `ended`.
      await channel.consume(FROM_DEVICE, (message) => takeLine(channel, message).catch(() => {}))
      console.log("consuming")
    }
    await Promise.race([ended, consuming()])
    await ended
  } finally {
    await connection.close().catch(() => {})
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
