/**
 * Product and version of a broker, from the `server-properties` at the start of each connection
 * (`connection.start`, AMQP 0-9-1 section 1.4.2.1), and differences between brokers that concern
 * the gateway's queues. Pure.
 */

import type { QueueDeclaration } from "../broker/broker.ts"
import { FieldReader, uint32, viewOf } from "./field-reader.ts"
import { CONNECTION_START, FRAME_HEAD } from "./protocol.ts"

export interface BrokerServer {
  readonly product: string
  readonly version: string
}

/** Size of the class id, the method id and the two bytes of the protocol version. */
const PROPERTIES_AT = FRAME_HEAD + 6

/** @param frame a whole frame. @returns null for another method. @throws when it is invalid. */
export function serverOf(frame: Uint8Array): BrokerServer | null {
  if (frame.length < PROPERTIES_AT || uint32(frame, FRAME_HEAD) !== CONNECTION_START) return null
  const fields = new FieldReader()
  fields.begin(viewOf(frame), PROPERTIES_AT, frame.length - 1)
  const { product, version } = fields.table()
  return { product: String(product ?? "unknown"), version: String(version ?? "unknown") }
}

/**
 * The arguments of a queue for this broker. By default RabbitMQ 4 removes a message from a quorum
 * queue at its 21st delivery attempt, and each lost connection counts. Earlier versions have no
 * limit and refuse a negative one.
 */
export function argumentsFor(
  args: Readonly<QueueDeclaration["arguments"]>,
  server: BrokerServer,
): QueueDeclaration["arguments"] {
  return args["x-queue-type"] === "quorum" && hasDeliveryLimit(server)
    ? { ...args, "x-delivery-limit": -1 }
    : { ...args }
}

export function hasDeliveryLimit(server: BrokerServer): boolean {
  return isRabbit4(server)
}

/**
 * RabbitMQ 4 deprecates queues that are neither durable nor exclusive, and a later version will
 * refuse them.
 */
export function lacksTransientQueues(server: BrokerServer): boolean {
  return isRabbit4(server)
}

/** LavinMQ accepts the type and creates a classic queue. */
export function lacksQuorumQueues({ product }: BrokerServer): boolean {
  return product === "LavinMQ"
}

function isRabbit4({ product, version }: BrokerServer): boolean {
  return product === "RabbitMQ" && Number.parseInt(version, 10) >= 4
}
