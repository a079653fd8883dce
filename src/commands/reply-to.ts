/**
 * Which queues a back-end may name for its receipts. Pure.
 *
 * A receipt in a queue of the gateway would be taken for a line, a command or another receipt. A
 * message with direct reply-to would close the channel on which it is published again.
 */

import type { MessageProperties } from "../broker/broker.ts"
import type { Refusal } from "./command-message.ts"

/**
 * RabbitMQ's direct reply-to. The broker replaces it by an address of the sender, except in
 * messages that came by AMQP 1.0. It closes a channel that publishes with this `reply_to` and does
 * not consume from it.
 */
const DIRECT_REPLY_TO = "amq.rabbitmq.reply-to"

/**
 * Removes a `reply_to` that a back-end must not use.
 *
 * @returns the reason for which the message is refused; null when its `reply_to` may be used.
 */
export function refuseReplyTo(
  properties: MessageProperties,
  isGatewayQueue: (queue: string) => boolean,
): Refusal | null {
  const { replyTo } = properties
  if (replyTo === undefined) return null
  const isDirectReply = replyTo === DIRECT_REPLY_TO
  if (!isDirectReply && !isGatewayQueue(replyTo)) return null
  delete properties.replyTo
  const detail = isDirectReply
    ? `reply_to must name a queue, not ${DIRECT_REPLY_TO}`
    : `reply_to names a queue of the gateway: ${replyTo}`
  return { outcome: "invalid", detail }
}
