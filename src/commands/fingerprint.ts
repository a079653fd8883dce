/**
 * The fingerprint of a command's message. It stays the same when the message is redelivered,
 * dead-lettered or forwarded. Two messages with the same fingerprint have the same content, except
 * for the expiration.
 *
 * It leaves out what the broker changes (`expiration`, the `x-` headers of dead letters, CC and
 * BCC) and what the gateway adds (`owsla-` headers, persistence). Pure. Computed only after a
 * connection was lost.
 */

import type { MessageProperties } from "../broker/broker.ts"
import { BROKERS_OWN } from "../broker/republishing.ts"

const CHANGED_HEADER = /^(owsla-|CC$|BCC$)/

/** Random for each process, so that a sender cannot construct two messages with one fingerprint. */
const SEED = crypto.getRandomValues(new BigUint64Array(1))[0] ?? 0n

export function fingerprint(body: Uint8Array, properties: MessageProperties): string {
  return `${Bun.hash(body, SEED)} ${Bun.hash(contentOf(properties), SEED)} ${body.length}`
}

/** The content of the properties as text, the same in all processes. */
export function contentOf(properties: MessageProperties): string {
  const { headers = {}, timestamp } = properties
  const names = Object.keys(headers).filter(
    (name) => !CHANGED_HEADER.test(name) && !BROKERS_OWN.test(name),
  )
  const said = [
    properties.messageId,
    properties.correlationId,
    properties.replyTo,
    properties.type,
    properties.appId,
    properties.contentType,
    properties.contentEncoding,
    properties.priority,
    // A timestamp in other units than seconds may exceed the range of a Date. Copies do not have
    // it.
    timestamp === undefined || Number.isNaN(timestamp.getTime()) ? null : timestamp.getTime(),
    names.sort().map((name) => [name, headers[name]]),
  ]
  // The same integer may be a number or a bigint.
  return JSON.stringify(said, (_, value: unknown) =>
    typeof value === "bigint" || typeof value === "number" ? `number ${value}` : value,
  )
}
