/**
 * Outcomes: what is owed for a command once it is known how it ended.
 *
 *   written, duplicate ──────────────────────► receipt, if asked for ──► acknowledge
 *   any other ──► copy in the undelivered queue ─► receipt, if asked for ──► acknowledge
 *
 * The delivery is acknowledged only when the broker has both. Never decides on an outcome. Bound: one
 * entry for each unacknowledged delivery, so the prefetch of the consumers.
 */

import type { Counters } from "../counters.ts"
import type { Command, CommandSource, Outcome, Recipient } from "../device/command.ts"
import type { Delivery, HeaderValue, MessageProperties } from "./broker.ts"
import type { Target } from "./command-message.ts"
import { republishable } from "./fields.ts"
import type { Posts } from "./posts.ts"
import type { FinalResult } from "./publish-window.ts"

const OUTCOME_HEADER = "owsla-outcome"
const DETAIL_HEADER = "owsla-detail"
/** Headers that stay, as far as they are short, when all of them together are too large for a frame. */
const ESSENTIAL_HEADERS = ["connection_id", "device_id", "to_device_seq"]
const SHORT_CHARACTERS = 256

/** A command that came by a queue. */
export interface QueuedCommand extends Command {
  readonly delivery: Delivery
}

/** The fields of a receipt and of the answer to an HTTP request. */
export interface Receipt {
  readonly outcome: Outcome
  readonly device_id: string | null
  readonly connection_id: string | null
  /** Milliseconds since 1970. */
  readonly epoch: number | null
  /** Milliseconds since 1970. */
  readonly at: number
  readonly detail: string
}

export function receipt(
  outcome: Outcome,
  detail: string,
  recipient: Recipient | null,
  target: Target | null,
  atMs: number,
): Receipt {
  return {
    outcome,
    device_id: recipient?.deviceId ?? target?.deviceId ?? null,
    connection_id: recipient?.connectionId ?? target?.connectionId ?? null,
    epoch: recipient?.epoch ?? null,
    at: atMs,
    detail,
  }
}

export class Outcomes implements CommandSource {
  readonly #posts: Posts
  readonly #counters: Counters
  readonly #undeliveredQueue: string
  readonly #nowMs: () => number
  readonly #acknowledged: (delivery: Delivery) => void

  /** @param acknowledged told of each delivery that was acknowledged. */
  constructor(
    posts: Posts,
    counters: Counters,
    undeliveredQueue: string,
    nowMs: () => number,
    acknowledged: (delivery: Delivery) => void,
  ) {
    this.#posts = posts
    this.#counters = counters
    this.#undeliveredQueue = undeliveredQueue
    this.#nowMs = nowMs
    this.#acknowledged = acknowledged
  }

  settled(command: Command, outcome: Outcome, detail: string, recipient: Recipient | null): void {
    this.settleDelivery((command as QueuedCommand).delivery, outcome, detail, recipient)
  }

  acknowledge(command: Command): void {
    this.#counters.commandsRedelivered += 1
    this.#acknowledge((command as QueuedCommand).delivery)
  }

  /** Settles a delivery that may not even have become a command. */
  settleDelivery(
    delivery: Delivery,
    outcome: Outcome,
    detail: string,
    recipient: Recipient | null,
  ): void {
    this.#counters.commandsSettled[outcome] += 1
    const { replyTo } = delivery.properties
    const kept = outcome !== "written" && outcome !== "duplicate"
    const sendReceipt = () => {
      if (replyTo === undefined) this.#acknowledge(delivery)
      else this.#receipt(delivery, replyTo, outcome, detail, recipient)
    }
    if (kept) this.keep(delivery.body, delivery.properties, outcome, detail, sendReceipt)
    else sendReceipt()
  }

  /** Stores a command that was not written in the undelivered queue. */
  keep(
    body: Uint8Array,
    properties: MessageProperties,
    outcome: Outcome,
    detail: string,
    stored: () => void,
  ): void {
    const added = { [OUTCOME_HEADER]: outcome, [DETAIL_HEADER]: detail }
    const { headers, ...others } = republishable(properties)
    this.#store(
      body,
      [
        { ...others, headers: { ...headers, ...added } },
        { ...others, headers: { ...essential(headers), ...added } },
        { headers: added },
      ],
      stored,
    )
  }

  /** Stores the body with the first of these properties that fit a frame; the last always do. */
  #store(body: Uint8Array, [first, ...others]: MessageProperties[], stored: () => void): void {
    this.#posts.send(this.#undeliveredQueue, body, first ?? {}, "again", (result) => {
      if (result === "unencodable" && others.length > 0) this.#store(body, others, stored)
      else stored()
    })
  }

  #receipt(
    delivery: Delivery,
    replyTo: string,
    outcome: Outcome,
    detail: string,
    recipient: Recipient | null,
  ): void {
    const { headers, correlationId } = delivery.properties
    const target = {
      connectionId: stringOrNull(headers?.["connection_id"]),
      deviceId: stringOrNull(headers?.["device_id"]),
    }
    const body = JSON.stringify(receipt(outcome, detail, recipient, target, this.#nowMs()))
    const properties: MessageProperties = {
      contentType: "application/json",
      type: "owsla.receipt",
      appId: "owsla",
      ...(correlationId === undefined ? {} : { correlationId }),
    }
    const told = (result: FinalResult) => {
      if (result === "confirmed") this.#counters.receiptsSent += 1
      else this.#counters.receiptsUnroutable += 1
      this.#acknowledge(delivery)
    }
    // A reply queue that is full must not hold up what others are owed.
    this.#posts.send(replyTo, Buffer.from(body), properties, "final", told, "final")
  }

  #acknowledge(delivery: Delivery): void {
    delivery.acknowledge()
    this.#acknowledged(delivery)
  }
}

function essential(headers: Record<string, HeaderValue>): Record<string, HeaderValue> {
  const short = (value: HeaderValue) =>
    typeof value === "number" || (typeof value === "string" && value.length <= SHORT_CHARACTERS)
  const kept = ESSENTIAL_HEADERS.filter((name) => short(headers[name]))
  return Object.fromEntries(kept.map((name) => [name, headers[name]]))
}

function stringOrNull(value: unknown): string | null {
  return typeof value === "string" ? value : null
}
