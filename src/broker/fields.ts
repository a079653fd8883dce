/**
 * Properties and headers of messages that came from the broker, made fit to be published again. Pure.
 */

import type { HeaderValue, MessageProperties } from "./broker.ts"

/** Headers that RabbitMQ would route a copy by, and its own property that only its author may use. */
const KEPT_AS = { CC: "owsla-cc", BCC: "owsla-bcc", userId: "owsla-user-id" } as const
/** What the broker itself adds; a copy begins anew. */
const BROKERS_OWN = /^x-(death$|delivery-count$|first-death-)/

/**
 * New properties, fit to be published again. A `user_id` of another user, which the broker refuses, and CC and BCC,
 * by which it would send the copy elsewhere too, are kept as headers of ours; a timestamp that no Date can hold is left
 * out, and so are an expiration, which would count anew, and what the broker adds itself.
 */
export function republishable(properties: MessageProperties): MessageProperties & {
  headers: Record<string, HeaderValue>
} {
  const { userId, timestamp, expiration: _, headers = {}, ...others } = properties
  const kept: Record<string, HeaderValue> = {}
  for (const name of Object.keys(headers)) {
    if (BROKERS_OWN.test(name)) continue
    kept[name === "CC" || name === "BCC" ? KEPT_AS[name] : name] = headers[name]
  }
  if (userId !== undefined) kept[KEPT_AS.userId] = userId
  const again = Object.assign(others, { headers: kept })
  return timestamp === undefined || Number.isNaN(timestamp.getTime())
    ? again
    : Object.assign(again, { timestamp })
}
