/**
 * Stores the outcomes of commands.
 *
 *   written, or no longer wanted ──────────────► receipt, if requested ──► acknowledge
 *   other ──► copy in the undelivered queue ───► receipt, if requested ──► acknowledge
 *
 * No longer wanted: duplicate, superseded, cancelled (`isKept`).
 *
 * The delivery is acknowledged when the broker has confirmed copy and receipt, or has refused the
 * receipt (see `late-receipts.ts`). When the delivery is lost before the first confirm, and no byte
 * was offered to a socket, nothing else is published: the next delivery decides. If it comes to
 * this worker, it gets the same outcome. After the first confirm the outcome stands. A superseded
 * command has the same outcome at its next delivery also when nothing was published: it must not be
 * written after the newer one. This class does not decide on outcomes. Bound: one entry for each
 * unacknowledged delivery.
 */

import * as v from "valibot"
import type { HeaderValue, MessageProperties } from "../broker/broker.ts"
import type { OutboundMessages, OutboundOptions } from "../broker/outbound-messages.ts"
import type { FinalResult } from "../broker/publish-window.ts"
import { pickedHeaders, republishable } from "../broker/republishing.ts"
import { OWN_QUEUE_PREFIX } from "../broker/topology.ts"
import type { Counters } from "../counters.ts"
import {
  isKept,
  isWritten,
  OUTCOMES,
  type Outcome,
  type Recipient,
  type Reply,
} from "../device/command.ts"
import { BoundedMap } from "../structures/bounded-map.ts"
import { INTERNAL_HEADERS, type Target } from "./command-message.ts"
import { readTrace } from "./command-options.ts"
import { REMEMBERED_ENDS } from "./deduplicator.ts"
import { LateReceipts } from "./late-receipts.ts"
import type { CommandKeeper, QueuedCommand } from "./queued-command.ts"
import type { UnacknowledgedCommands } from "./unacknowledged-commands.ts"

export const OUTCOME_HEADER = "owsla-outcome"
export const DETAIL_HEADER = "owsla-detail"
/**
 * Headers that a copy keeps, if they are short, when all headers together are too large for a
 * frame.
 */
const ESSENTIAL_HEADERS = ["connection_id", "device_id", "to_device_seq"]
const SHORT_CHARACTERS = 256
/** More than the longest receipt has without its reply. */
const MAX_RECEIPT_BYTES = 65_536
/** JSON may escape one byte as six characters. */
const JSON_BYTES_PER_BYTE = 6

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
  /** With the outcome `answered` only. */
  readonly reply?: ReplyContent
  /**
   * Only between workers, for a held command: whether bytes of it were offered to a socket, so that
   * it is not held any more.
   */
  readonly offered?: boolean
}

/** The answer to a worker that has asked to hold a command of an HTTP request. */
export interface HeldAnswer {
  readonly outcome: "held"
  /** Milliseconds since 1970. */
  readonly expires_at: number
}

/** A reply in JSON. */
export interface ReplyContent {
  /** The line as text, or in base64 when it is not UTF-8. */
  readonly line: string
  readonly encoding: "utf-8" | "base64"
  readonly from_device_seq: number
}

const text = v.nullable(v.string())
export const replySchema = v.object({
  line: v.string(),
  encoding: v.picklist(["utf-8", "base64"]),
  from_device_seq: v.number(),
})
export const receiptSchema = v.object({
  outcome: v.picklist(OUTCOMES),
  device_id: text,
  connection_id: text,
  epoch: v.nullable(v.number()),
  at: v.number(),
  detail: v.string(),
  reply: v.exactOptional(replySchema),
  offered: v.exactOptional(v.boolean()),
})
export const heldAnswerSchema = v.object({ outcome: v.literal("held"), expires_at: v.number() })

/**
 * Parses a receipt; null when it is invalid, for example of another version.
 * @param maxLineBytes of a line from a device.
 */
export function readReceipt(body: Uint8Array, maxLineBytes: number): Receipt | null {
  return read(receiptSchema, body, MAX_RECEIPT_BYTES + JSON_BYTES_PER_BYTE * maxLineBytes)
}

/** Parses the answer that a command is held; null when it is another one. */
export function readHeldAnswer(body: Uint8Array): HeldAnswer | null {
  return read(heldAnswerSchema, body, MAX_RECEIPT_BYTES)
}

function read<T>(
  schema: v.GenericSchema<unknown, T>,
  body: Uint8Array,
  maxBytes: number,
): T | null {
  if (body.length > maxBytes) return null
  try {
    const checked = v.safeParse(schema, JSON.parse(Buffer.from(body).toString()))
    return checked.success ? checked.output : null
  } catch {
    return null
  }
}

export function receipt(
  outcome: Outcome,
  detail: string,
  recipient: Recipient | null,
  target: Target | null,
  atMs: number,
  reply: Reply | null = null,
): Receipt {
  return {
    outcome,
    device_id: recipient?.deviceId ?? target?.deviceId ?? null,
    connection_id: recipient?.connectionId ?? target?.connectionId ?? null,
    epoch: recipient?.epoch ?? null,
    at: atMs,
    detail,
    ...(reply === null ? {} : { reply: replyContent(reply) }),
  }
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })

function replyContent({ line, fromDeviceSeq }: Reply): ReplyContent {
  const from_device_seq = fromDeviceSeq
  try {
    return { line: utf8.decode(line), encoding: "utf-8", from_device_seq }
  } catch {
    const base64 = Buffer.from(line.buffer, line.byteOffset, line.length).toString("base64")
    return { line: base64, encoding: "base64", from_device_seq }
  }
}

/** The properties of the receipt for a message with these properties. */
export function receiptProperties({
  correlationId,
  headers,
}: MessageProperties): MessageProperties {
  const trace = headers === undefined ? null : readTrace(headers)
  return {
    contentType: "application/json",
    type: "owsla.receipt",
    appId: "owsla",
    ...(correlationId === undefined ? {} : { correlationId }),
    ...(trace === null ? {} : { headers: { ...trace } }),
  }
}

interface Storing extends Required<Pick<OutboundOptions, "wanted" | "begun">> {
  /** To be called when the outcome can no longer change. */
  readonly stand: () => void
}

/** A message without a delivery of its own. */
interface StoredMessage {
  readonly body: Uint8Array
  readonly properties: MessageProperties
}

export class Outcomes implements CommandKeeper {
  readonly #outboundMessages: OutboundMessages
  readonly #unacknowledged: UnacknowledgedCommands
  readonly #counters: Counters
  readonly #undeliveredQueue: string
  readonly #nowMs: () => number
  readonly #steadyMs: () => number
  /** Receipts that the broker has refused and that are retried. */
  readonly late: LateReceipts
  /** Receipts of held commands that have ended here, by copy key. Text is smaller than buffers. */
  readonly #ofHeld = new BoundedMap<string, string>(REMEMBERED_ENDS)

  constructor(
    outboundMessages: OutboundMessages,
    unacknowledged: UnacknowledgedCommands,
    counters: Counters,
    undeliveredQueue: string,
    nowMs: () => number,
    steadyMs: () => number,
  ) {
    this.#outboundMessages = outboundMessages
    this.late = new LateReceipts(outboundMessages)
    this.#unacknowledged = unacknowledged
    this.#counters = counters
    this.#undeliveredQueue = undeliveredQueue
    this.#nowMs = nowMs
    this.#steadyMs = steadyMs
  }

  readonly #countReceipt = (isSent: boolean): void => {
    if (isSent) this.#counters.receiptsSent += 1
    else this.#counters.receiptsUnroutable += 1
  }

  acknowledge(command: QueuedCommand): void {
    this.#counters.commandsRedelivered += 1
    this.#unacknowledged.acknowledge(command)
  }

  replace(waiting: QueuedCommand, command: QueuedCommand): void {
    this.#counters.commandsRedelivered += 1
    this.#unacknowledged.replace(waiting, command)
  }

  withdraw(command: QueuedCommand): void {
    this.#unacknowledged.drop(command)
  }

  settle(
    command: QueuedCommand,
    outcome: Outcome,
    detail: string,
    recipient: Recipient | null,
    reply: Reply | null = null,
    properties = command.delivery.properties,
  ): void {
    command.state = "ending"
    command.connection = null
    const written = isWritten(outcome)
    if (written && command.delivery.properties.replyTo === undefined) {
      this.stands(command, outcome, detail)
      this.#unacknowledged.acknowledge(command)
      return
    }
    const begun = () => {
      command.decided = { outcome, detail, recipient }
    }
    if (outcome === "superseded") begun()
    let stands = false
    const stand = () => {
      if (stands) return
      stands = true
      this.stands(command, outcome, detail)
    }
    if (written) stand()
    // Called before each publish. The broker may have a message that was cut off. If the delivery
    // is lost too, the message is not repeated, because another worker may get the command and
    // settle it.
    const wanted = () => stands || command.isOffered || !command.lost
    const sendReceipt = () => {
      const { replyTo } = command.delivery.properties
      if (replyTo !== undefined) {
        const body = this.#receipt(command, outcome, detail, recipient, reply)
        this.#sendReceipt(command, replyTo, body, { wanted, begun, stand })
        return
      }
      stand()
      this.#unacknowledged.acknowledge(command)
    }
    // The keeper of a held command keeps it, or stores the copy.
    if (!isKept(outcome) || isHeld(command)) {
      sendReceipt()
      return
    }
    const store = () =>
      this.keep(command.body, properties, outcome, detail, {
        wanted,
        begun,
        done: (result) => {
          if (result === "withdrawn") {
            this.#withdrawn(command, store)
            return
          }
          stand()
          sendReceipt()
        },
      })
    store()
  }

  /**
   * Ends a command whose handling threw an exception. The copy has few of the headers, since one of
   * them may be the cause.
   */
  fail(command: QueuedCommand, detail: string): void {
    const { headers = {}, replyTo, correlationId } = command.delivery.properties
    const kept: Record<string, HeaderValue> = {}
    for (const name of ESSENTIAL_HEADERS) if (isShort(headers[name])) kept[name] = headers[name]
    const reduced: MessageProperties = { headers: kept }
    if (replyTo !== undefined) reduced.replyTo = replyTo
    if (correlationId !== undefined) reduced.correlationId = correlationId
    this.settle(command, "invalid", detail, null, null, reduced)
  }

  /**
   * The broker has confirmed nothing of the outcome. If the command was redelivered meanwhile, the
   * outcome is published now. Otherwise the next delivery gets it, if that delivery comes to this
   * worker.
   */
  #withdrawn(command: QueuedCommand, again: () => void): void {
    if (command.lost) this.#unacknowledged.drop(command)
    else again()
  }

  /** The outcome can no longer change. */
  stands(command: QueuedCommand, outcome: Outcome, _detail: string): void {
    if (isHeld(command)) return
    this.#counters.commandsSettled[outcome] += 1
    this.#counters.commandTimes[outcome].observe(this.#steadyMs() - command.arrivedAtMs)
  }

  /**
   * Stores the outcome of a command that has no delivery: a copy, if the outcome asks for one, and
   * the receipt.
   *
   * @param wanted called before each publish until the first is confirmed.
   * @param done called once, with "withdrawn" when the first was not wanted any more.
   */
  store(
    { body, properties }: StoredMessage,
    receipt: Receipt,
    wanted: () => boolean,
    done: (result: "stored" | "withdrawn") => void,
  ): void {
    const { replyTo } = properties
    let stands = false
    const isWanted = () => stands || wanted()
    const sendReceipt = () => {
      if (replyTo === undefined) {
        done("stored")
        return
      }
      const receiptBody = Buffer.from(JSON.stringify(receipt))
      this.#publishReceipt(replyTo, properties, receiptBody, { wanted: isWanted }, (result) =>
        done(result === "withdrawn" ? "withdrawn" : "stored"),
      )
    }
    if (!isKept(receipt.outcome)) {
      sendReceipt()
      return
    }
    this.keep(body, properties, receipt.outcome, receipt.detail, {
      wanted: isWanted,
      done: (result) => {
        if (result === "withdrawn") {
          done("withdrawn")
          return
        }
        stands = true
        sendReceipt()
      },
    })
  }

  /** Answers a worker that has asked to hold the command of an HTTP request. */
  answerHeld(command: QueuedCommand, expiresAtMs: number): void {
    const { properties } = command.delivery
    const { replyTo } = properties
    if (replyTo?.startsWith(OWN_QUEUE_PREFIX) !== true) return
    const answer: HeldAnswer = { outcome: "held", expires_at: expiresAtMs }
    const body = Buffer.from(JSON.stringify(answer))
    this.#publishReceipt(replyTo, properties, body, {}, () => undefined)
  }

  /** Sends the receipt of a held command again, if it has ended here. */
  answerAgain(command: QueuedCommand): void {
    const json = this.#ofHeld.get(command.copyKey ?? "")
    const { properties } = command.delivery
    if (json === undefined || properties.replyTo === undefined) return
    const body = Buffer.from(json)
    this.#publishReceipt(properties.replyTo, properties, body, {}, () => undefined)
  }

  /** Publishes a copy of a command that was not written to the undelivered queue. */
  keep(
    body: Uint8Array,
    properties: MessageProperties,
    outcome: Outcome,
    detail: string,
    options: Omit<OutboundOptions, "whenReturned" | "whenNacked">,
  ): void {
    const added = { [OUTCOME_HEADER]: outcome, [DETAIL_HEADER]: detail }
    const { headers, ...others } = republishable(properties)
    // Only forwarded HTTP commands have a fleet queue as `reply_to`.
    if (others.replyTo?.startsWith(OWN_QUEUE_PREFIX)) {
      delete others.replyTo
      delete others.correlationId
    }
    for (const name of INTERNAL_HEADERS) delete headers[name]
    this.#store(
      body,
      [
        { ...others, headers: { ...headers, ...added } },
        { ...others, headers: { ...essential(headers), ...added } },
        { headers: added },
      ],
      options,
    )
  }

  /**
   * Publishes the body with the first of these properties that fit a frame. The last ones always
   * fit.
   */
  #store(
    body: Uint8Array,
    [first, ...others]: MessageProperties[],
    options: Omit<OutboundOptions, "whenReturned" | "whenNacked">,
  ): void {
    this.#outboundMessages.send(this.#undeliveredQueue, body, first ?? {}, {
      ...options,
      whenReturned: "again",
      done: (result) => {
        if (result === "unencodable" && others.length > 0) this.#store(body, others, options)
        else options.done(result)
      },
    })
  }

  #receipt(
    command: QueuedCommand,
    outcome: Outcome,
    detail: string,
    recipient: Recipient | null,
    reply: Reply | null,
  ): Buffer {
    const { headers } = command.delivery.properties
    const target = {
      connectionId: stringOrNull(headers?.["connection_id"]),
      deviceId: stringOrNull(headers?.["device_id"]),
    }
    const ended = receipt(outcome, detail, recipient, target, this.#nowMs(), reply)
    if (!isHeld(command)) return Buffer.from(JSON.stringify(ended))
    const json = JSON.stringify({ ...ended, offered: command.isOffered })
    if (command.copyKey !== null) this.#ofHeld.add(command.copyKey, json)
    return Buffer.from(json)
  }

  #sendReceipt(command: QueuedCommand, replyTo: string, body: Buffer, storing: Storing): void {
    const { wanted, begun, stand } = storing
    this.#publishReceipt(
      replyTo,
      command.delivery.properties,
      body,
      { wanted, begun },
      (result) => {
        if (result === "withdrawn") {
          this.#withdrawn(command, () => this.#sendReceipt(command, replyTo, body, storing))
          return
        }
        stand()
        this.#unacknowledged.acknowledge(command)
      },
    )
  }

  /**
   * @param of the properties of the command.
   * @param done called once, with "withdrawn" when it was not wanted any more.
   */
  #publishReceipt(
    replyTo: string,
    of: MessageProperties,
    body: Buffer,
    options: Pick<OutboundOptions, "wanted" | "begun">,
    done: (result: FinalResult) => void,
  ): void {
    const properties = receiptProperties(of)
    // A full reply queue, or one that confirms nothing, must not hold up other commands.
    const final = { whenReturned: "final", whenNacked: "final", whenUnconfirmed: "final" } as const
    this.#outboundMessages.send(replyTo, body, properties, {
      ...options,
      ...final,
      done: (result) => {
        if (result !== "withdrawn") {
          // A receipt that was given up may be stored, so it is not repeated.
          const isLate =
            result === "nacked" && this.late.add(replyTo, body, properties, this.#countReceipt)
          if (!isLate) this.#countReceipt(result === "confirmed")
        }
        done(result)
      },
    })
  }
}

function isHeld({ message }: QueuedCommand): boolean {
  return message?.isHeld === true
}

function essential(headers: Record<string, HeaderValue>): Record<string, HeaderValue> {
  return pickedHeaders(headers, ESSENTIAL_HEADERS, isShort)
}

function isShort(value: HeaderValue): boolean {
  return (
    typeof value === "number" || (typeof value === "string" && value.length <= SHORT_CHARACTERS)
  )
}

function stringOrNull(value: unknown): string | null {
  return typeof value === "string" ? value : null
}
