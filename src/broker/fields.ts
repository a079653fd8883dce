/**
 * Properties and headers of messages as they come from and go to the AMQP client: made our own when
 * they are kept, and made fit when they are published again. Pure.
 */

import type { HeaderValue, MessageProperties } from "./broker.ts"

/** Headers that RabbitMQ would route a copy by, and its own property that only its author may use. */
const ROUTED_BY = ["CC", "BCC"]
const KEPT_AS = { CC: "owsla-cc", BCC: "owsla-bcc", userId: "owsla-user-id" } as const
/** What the broker itself adds; a copy begins anew. */
const BROKERS_OWN = ["x-death", "x-delivery-count", "x-first-death-exchange"]

/** The same properties with bytes copied: the client hands out views of its read buffer. */
export function ownProperties(properties: MessageProperties): MessageProperties {
  const { headers } = properties
  if (headers === undefined || !Object.values(headers).some(isObject)) return properties
  return { ...properties, headers: mapValues(headers, own) }
}

/**
 * The same properties, fit to be published again. Integers become 64-bit, since the client writes large
 * ones with the wrong sign; a `user_id` of another user, which the broker refuses, and CC and BCC, by
 * which it would send the copy elsewhere too, are kept as headers of ours; a timestamp that no Date can
 * hold is left out, and so is what the broker adds itself.
 */
export function republishable(properties: MessageProperties): MessageProperties {
  const { userId, timestamp, headers = {}, ...others } = properties
  const kept: Record<string, HeaderValue> = {}
  for (const [name, value] of Object.entries(headers)) {
    if (BROKERS_OWN.includes(name) || name.startsWith("x-first-death-")) continue
    const as = ROUTED_BY.includes(name) ? KEPT_AS[name as "CC" | "BCC"] : name
    kept[as] = encodable(value)
  }
  if (userId !== undefined) kept[KEPT_AS.userId] = userId
  const dated = timestamp !== undefined && !Number.isNaN(timestamp.getTime())
  return { ...others, ...(dated ? { timestamp } : {}), headers: kept }
}

function own(value: HeaderValue): HeaderValue {
  // Not slice(), which of a Buffer is a view.
  if (value instanceof Uint8Array) return new Uint8Array(value)
  return nested(value, own)
}

function encodable(value: HeaderValue): HeaderValue {
  if (typeof value === "number" && Number.isSafeInteger(value)) return BigInt(value)
  return nested(value, encodable)
}

/** The same array or table with each of its values mapped; any other value as it is. */
function nested(value: HeaderValue, map: (value: HeaderValue) => HeaderValue): HeaderValue {
  if (Array.isArray(value)) return value.map(map)
  if (!isObject(value) || value instanceof Date || value instanceof Uint8Array) return value
  return mapValues(value as Record<string, HeaderValue>, map)
}

function mapValues(
  values: Record<string, HeaderValue>,
  map: (value: HeaderValue) => HeaderValue,
): Record<string, HeaderValue> {
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, map(value)]))
}

function isObject(value: HeaderValue): value is object {
  return typeof value === "object" && value !== null
}
