/**
 * Held commands on the way to the connections of their devices, and the receipts for them.
 *
 *   send ─► the fleet queue of the connection's process ─┬─ receipt ───────────────► answered
 *                 ▲                                      ├─ the process has ended ─► answered: closed
 *                 │                                      └─ none for `RETRY_MS` ─┐
 *                 └──────────────────────────────────────────────────────────────┘
 *
 * Fleet queues do not survive a restart of the broker. So a forward is repeated, with the same ids,
 * and the worker that has ended the command sends its receipt again. Rejected: the worker's own
 * queue. It survives, but newer commands for the same devices, which wait for the held ones, can
 * fill its prefetch. Bound: one forward for each device with held commands.
 */

import type { Delivery } from "../../broker/broker.ts"
import { HELD_MESSAGE_TYPE } from "../../broker/setup.ts"
import { fleetQueue } from "../../broker/topology.ts"
import { processOfConnection, type WorkerProcess } from "../../device/ids.ts"
import { HELD_HEADER } from "../command-message.ts"
import { type Receipt, readReceipt, receipt } from "../outcomes.ts"
import type { CommandRouter } from "../router.ts"
import type { HeldCommand } from "./held-command.ts"

/** Longer than a worker takes to write a command and to send its receipt, unless it is paused. */
const RETRY_MS = 5_000

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
  /** Whether a process may still hold connections. */
  readonly mayLive: (process: WorkerProcess) => boolean
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
    const { steadyMs, nowMs, replyQueue, mayLive } = this.#options
    sent.sentAtMs = steadyMs()
    const properties = this.#router.forwardedProperties(command.properties, {
      ...{ expiresAtMs: command.expiresAtMs, hops: 0, redelivered: false, commandId: command.id },
    })
    properties.type = HELD_MESSAGE_TYPE
    properties.replyTo = replyQueue
    properties.correlationId = correlationId
    properties.headers = { ...properties.headers, [HELD_HEADER]: true, connection_id: connectionId }
    const isCurrent = () => this.#sent.get(correlationId) === sent
    const target = { deviceId: command.deviceId, connectionId }
    const failed = (outcome: "closed" | "invalid", detail: string) =>
      answered(forward, receipt(outcome, detail, null, target, nowMs()), false)
    const process = processOfConnection(connectionId)
    if (process === null || !mayLive(process)) {
      // Not before `send` has returned.
      queueMicrotask(() => {
        if (isCurrent()) failed("closed", `the worker of ${connectionId} has ended`)
      })
      return
    }
    this.#router.forward({
      queue: fleetQueue(process),
      body: command.body,
      properties,
      wanted: () => isCurrent() && wanted(),
      done: (result) => {
        if (result === "confirmed" || !isCurrent()) return
        if (result === "unencodable") failed("invalid", "its headers are too large")
        else failed("closed", `not forwarded to the worker of ${connectionId}: ${result}`)
      },
    })
  }
}
