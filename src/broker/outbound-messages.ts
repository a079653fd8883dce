/**
 * Outbound messages: the messages that the gateway publishes for commands. They are receipts,
 * copies for the undelivered queue, and commands forwarded to another worker. Each is kept until
 * the broker has confirmed it.
 *
 * Bound: each message belongs to an unacknowledged delivery or to an HTTP request, at most two to
 * each of them. `MAX_IN_FLIGHT` are unconfirmed at a time.
 */

import type { Counters } from "../counters.ts"
import type { Broker, MessageProperties, OutgoingMessage } from "./broker.ts"
import { PUBLISH_ID_HEADER } from "./broker.ts"
import type { FinalResult } from "./publish-window.ts"
import { Publisher } from "./publisher.ts"

/** Also the number of messages that may be duplicated by a lost connection. */
const MAX_IN_FLIGHT = 1_000

export interface OutboundOptions {
  /** Whether a returned message is published again ("again") or is done ("final"). */
  readonly whenReturned: "again" | "final"
  /** The same for a nacked message; default "again". */
  readonly whenNacked?: "again" | "final"
  /**
   * Whether a message that stays unconfirmed ends as "given_up" ("final") while the broker confirms
   * others.
   */
  readonly whenUnconfirmed?: "again" | "final"
  /**
   * Called before each publish, also before a repeated one. False ends the message as "withdrawn".
   */
  readonly wanted?: () => boolean
  /** Called at the first publish. */
  readonly begun?: () => void
  /**
   * Called once: "confirmed", "unencodable" (the properties are too large for a frame),
   * "withdrawn", or "returned", "nacked" or "given_up" where the options make them final.
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
        // A queue that accepts nothing must not hold up the messages of other queues.
        ordered: false,
      },
      steadyMs,
      groupOf: (outbound) => outbound.message.routingKey,
      describe: (outbound) => {
        if (!outbound.isBegun) {
          outbound.isBegun = true
          outbound.begun?.()
        }
        return outbound.message
      },
      wanted: (outbound) => outbound.wanted === undefined || outbound.wanted(),
      done: (outbound, result) => outbound.done(result),
      whenReturned: (outbound) => outbound.whenReturned,
      whenNacked: (outbound) => outbound.whenNacked ?? "again",
      failed: (outbound, result) => {
        if (result === "returned" && outbound.whenReturned === "again") broker.redeclare()
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
   * Ends messages to queues that confirm nothing, where `whenUnconfirmed` is "final". To be called
   * periodically.
   *
   * @param sentByMs messages that were sent at this time or before are ended.
   * @param confirmedAtMs the time of the last confirm on another publish channel. A message is
   * ended only when the broker has confirmed another one since: one that was sent later on this
   * channel, or any on the other. Confirms of earlier messages prove nothing: a broker that fails
   * has sent them before.
   */
  giveUp(sentByMs: number, confirmedAtMs: number): void {
    if (this.#publisher.count === 0) return
    const aliveAtMs = Math.max(confirmedAtMs, this.#publisher.confirmedSentAtMs)
    // Times are those of ticks. A confirm in the same tick may have come before the send.
    this.#publisher.giveUp(
      sentByMs,
      ({ item, sentAtMs }) => sentAtMs < aliveAtMs && item.whenUnconfirmed === "final",
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
