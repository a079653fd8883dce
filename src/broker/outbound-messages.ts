/**
 * Outbound messages: what the gateway itself sends for a command. Receipts, copies for the undelivered queue,
 * commands forwarded to the worker that holds their connection. Kept until the broker has them.
 *
 * Never carries lines. Bound: each post belongs to a delivery that is not acknowledged yet or to an
 * HTTP request, so there are at most two for each of those; `MAX_IN_FLIGHT` are unconfirmed at a time.
 */

import type { Counters } from "../counters.ts"
import type { Broker, MessageProperties, OutgoingMessage } from "./broker.ts"
import { PUBLISH_ID_HEADER } from "./broker.ts"
import type { FinalResult } from "./publish-window.ts"
import { Publisher } from "./publisher.ts"

/** What may come twice after a lost connection. */
const MAX_IN_FLIGHT = 1_000

export interface OutboundOptions {
  /** Whether a message that no queue took is published again ("again") or is done ("final"). */
  readonly whenReturned: "again" | "final"
  /** The same for a message that the broker refused; default "again". */
  readonly whenNacked?: "again" | "final"
  /** Whether a message that stays unconfirmed ends as "given_up" ("final") while the broker confirms others. */
  readonly whenUnconfirmed?: "again" | "final"
  /** Called before each publish, repeats included: false ends the message as "withdrawn". */
  readonly wanted?: () => boolean
  /** Called when it is published for the first time. */
  readonly begun?: () => void
  /**
   * Called once: "confirmed", "unencodable" when the properties are too large for a frame, "withdrawn", or,
   * where the options make it final, "returned", "nacked" or "given_up".
   */
  readonly done: (result: FinalResult) => void
}

interface OutboundMessage extends OutboundOptions {
  readonly message: OutgoingMessage
  isBegun: boolean
}

export class OutboundMessages {
  readonly #publisher: Publisher<OutboundMessage>
  #nextId = 0

  constructor(broker: Broker, counters: Counters, steadyMs: () => number) {
    this.#publisher = new Publisher<OutboundMessage>(broker, {
      limits: {
        maxCount: Number.POSITIVE_INFINITY,
        maxBytes: Number.POSITIVE_INFINITY,
        maxInFlight: MAX_IN_FLIGHT,
        // A queue that takes nothing must not hold up what others have taken.
        ordered: false,
      },
      steadyMs,
      groupOf: (post) => post.message.routingKey,
      describe: (post) => {
        if (!post.isBegun) {
          post.isBegun = true
          post.begun?.()
        }
        return post.message
      },
      wanted: (post) => post.wanted === undefined || post.wanted(),
      done: (post, result) => post.done(result),
      whenReturned: (post) => post.whenReturned,
      whenNacked: (post) => post.whenNacked ?? "again",
      failed: (post, result) => {
        if (result === "returned" && post.whenReturned === "again") broker.redeclare()
      },
      repeating: (count) => {
        counters.outboundRepublished += count
      },
    })
  }

  get count(): number {
    return this.#publisher.count
  }

  silentSinceMs(): number | null {
    return this.#publisher.silentSinceMs()
  }

  /**
   * Ends messages to a queue that confirms nothing, where `whenUnconfirmed` is "final". To be called periodically.
   *
   * @param sentByMs those sent at this time or before have waited long enough.
   * @param confirmedAtMs when the broker last confirmed something on another publish channel: nothing ends while the broker confirms
   * nothing at all.
   */
  giveUp(sentByMs: number, confirmedAtMs: number): void {
    if (this.#publisher.count === 0) return
    const aliveAtMs = Math.max(confirmedAtMs, this.#publisher.confirmedAtMs)
    this.#publisher.giveUp(
      Math.min(sentByMs, aliveAtMs),
      ({ whenUnconfirmed }) => whenUnconfirmed === "final",
    )
  }

  /** Publishes a persistent message to a queue, and takes ownership of the properties. */
  send(
    queue: string,
    body: Uint8Array,
    properties: MessageProperties,
    options: OutboundOptions,
  ): void {
    const id = String(this.#nextId)
    this.#nextId += 1
    properties.headers ??= {}
    properties.headers[PUBLISH_ID_HEADER] = id
    properties.deliveryMode = 2
    const message = { id, exchange: "", routingKey: queue, body, properties }
    this.#publisher.publish({ ...options, message, isBegun: false }, body.length)
  }

  stop(): void {
    this.#publisher.stop()
  }
}
