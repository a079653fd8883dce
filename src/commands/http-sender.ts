/**
 * Sends the commands that come by HTTP, and resolves each request once with the outcome.
 *
 *   send ─► router ─┬─ here ────► connection ─► its outcome
 *                   ├─ queue ───► forwarded; the receipt comes back on this worker's reply queue
 *                   └─ nowhere ─► offline
 *
 * A command that was not written is kept in the undelivered queue like any other. A command without `ttlMs` is valid
 * while its request waits: after that this worker neither writes nor forwards it, and in the queue of another worker it
 * expires at the end of `timeoutMs`.
 * Bounds: `MAX_PENDING` requests, commands without an outcome, and outbound messages; `timeoutMs` for each request.
 */

import type { Broker, Delivery, MessageProperties } from "../broker/broker.ts"
import type { OutboundMessages } from "../broker/outbound-messages.ts"
import type { Counters } from "../counters.ts"
import type { Command, Outcome, Recipient } from "../device/command.ts"
import type { Outcomes, Receipt } from "./outcomes.ts"
import { readReceipt, receipt } from "./outcomes.ts"
import type { CommandRouter, Destination } from "./router.ts"

const MAX_PENDING = 10_000

export interface SendRequest {
  /** A device or connection id. */
  readonly id: string
  /** One line, already checked. */
  readonly body: Uint8Array
  /** Not written after this many milliseconds; null to wait as long as the request does. */
  readonly ttlMs: number | null
  readonly messageId: string | null
}

export type SendResult =
  | Receipt
  /** Another worker holds the device, and the broker is away. */
  | { readonly outcome: "unreachable" }
  /** No outcome in time. A command that is not written goes to the undelivered queue. */
  | { readonly outcome: "timeout" }
  /** `MAX_PENDING` is reached, or this worker drains. */
  | { readonly outcome: "busy" }

export interface HttpSenderOptions {
  readonly replyQueue: string
  readonly timeoutMs: number
  readonly nowMs: () => number
  readonly counters: Counters
}

export class HttpSender {
  readonly #options: HttpSenderOptions
  readonly #broker: Broker
  readonly #outboundMessages: OutboundMessages
  readonly #router: CommandRouter
  readonly #outcomes: Outcomes
  /** Answers to those that wait for an outcome, by correlation id. */
  readonly #pending = new Map<string, (result: SendResult) => void>()
  /** Commands for connections of this worker that have no outcome yet, asked for still or not. */
  #unsettled = 0
  #stopped = false

  constructor(
    broker: Broker,
    outboundMessages: OutboundMessages,
    router: CommandRouter,
    outcomes: Outcomes,
    options: HttpSenderOptions,
  ) {
    this.#broker = broker
    this.#outboundMessages = outboundMessages
    this.#router = router
    this.#outcomes = outcomes
    this.#options = options
  }

  /** Requests that await an answer, or commands that have no outcome after their requests ended, whichever is more. */
  get pendingCount(): number {
    return Math.max(this.#pending.size, this.#unsettled)
  }

  /** Answers every further request "busy". Requests that wait still get their answers. */
  stop(): void {
    this.#stopped = true
  }

  /** @param caller aborted when the HTTP client has hung up. */
  send(request: SendRequest, caller?: AbortSignal): Promise<SendResult> {
    const pending = Math.max(this.#pending.size, this.#unsettled, this.#outboundMessages.count)
    if (this.#stopped || pending >= MAX_PENDING) return Promise.resolve({ outcome: "busy" })
    if (caller?.aborted === true) return Promise.resolve({ outcome: "timeout" })
    const { timeoutMs, nowMs } = this.#options
    const target = { connectionId: null, deviceId: request.id }
    const destination = this.#router.destinationOf(target, 0)
    const elsewhere = destination.kind === "queue" || destination.kind === "device"
    if (elsewhere && this.#broker.state.kind !== "ready") {
      return Promise.resolve({ outcome: "unreachable" })
    }
    // Random, since a back-end may be able to publish to the queue where the receipt is awaited.
    const correlationId = crypto.randomUUID()
    const expiresAtMs = nowMs() + (request.ttlMs ?? timeoutMs)
    const { promise, resolve } = Promise.withResolvers<SendResult>()
    const giveUp = () => {
      if (request.ttlMs === null) command.expiresAtMs = 0
      this.#answer(correlationId, { outcome: "timeout" })
    }
    const timer = setTimeout(giveUp, timeoutMs)
    caller?.addEventListener("abort", giveUp)
    this.#pending.set(correlationId, (result) => {
      clearTimeout(timer)
      caller?.removeEventListener("abort", giveUp)
      resolve(result)
    })
    this.#options.counters.commandsReceived += 1
    const command = new HttpCommand(
      request,
      expiresAtMs,
      correlationId,
      (outcome, detail, recipient) => {
        this.#unsettled -= 1
        this.#settled(command, outcome, detail, recipient)
      },
    )
    if (destination.kind === "device") this.#locate(command, destination.deviceId)
    else this.#go(command, destination)
    return promise
  }

  /** Takes a delivery from this worker's reply queue. */
  deliverReceipt(delivery: Delivery): void {
    const { correlationId } = delivery.properties
    // Anything but a receipt is ignored, and its request ends by its time-out.
    if (correlationId === undefined || !this.#pending.has(correlationId)) return
    const told = readReceipt(delivery.body)
    if (told !== null) this.#answer(correlationId, told)
  }

  #locate(command: HttpCommand, deviceId: string): void {
    // Counted, since the request may end before the device is found.
    this.#unsettled += 1
    this.#router.locate(deviceId, true, (place) => {
      this.#unsettled -= 1
      const destination = this.#router.destinationAt(deviceId, place)
      const expired = this.#options.nowMs() >= command.expiresAtMs
      if (destination.kind === "queue" && expired) {
        this.#settled(command, "expired", "before its device was found", null)
      } else this.#go(command, destination)
    })
  }

  #go(command: HttpCommand, destination: Destination): void {
    switch (destination.kind) {
      case "here":
        this.#unsettled += 1
        destination.connection.offer(command)
        break
      case "queue":
        this.#forward(command, destination.queue)
        break
      case "nowhere":
        this.#settled(command, "offline", destination.detail, null)
        break
    }
  }

  #settled(
    command: HttpCommand,
    outcome: Outcome,
    detail: string,
    recipient: Recipient | null,
  ): void {
    const { counters, nowMs } = this.#options
    counters.commandsSettled[outcome] += 1
    if (outcome !== "written" && outcome !== "duplicate") {
      const { body, properties } = command
      this.#outcomes.keep(body, properties, outcome, detail, { done: () => undefined })
    }
    this.#answer(command.correlationId, receipt(outcome, detail, recipient, null, nowMs()))
  }

  #forward(command: HttpCommand, queue: string): void {
    const { nowMs, replyQueue } = this.#options
    const properties = {
      ...this.#router.forwardedProperties(command.properties, {
        expiresAtMs: command.expiresAtMs,
        hops: 0,
        redelivered: false,
        commandId: this.#router.mintCommandId(),
      }),
      replyTo: replyQueue,
      correlationId: command.correlationId,
    }
    this.#router.forward({
      queue,
      body: command.body,
      properties,
      wanted: () => nowMs() < command.expiresAtMs,
      done: (result) => {
        if (result === "confirmed") return
        if (result === "withdrawn") {
          this.#settled(command, "expired", "before it could be sent to another worker", null)
          return
        }
        if (result === "unencodable") {
          this.#settled(command, "invalid", "it cannot be encoded", null)
        } else this.#settled(command, "offline", `${queue}: ${result}`, null)
      },
    })
  }

  #answer(correlationId: string, result: SendResult): void {
    const answer = this.#pending.get(correlationId)
    this.#pending.delete(correlationId)
    answer?.(result)
  }
}

class HttpCommand implements Command {
  readonly cameBy = "http"
  readonly seq = null
  readonly bodyHash = null
  readonly redelivered = false
  readonly forwarded = false
  readonly lost = false
  isOffered = false
  readonly body: Uint8Array
  readonly messageId: string | null
  /** 0 once its request has ended. */
  expiresAtMs: number
  readonly properties: MessageProperties
  readonly correlationId: string
  /** Called when it ends at a connection. */
  readonly settle: Command["settle"]

  constructor(
    request: SendRequest,
    expiresAtMs: number,
    correlationId: string,
    settle: Command["settle"],
  ) {
    this.body = request.body
    this.messageId = request.messageId
    this.expiresAtMs = expiresAtMs
    this.properties = propertiesOf(request)
    this.correlationId = correlationId
    this.settle = settle
  }

  // It comes by no delivery, so it is never repeated, replaced or lost.
  acknowledge(): void {}

  replace(): void {}

  withdraw(): void {}
}

function propertiesOf({ id, messageId }: SendRequest): MessageProperties {
  return {
    headers: { device_id: id },
    ...(messageId === null ? {} : { messageId }),
    appId: "owsla",
  }
}
