/**
 * Prepares properties and headers of received messages for publishing again, byte for byte. Pure.
 *
 * A JavaScript value does not keep its AMQP type: -3 may have had one of six types. When a value
 * would be written in another way, the headers carry the table they were read from under the symbol
 * `RECEIVED`, and copies of the headers carry it under `PASSED_ON`, which object spread copies. The
 * frame writer copies from it the entries with unchanged values. Rejected: a wrapper around each
 * such value, which every reader of headers would have to unwrap.
 */

import type { HeaderValue, MessageProperties } from "./broker.ts"

type Headers = Record<string, HeaderValue>

/** Headers by which RabbitMQ would route a copy, and a property that only the sender may set. */
export const KEPT_AS = { CC: "owsla-cc", BCC: "owsla-bcc", userId: "owsla-user-id" } as const
const RENAMED: ReadonlyMap<string, string> = new Map([
  ["CC", KEPT_AS.CC],
  ["BCC", KEPT_AS.BCC],
])
const NOT_RENAMED: ReadonlyMap<string, string> = new Map()
/** Headers that the broker adds. Copies do not have them. */
export const BROKERS_OWN = /^x-(death$|(first|last)-death-|(delivery|acquired)-count$)/

/** The key of the received bytes in received headers that need them. */
export const RECEIVED = Symbol("headers as received")
/** The key of `ReceivedHeaders`, in headers that are passed on. */
const PASSED_ON = Symbol("headers passed on")

/** Headers as they were received, kept with the headers that are passed on. */
export interface ReceivedHeaders {
  /** The entries of the table, without its size field. */
  readonly bytes: Uint8Array
  /** The values as they were read. A changed value is encoded again. */
  readonly values: Readonly<Headers>
  /** New names of entries that are passed on under another name. */
  readonly renamed: ReadonlyMap<string, string>
}

/**
 * Undefined for headers whose values are written back to the same bytes, and for the gateway's own
 * headers.
 */
export function receivedHeaders(headers: object): ReceivedHeaders | undefined {
  return (headers as { readonly [PASSED_ON]?: ReceivedHeaders })[PASSED_ON]
}

/** Keeps the bytes of headers that are passed on. */
function carryReceived(from: Headers, to: Headers, renamed: ReadonlyMap<string, string>): void {
  const bytes = (from as { readonly [RECEIVED]?: Uint8Array })[RECEIVED]
  const received = bytes === undefined ? receivedHeaders(from) : { bytes, values: from, renamed }
  if (received !== undefined) Object.assign(to, { [PASSED_ON]: received })
}

/**
 * A time on the wire beyond what a `Date` can hold, for example in microseconds, is an invalid
 * `Date`.
 */
export class OutOfRangeDate extends Date {
  readonly seconds: bigint

  constructor(seconds: bigint) {
    super(Number.NaN)
    this.seconds = seconds
  }
}

/**
 * New properties that can be published. `user_id`, which the broker refuses for another user, and
 * CC and BCC, by which the broker would route the copy to other queues too, are kept as `owsla-`
 * headers. An invalid timestamp, the expiration (it would start again) and headers that the broker
 * adds are removed. Headers may be added by assignment or by `{ ...headers, added }`; both keep the
 * received bytes.
 */
export function republishable(properties: MessageProperties): MessageProperties & {
  headers: Headers
} {
  const { userId, timestamp, expiration: _, headers = {}, ...others } = properties
  const kept: Headers = {}
  for (const name of Object.keys(headers)) {
    if (BROKERS_OWN.test(name)) continue
    setHeader(kept, RENAMED.get(name) ?? name, headers[name])
  }
  carryReceived(headers, kept, RENAMED)
  if (userId !== undefined) kept[KEPT_AS.userId] = userId
  const again = Object.assign(others, { headers: kept })
  return timestamp === undefined || !isWritable(timestamp)
    ? again
    : Object.assign(again, { timestamp })
}

/** The headers with these names for which `fits` is true, with their received bytes. */
export function pickedHeaders(
  headers: Headers,
  names: readonly string[],
  fits: (value: HeaderValue) => boolean,
): Headers {
  const picked: Headers = {}
  for (const name of names) if (fits(headers[name])) setHeader(picked, name, headers[name])
  carryReceived(headers, picked, NOT_RENAMED)
  return picked
}

/** Assigns a header; `__proto__` is an ordinary name here. */
export function setHeader(headers: Headers, name: string, value: HeaderValue): void {
  if (name !== "__proto__") headers[name] = value
  else Object.defineProperty(headers, name, { value, enumerable: true, writable: true })
}

function isWritable(time: Date): boolean {
  return time instanceof OutOfRangeDate || !Number.isNaN(time.getTime())
}
