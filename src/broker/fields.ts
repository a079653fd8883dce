/**
 * Properties and headers of messages that came from the broker, made fit to be published again. Pure.
 */

import type { HeaderValue, MessageProperties } from "./broker.ts"

/** Headers that RabbitMQ would route a copy by, and its own property that only its author may use. */
const ROUTED_BY = ["CC", "BCC"]
const KEPT_AS = { CC: "owsla-cc", BCC: "owsla-bcc", userId: "owsla-user-id" } as const
/** What the broker itself adds; a copy begins anew. */
const BROKERS_OWN = ["x-death", "x-delivery-count", "x-first-death-exchange"]

/**
 * The same properties, fit to be published again. A `user_id` of another user, which the broker refuses, and CC and BCC, by
 * which it would send the copy elsewhere too, are kept as headers of ours; a timestamp that no Date can
 * hold is left out, and so is what the broker adds itself.
 */
export function republishable(properties: MessageProperties): MessageProperties {
  const { userId, timestamp, headers = {}, ...others } = properties
  const kept: Record<string, HeaderValue> = {}
  for (const [name, value] of Object.entries(headers)) {
    if (BROKERS_OWN.includes(name) || name.startsWith("x-first-death-")) continue
    const as = ROUTED_BY.includes(name) ? KEPT_AS[name as "CC" | "BCC"] : name
    kept[as] = value
  }
  if (userId !== undefined) kept[KEPT_AS.userId] = userId
  const dated = timestamp !== undefined && !Number.isNaN(timestamp.getTime())
  return { ...others, ...(dated ? { timestamp } : {}), headers: kept }
}
