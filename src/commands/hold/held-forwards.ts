/**
 * Held commands on the way to the connections of their devices, and the receipts for them.
 *
 *   send ─► the queue of the connection's worker ─┬─ receipt ──────────────► answered
 *                 ▲                               └─ none for `RETRY_MS` ─┐
 *                 └───────────────────────────────────────────────────────┘
 *
 * A receipt comes to the fleet queue of this worker, which does not survive a restart of the
 * broker. So a forward is repeated, with the same ids, and the worker that has ended the command
 * sends its receipt again. Bound: one forward for each device with held commands.
 */

import type { Delivery } from "../../broker/broker.ts"
import { WORKER_QUEUE_TTL_MS, workerQueue } from "../../broker/topology.ts"
import { workerOfConnection } from "../../device/ids.ts"
import { HELD_HEADER } from "../command-message.ts"
import { type Receipt, readReceipt, receipt } from "../outcomes.ts"
import type { CommandRouter } from "../router.ts"
import type { HeldCommand } from "./held-command.ts"

/** Longer than a forward waits in the queue of a worker, and the dead letter after that. */
const RETRY_MS = WORKER_QUEUE_TTL_MS + 5_000

export interface HeldForward {
  readonly command: HeldCommand
  readonly connectionId: string
  /** An answer that does not count yet. */
  receipt: { readonly receipt: Receipt; readonly wasOffered: boolean } | null
}

type Answered = (forward: HeldForward, receipt: Receipt, wasOffered: boolean) => void

interface Sending {
  /** Whether a forward that was not published yet is still to be published. */
  readonly wanted: () => boolean
  readonly answered: Answered
}

interface Sent extends Sending {
  readonly forward: HeldForward
  readonly correlationId: string
  sentAtMs: number
}

export interface HeldForwardsOptions {
  readonly replyQueue: string
  /** Of a line from a device, which a receipt may contain. */
  readonly maxLineBytes: number
  readonly nowMs: () => number
  readonly steadyMs: () => number
}

export class HeldForwards {
  readonly #router: CommandRouter
  readonly #options: HeldForwardsOptions
  readonly #sent = new Map<string, Sent>()
  readonly #correlationIds = new WeakMap<HeldForward, string>()

  constructor(router: CommandRouter, options: HeldForwardsOptions) {
    this.#router = router
    this.#options = options
  }

  send(command: HeldCommand, connectionId: string, sending: Sending): HeldForward {
    const forward: HeldForward = { command, connectionId, receipt: null }
    // Random, so that a back-end that may publish to the fleet queue cannot forge a receipt.
    const correlationId = crypto.randomUUID()
    const sent = { ...sending, forward, correlationId, sentAtMs: 0 }
    this.#sent.set(correlationId, sent)
    this.#correlationIds.set(forward, correlationId)
    this.#publish(sent)
    return forward
  }

  /** The forward has its answer, or none is awaited any more. */
  end(forward: HeldForward): void {
    this.#sent.delete(this.#correlationIds.get(forward) ?? "")
  }

  /** Handles a receipt. @returns false when it is not for a forward of a held command. */
  deliverReceipt({ properties, body }: Delivery): boolean {
    const sent = this.#sent.get(properties.correlationId ?? "")
    if (sent === undefined) return false
    const read = readReceipt(body, this.#options.maxLineBytes)
    if (read === null) return true
    const { offered = false, ...receipt } = read
    sent.answered(sent.forward, receipt, offered)
    return true
  }

  /** Repeats forwards without a receipt. To be called periodically. */
  sweep(steadyMs: number): void {
    for (const sent of this.#sent.values()) {
      if (sent.forward.receipt === null && steadyMs - sent.sentAtMs >= RETRY_MS) this.#publish(sent)
    }
  }

  #publish(sent: Sent): void {
    const { forward, correlationId, wanted, answered } = sent
    const { command, connectionId } = forward
    const { steadyMs, nowMs, replyQueue } = this.#options
    sent.sentAtMs = steadyMs()
    const properties = this.#router.forwardedProperties(command.properties, {
      ...{ expiresAtMs: command.expiresAtMs, hops: 0, redelivered: false, commandId: command.id },
    })
    properties.replyTo = replyQueue
    properties.correlationId = correlationId
    properties.headers = { ...properties.headers, [HELD_HEADER]: true, connection_id: connectionId }
    const isCurrent = () => this.#sent.get(correlationId) === sent
    this.#router.forward({
      queue: workerQueue(workerOfConnection(connectionId) ?? ""),
      body: command.body,
      properties,
      wanted: () => isCurrent() && wanted(),
      done: (result) => {
        if (result === "confirmed" || !isCurrent()) return
        const target = { deviceId: command.deviceId, connectionId }
        const failed = (outcome: "closed" | "invalid", detail: string) =>
          answered(forward, receipt(outcome, detail, null, target, nowMs()), false)
        if (result === "unencodable") failed("invalid", "its headers are too large")
        else failed("closed", `not forwarded to the worker of ${connectionId}: ${result}`)
      },
    })
  }
}
