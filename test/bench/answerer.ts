/**
 * A back-end that answers each message of a queue where its `reply_to` says, with the same body and
 * for the same connection.
 *
 *   stdout {"ready": 1}
 */

import { parseArgs } from "node:util"
import { AMQPClient } from "@cloudamqp/amqp-client"
import { report } from "./child.ts"

const { values } = parseArgs({
  options: { url: { type: "string", default: "" }, queue: { type: "string", default: "" } },
})
const client = new AMQPClient(values.url)
await client.connect()
const answers = await client.channel()
const channel = await client.channel()
await channel.basicQos(1_000)
await channel.basicConsume(values.queue, { noAck: false }, (message) => {
  const { headers, replyTo = "" } = message.properties
  const connectionId = headers?.["connection_id"]
  const properties = { headers: { connection_id: connectionId } }
  void answers.basicPublish("", replyTo, message.body, properties)
  void message.ack()
})
report({ ready: 1 })
for await (const _ of console);
process.exit(0)
