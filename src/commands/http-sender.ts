/**
 * Sends commands of HTTP requests, and resolves each request with its outcome.
 *
 *   send ─► router ─┬─ here ────► connection ─► its outcome
 *                   ├─ queue ───► forwarded; the receipt comes back on the fleet queue of this worker
 *                   └─ nowhere ─► offline, or forwarded to the keeper that holds it: "held"
 *
 * While no keeper is known, as in the first second of a worker, a command that is to be held waits
 * for one as long as its request does.
 *
 * A command that was not written is copied to the undelivered queue. One without `ttlMs` that is
 * not to be held is valid for `timeoutMs`, while its request waits. After that this worker neither
 * writes nor forwards it, and in the queue of another worker it expires. Bounds: `MAX_PENDING`
 * requests, commands without an outcome, and outbound messages; `timeoutMs` for each request, and
 * the time for its reply.
 */

import type { Broker, Delivery, MessageProperties } from "../broker/broker.ts"
import type { OutboundMessages } from "../broker/outbound-messages.ts"
import type { Counters } from "../counters.ts"
import {
  type Command,
  isKept,
  type Outcome,
  type Recipient,
  type Reply,
  type TraceContext,
} from "../device/command.ts"
import type { ReplyRequest } from "../device/reply-request.ts"
import { HOLD_HEADER } from "./command-message.ts"
import { type CommandOptions, optionHeaders } from "./command-options.ts"
import type { HeldAnswer, Outcomes, Receipt } from "./outcomes.ts"
import { readHeldAnswer, readReceipt, receipt } from "./outcomes.ts"
import type { CommandRouter, Destination, KeeperQueueOf } from "./router.ts"

const MAX_PENDING = 10_000

export interface SendRequest {
  /** A device or connection id. */
  readonly id: string
  /** One line, which was validated. */
  readonly body: Uint8Array
  /** Milliseconds after which the command is not written; null for `timeoutMs`. */
  readonly ttlMs: number | null
  readonly messageId: string | null
  readonly options: CommandOptions
}

export type SendResult =
  | Receipt
  /** Its device is not connected; its outcome is not reported. */
  | HeldAnswer
  /** The device is not here, and the broker is not available. */
  | { readonly outcome: "unreachable" }
  /** No outcome in time. A command that is not written is copied to the undelivered queue. */
  | { readonly outcome: "timeout" }
  /** `MAX_PENDING` is reached, or this worker drains. */
  | { readonly outcome: "busy" }

export interface HttpSenderOptions {
  readonly replyQueue: string
  readonly timeoutMs: number
  /** Of a line from a device, which a receipt may contain. */
  readonly maxLineBytes: number
  readonly nowMs: () => number
  readonly steadyMs: () => number
  readonly counters: Counters
  readonly keeperQueueOf: KeeperQueueOf
}

export class HttpSender {
  readonly #options: HttpSenderOptions
  readonly #broker: Broker
  readonly #outboundMessages: OutboundMessages
  readonly #router: CommandRouter
  readonly #outcomes: Outcomes
  /** The callbacks of waiting requests by correlation id. */
  readonly #pending = new Map<string, (result: SendResult) => void>()
  /** The number of commands of this worker without an outcome, also of requests that have ended. */
  #unsettled = 0
  /** Commands to be held while no keeper is known; they count as unsettled. */
  #unplaced: Unplaced[] = []
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

  /** The number of waiting requests, or of commands without an outcome when that is larger. */
  get pendingCount(): number {
    return Math.max(this.#pending.size, this.#unsettled)
  }

  /** Answers all later requests "busy". Waiting requests still get their answers. */
  stop(): void {
    this.#stopped = true
  }

  /** Looks again for keepers that were not known. To be called periodically. */
  sweep(): void {
    const unplaced = this.#unplaced
    this.#unplaced = []
    this.#unsettled -= unplaced.length
    for (const { command, outcome, detail } of unplaced) {
      if (!this.#pending.has(command.correlationId)) command.holdMs = null
      this.#settled(command, outcome, detail, null)
    }
  }

  /** @param caller aborted when the HTTP client has hung up. */
  send(request: SendRequest, caller?: AbortSignal): Promise<SendResult> {
    const pending = Math.max(this.#pending.size, this.#unsettled, this.#outboundMessages.count)
    if (this.#stopped || pending >= MAX_PENDING) return Promise.resolve({ outcome: "busy" })
    if (caller?.aborted === true) return Promise.resolve({ outcome: "timeout" })
    const { timeoutMs, nowMs, steadyMs } = this.#options
    const target = { connectionId: null, deviceId: request.id }
    const destination = this.#router.destinationOf(target, 0)
    const elsewhere = destination.kind === "queue" || destination.kind === "device"
    if (elsewhere && this.#broker.state.kind !== "ready") {
      return Promise.resolve({ outcome: "unreachable" })
    }
    // Random, so that a back-end that may publish to the fleet queue cannot forge a receipt.
    const correlationId = crypto.randomUUID()
    const { holdMs } = request.options
    const { ttlMs } = request
    // `hold_ms` counts from when its keeper holds it.
    const expiresAtMs =
      nowMs() + (ttlMs ?? (holdMs === null ? timeoutMs : Number.POSITIVE_INFINITY))
    const { promise, resolve } = Promise.withResolvers<SendResult>()
    const giveUp = () => {
      if (ttlMs === null && holdMs === null) command.expiresAtMs = 0
      this.#answer(correlationId, { outcome: "timeout" })
    }
    const timer = setTimeout(giveUp, timeoutMs + (request.options.reply?.timeoutMs ?? 0))
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
      steadyMs(),
      (outcome, detail, recipient, reply) => {
        this.#unsettled -= 1
        this.#settled(command, outcome, detail, recipient, reply)
      },
    )
    if (destination.kind === "device") this.#locate(command, destination.deviceId)
    else this.#go(command, destination)
    return promise
  }

  /** Handles a receipt from the fleet queue of this worker. */
  deliverReceipt(delivery: Delivery): void {
    const { correlationId } = delivery.properties
    // An invalid receipt is ignored, and the request ends with its time-out.
    if (correlationId === undefined || !this.#pending.has(correlationId)) return
    const { body } = delivery
    const receipt = readHeldAnswer(body) ?? readReceipt(body, this.#options.maxLineBytes)
    if (receipt !== null) this.#answer(correlationId, receipt)
  }

  #locate(command: HttpCommand, deviceId: string): void {
    // Counted, because the request may end before the look-up.
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

  /** Whether its outcome is to be held instead. */
  #isHeldAfter(command: HttpCommand, outcome: Outcome): boolean {
    if (outcome !== "offline" && outcome !== "closed") return false
    const { holdMs, isOffered, expiresAtMs } = command
    return holdMs !== null && !isOffered && this.#options.nowMs() < expiresAtMs
  }

  #settled(
    command: HttpCommand,
    outcome: Outcome,
    detail: string,
    recipient: Recipient | null,
    reply: Reply | null = null,
  ): void {
    const { counters, nowMs, steadyMs, keeperQueueOf } = this.#options
    if (this.#isHeldAfter(command, outcome)) {
      const keeperQueue = keeperQueueOf(command.deviceId)
      if (keeperQueue === null) {
        this.#unsettled += 1
        this.#unplaced.push({ command, outcome, detail })
        return
      }
      command.holdMs = null
      this.#forward(command, keeperQueue, { [HOLD_HEADER]: true })
      return
    }
    counters.commandsSettled[outcome] += 1
    counters.commandTimes[outcome].observe(steadyMs() - command.arrivedAtMs)
    if (isKept(outcome)) {
      const { body, properties } = command
      this.#outcomes.keep(body, properties, outcome, detail, { done: () => undefined })
    }
    this.#answer(command.correlationId, receipt(outcome, detail, recipient, null, nowMs(), reply))
  }

  #forward(command: HttpCommand, queue: string, added: MessageProperties["headers"] = {}): void {
    const { nowMs, replyQueue } = this.#options
    const properties: MessageProperties = {
      ...this.#router.forwardedProperties(command.properties, {
        expiresAtMs: command.expiresAtMs,
        hops: 0,
        redelivered: false,
        commandId: this.#router.mintCommandId(),
      }),
      replyTo: replyQueue,
      correlationId: command.correlationId,
    }
    Object.assign(properties.headers ?? {}, added)
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

interface Unplaced {
  readonly command: HttpCommand
  /** How it ends when its request ends first. */
  readonly outcome: Outcome
  readonly detail: string
}

class HttpCommand implements Command {
  readonly cameBy = "http"
  readonly seq = null
  readonly bodyHash = null
  readonly redelivered = false
  readonly forwarded = false
  readonly wasHeld = false
  readonly lost = false
  isOffered = false
  readonly body: Uint8Array
  readonly messageId: string | null
  readonly supersedeKey: string | null
  readonly reply: ReplyRequest | null
  readonly trace: TraceContext | null
  /** 0 once its request has ended. */
  expiresAtMs: number
  readonly deviceId: string
  /** Null when it is not to be held, or is on its way to its keeper. */
  holdMs: number | null
  readonly properties: MessageProperties
  readonly correlationId: string
  /** Of the monotonic clock. */
  readonly arrivedAtMs: number
  /** Called when it ends at a connection. */
  readonly settle: Command["settle"]

  constructor(
    request: SendRequest,
    expiresAtMs: number,
    correlationId: string,
    arrivedAtMs: number,
    settle: Command["settle"],
  ) {
    this.body = request.body
    this.messageId = request.messageId
    this.expiresAtMs = expiresAtMs
    const { holdMs, supersedeKey, reply, trace } = request.options
    this.deviceId = request.id
    this.holdMs = holdMs
    this.supersedeKey = supersedeKey
    this.reply = reply
    this.trace = trace
    this.properties = propertiesOf(request)
    this.correlationId = correlationId
    this.arrivedAtMs = arrivedAtMs
    this.settle = settle
  }

  // It comes by no delivery, so it is never repeated, replaced or lost.
  acknowledge(): void {}

  replace(): void {}

  withdraw(): void {}
}

function propertiesOf({ id, messageId, options }: SendRequest): MessageProperties {
  return {
    headers: { device_id: id, ...optionHeaders(options) },
    ...(messageId === null ? {} : { messageId }),
    appId: "owsla",
  }
}
