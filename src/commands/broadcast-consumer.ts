/**
 * Consumes broadcasts from the queue `owsla.broadcasts`. Each message goes to one worker, which
 * coordinates the broadcast and sends its one receipt.
 *
 *   deliver ─► read ─┬─ invalid, too_large ─► copy in the undelivered queue ─┐
 *                    └─► begin ─┬─ counts ───────────────────────────────────┴─► receipt ─► acknowledge
 *                               ├─ busy, unreachable ─► waiting ──sweep─► begin again
 *                               └─ delivery lost ─────► dropped
 *
 * When the delivery is lost, the broker delivers the message again. Then the workers go on with the
 * broadcast that they know (`broadcast-writer.ts`), so a worker that dies loses no broadcast. They
 * recognise the message by its content, since not all messages have a `message_id`. Two messages
 * with equal content are mistaken for each other only if one of them is delivered again while the
 * other is remembered.
 *
 * Bound: the prefetch of the queue.
 */

import type { Delivery } from "../broker/broker.ts"
import type { OutboundMessages } from "../broker/outbound-messages.ts"
import type { Counters } from "../counters.ts"
import type { LineFormat } from "../device/framing.ts"
import { asError } from "../errors.ts"
import {
  type BroadcastRequest,
  type BroadcastResult,
  shownCounts,
} from "../fleet/broadcast-request.ts"
import type { Broadcasts } from "../fleet/broadcasts.ts"
import type { FleetKeys } from "../fleet/fleet-keys.ts"
import { readBroadcast } from "./broadcast-message.ts"
import type { Refusal } from "./command-message.ts"
import { contentOf } from "./fingerprint.ts"
import { type Outcomes, receipt, receiptProperties } from "./outcomes.ts"
import { refuseReplyTo } from "./reply-to.ts"

export interface BroadcastConsumerOptions extends LineFormat {
  readonly nowMs: () => number
  readonly counters: Pick<Counters, "receiptsSent" | "receiptsUnroutable">
  readonly keys: Pick<FleetKeys, "admit">
  readonly isGatewayQueue: (queue: string) => boolean
  /** Called with an exception of the handling of a delivery. */
  readonly fault: (error: Error, queue: string) => void
}

const RETRY_EVERY_MS = 1_000

interface Waiting {
  readonly delivery: Delivery
  readonly request: BroadcastRequest
}

export class BroadcastConsumer {
  readonly #broadcasts: Pick<Broadcasts, "begin">
  readonly #outboundMessages: Pick<OutboundMessages, "send">
  readonly #outcomes: Pick<Outcomes, "keep" | "late">
  readonly #options: BroadcastConsumerOptions
  /** Deliveries that could not begin. */
  #waiting: Waiting[] = []
  #retriedAtMs = Number.NEGATIVE_INFINITY
  #stopped = false

  constructor(
    broadcasts: Pick<Broadcasts, "begin">,
    outboundMessages: Pick<OutboundMessages, "send">,
    outcomes: Pick<Outcomes, "keep" | "late">,
    options: BroadcastConsumerOptions,
  ) {
    this.#broadcasts = broadcasts
    this.#outboundMessages = outboundMessages
    this.#outcomes = outcomes
    this.#options = options
  }

  deliver(delivery: Delivery): void {
    const { properties, body } = delivery
    const { keys, isGatewayQueue, fault } = this.#options
    try {
      // Members publish no broadcasts, so this removes the headers of the gateway.
      keys.admit(properties)
      const read =
        refuseReplyTo(properties, isGatewayQueue) ?? readBroadcast(body, properties, this.#options)
      if ("outcome" in read) this.#refuse(delivery, read)
      else this.#begin({ delivery, request: read })
    } catch (error) {
      fault(asError(error), delivery.queue)
      this.#refuse(delivery, { outcome: "invalid", detail: "internal error, see the server log" })
    }
  }

  /** To be called periodically. */
  sweep(steadyMs: number): void {
    if (steadyMs - this.#retriedAtMs < RETRY_EVERY_MS) return
    this.#retriedAtMs = steadyMs
    for (const waiting of this.#waiting.splice(0)) this.#begin(waiting)
  }

  /** Begins no more broadcasts. The broker delivers those that wait to another worker. */
  stop(): void {
    this.#stopped = true
    this.#waiting = []
  }

  #begin(waiting: Waiting): void {
    const { delivery, request } = waiting
    if (delivery.lost || this.#stopped) return
    const origin = { key: keyOf(delivery), again: delivery.redelivered, withinMs: null }
    this.#broadcasts.begin(request, origin, (result) => this.#ended(waiting, result))
  }

  #ended(waiting: Waiting, result: BroadcastResult): void {
    const { delivery } = waiting
    switch (result.kind) {
      case "busy":
      case "unreachable":
        this.#waiting.push(waiting)
        break
      case "invalid":
        this.#refuse(delivery, { outcome: "invalid", detail: result.detail })
        break
      case "counts":
        this.#sendReceipt(delivery, { ...shownCounts(result), at: this.#options.nowMs() })
        break
    }
  }

  #refuse(delivery: Delivery, { outcome, detail }: Refusal): void {
    const { nowMs } = this.#options
    this.#outcomes.keep(delivery.body, delivery.properties, outcome, detail, {
      wanted: () => !delivery.lost,
      done: (result) => {
        if (result === "withdrawn") return
        this.#sendReceipt(delivery, receipt(outcome, detail, null, null, nowMs()))
      },
    })
  }

  #sendReceipt(delivery: Delivery, content: object): void {
    const { replyTo } = delivery.properties
    if (replyTo === undefined) {
      delivery.acknowledge()
      return
    }
    const properties = receiptProperties(delivery.properties)
    const body = Buffer.from(JSON.stringify(content))
    const count = (isSent: boolean) => {
      if (isSent) this.#options.counters.receiptsSent += 1
      else this.#options.counters.receiptsUnroutable += 1
    }
    this.#outboundMessages.send(replyTo, body, properties, {
      ...{ whenReturned: "final", whenNacked: "final", whenUnconfirmed: "final" },
      wanted: () => !delivery.lost,
      done: (result) => {
        // The next delivery gets the same counts.
        if (result === "withdrawn") return
        const isLate =
          result === "nacked" && this.#outcomes.late.add(replyTo, body, properties, count)
        if (!isLate) count(result === "confirmed")
        delivery.acknowledge()
      },
    })
  }
}

/** The same for all deliveries of a message, in all processes. */
function keyOf({ body, properties }: Delivery): string {
  const hasher = new Bun.CryptoHasher("sha256")
  return hasher.update(contentOf(properties)).update(body).digest("base64url")
}
