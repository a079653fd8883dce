/**
 * Classifies the error texts of a broker. The AMQP client has no codes, only messages such as
 * `channel 3 closed: NOT_FOUND - no queue 'a' in vhost '/' (404)`: no other file parses them. Pure.
 */

/** A queue that this client needs exclusively has another consumer. */
export class QueueInUse extends Error {
  override readonly name = "QueueInUse"

  constructor(queue: string) {
    super(`${queue} has other consumers`)
  }
}

/** The broker's host did not answer the TCP connection. */
export class NotReached extends Error {
  override readonly name = "NotReached"

  constructor(timeoutMs: number) {
    super(`not reached within ${timeoutMs} ms`)
  }
}

export type BrokerError =
  /**
   * The connection held more messages unacknowledged than the broker allows; null when it does not
   * say how many.
   */
  | { readonly kind: "too_many_unacknowledged"; readonly limit: number | null }
  /** A permission is missing; RabbitMQ 3 names the resource alone. */
  | {
      readonly kind: "access_refused"
      readonly permission: string | null
      readonly resource: string | null
    }
  /** The virtual host does not exist, or the user may not use it. */
  | { readonly kind: "not_allowed" }
  | { readonly kind: "not_found" }
  /** The queue exists and does not answer: its node is down, or it has no leader. */
  | { readonly kind: "unavailable" }
  /** The host refused the TCP connection: no broker listens there. */
  | { readonly kind: "connection_refused" }
  /** Another connection uses the queue exclusively. */
  | { readonly kind: "locked" }
  /**
   * The queue or exchange exists with other arguments; `argument` is null when the text does not
   * name one.
   */
  | { readonly kind: "precondition_failed"; readonly argument: string | null }
  | { readonly kind: "other" }

/** CloudAMQP's shared plans: "CONNECTION_FORCED - Too many unacked messages (max 1000)". */
const UNACKNOWLEDGED = /\bun-?ack(ed|nowledged)\b/i
const LIMITED = /\b(too many|more than|limit|max|maximum|exceed\w*)\b/i
const LIMIT = /\b(?:more than|limit|max|maximum|exceed\w*)\D{0,20}(\d+)/i
const REFUSED = / (?:(configure|write|read) )?access to \w+ '([^']*)'/
/** RabbitMQ has the code 404 for these too. */
const UNAVAILABLE = / due to timeout| is down or inaccessible/
const CODE = /\((\d{3})\)$/

export function readBrokerError(text: string): BrokerError {
  if (UNACKNOWLEDGED.test(text) && LIMITED.test(text)) {
    const limit = Number(LIMIT.exec(text)?.[1] ?? 0)
    return { kind: "too_many_unacknowledged", limit: limit === 0 ? null : limit }
  }
  if (/^[^']*'[^']*' in vhost .* in exclusive use/.test(text)) return { kind: "locked" }
  if (text.includes("ECONNREFUSED")) return { kind: "connection_refused" }
  switch (CODE.exec(text)?.[1]) {
    case "403": {
      const [, permission = null, resource = null] = REFUSED.exec(text) ?? []
      return { kind: "access_refused", permission, resource }
    }
    case "530":
      return { kind: "not_allowed" }
    case "404":
      return { kind: UNAVAILABLE.test(text) ? "unavailable" : "not_found" }
    case "405":
      return { kind: "locked" }
    case "406":
      return { kind: "precondition_failed", argument: / arg '([^']*)'/.exec(text)?.[1] ?? null }
    default:
      return { kind: "other" }
  }
}
