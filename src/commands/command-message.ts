/**
 * Reads a command from the properties of a message, or the reason for which the message is not a
 * command. Pure.
 *
 * `to_device_seq` may also be a string of digits, because command-line publishers can only send
 * strings.
 */

import type { HeaderValue, MessageProperties } from "../broker/broker.ts"
import { bodyFault, type Outcome } from "../device/command.ts"
import type { LineFormat } from "../device/framing.ts"
import { CONNECTION_ID, DEVICE_ID, workerOfConnection } from "../device/ids.ts"
import { type CommandOptions, type OptionLimits, readOptions } from "./command-options.ts"

/** The number of times that the command was forwarded from worker to worker. */
export const HOPS_HEADER = "owsla-hops"
/** The same in all copies of one forwarded command: `<worker>.<incarnation>.<random>.<counter>`. */
export const COMMAND_ID_HEADER = "owsla-command"
/**
 * The command was a redelivery before it was forwarded. A forward is a new message, without that
 * flag.
 */
export const REDELIVERED_HEADER = "owsla-redelivered"
/** The outcome of a dead-lettered command, unless the next worker remembers another outcome. */
export const GIVEN_UP_HEADER = "owsla-given-up"
/**
 * The hops of a command that expired in the queue of a worker. That worker may have consumed it and
 * lost the delivery.
 */
export const LEFT_HEADER = "owsla-left"
/**
 * Proves that a member of the fleet sent the command, so that its other internal headers are valid;
 * see `fleet-keys.ts`.
 */
export const MEMBER_HEADER = "owsla-member"
/** Milliseconds since 1970; AMQP's `expiration` restarts in each queue. */
export const EXPIRES_AT_HEADER = "owsla-expires-at"
/** Of an entry in the log of held commands (`hold/held-command.ts`): when it was first held. */
export const HELD_AT_HEADER = "owsla-held-at"
export const HELD_NUMBER_HEADER = "owsla-held-number"
/** Of a tombstone: the id of the command that has ended. */
export const HELD_ENDED_HEADER = "owsla-held-ended"
export const HELD_MARKER_HEADER = "owsla-held-marker"
/**
 * The command is to be held by the worker that gets it, because its device is not connected. The
 * value is true.
 */
export const HOLD_HEADER = "owsla-hold"
/** The command was held, and the worker that gets it holds its connection. The value is true. */
export const HELD_HEADER = "owsla-held"

/**
 * Headers between workers. Copies in the undelivered queue do not have them, since an operator may
 * publish them again.
 */
export const INTERNAL_HEADERS: readonly string[] = [
  HOPS_HEADER,
  COMMAND_ID_HEADER,
  REDELIVERED_HEADER,
  GIVEN_UP_HEADER,
  LEFT_HEADER,
  EXPIRES_AT_HEADER,
  MEMBER_HEADER,
  HELD_AT_HEADER,
  HELD_NUMBER_HEADER,
  HELD_ENDED_HEADER,
  HELD_MARKER_HEADER,
  HOLD_HEADER,
  HELD_HEADER,
]

/** The connection that a command is for, by its own id or by the id of its device. */
export interface Target {
  readonly connectionId: string | null
  readonly deviceId: string | null
}

export interface CommandMessage {
  readonly target: Target
  readonly seq: number | null
  readonly messageId: string | null
  readonly expiresAtMs: number
  readonly hops: number
  /** Null when the command was not forwarded yet. */
  readonly commandId: string | null
  /** It was a redelivery at a worker that forwarded it. */
  readonly redelivered: boolean
  readonly options: CommandOptions
  /** This worker is asked to hold it, because its device is not connected. */
  readonly isHoldRequest: boolean
  /** It was held, and comes from the keeper of its shard to its connection. */
  readonly isHeld: boolean
}

/** What a command may be. */
export interface CommandFormat extends LineFormat, OptionLimits {}

export interface Refusal {
  readonly outcome: Extract<Outcome, "invalid" | "too_large">
  readonly detail: string
}

/** @param nowMs the time of arrival, from which an expiration counts when there is no timestamp. */
export function readCommand(
  body: Uint8Array,
  properties: MessageProperties,
  nowMs: number,
  format: CommandFormat,
): CommandMessage | Refusal {
  const headers = properties.headers ?? {}
  const connectionId = headers["connection_id"] ?? null
  const deviceId = headers["device_id"] ?? null
  if (connectionId === null && deviceId === null) {
    return invalid("neither connection_id nor device_id in the headers")
  }
  if (connectionId !== null && !isIdIn(CONNECTION_ID, connectionId)) {
    return invalid(`connection_id does not match ${CONNECTION_ID.source}`)
  }
  if (deviceId !== null && !isIdIn(DEVICE_ID, deviceId)) {
    return invalid(`device_id does not match ${DEVICE_ID.source}`)
  }
  const seq = readInteger(headers["to_device_seq"])
  if (seq === undefined) return invalid("to_device_seq is no integer from 0 to 2^53 - 1")
  const expiresAtMs = readExpiry(properties, nowMs)
  if (expiresAtMs === undefined) return invalid("expiration is no whole number of milliseconds")
  const options = readOptions(headers, format)
  if (typeof options === "string") return invalid(options)
  const isHeld = headers[HELD_HEADER] === true
  if (options.holdMs !== null && !isHeld) {
    if (connectionId !== null || deviceId === null || workerOfConnection(deviceId) !== null) {
      return invalid("hold_ms needs a device_id: a connection does not return")
    }
    if (seq !== null) return invalid("hold_ms and to_device_seq: numbers are those of a connection")
  }
  const fault = bodyFault(body, format)
  if (fault !== null) return fault
  return {
    target: { connectionId, deviceId },
    seq,
    // An empty id identifies nothing.
    messageId: properties.messageId || null,
    expiresAtMs,
    hops: readInteger(headers[HOPS_HEADER]) ?? 0,
    commandId: readText(headers[COMMAND_ID_HEADER]),
    redelivered: headers[REDELIVERED_HEADER] === true,
    options,
    isHoldRequest: headers[HOLD_HEADER] === true && options.holdMs !== null,
    isHeld,
  }
}

/** The reason for which the broker dead-lettered a message, and the queue. */
export interface Death {
  readonly reason: string
  readonly queue: string
  /** Milliseconds in digits, as in the message; null without an expiration. */
  readonly expiration: string | null
}

/** Reads the `x-death` header, which any publisher can set; null when it is missing or invalid. */
export function readDeath(properties: MessageProperties): Death | null {
  const deaths = properties.headers?.["x-death"]
  const death: unknown = Array.isArray(deaths) ? deaths[0] : null
  if (typeof death !== "object" || death === null) return null
  const { reason, queue, "original-expiration": expiration } = death as Record<string, unknown>
  if (typeof reason !== "string" || typeof queue !== "string") return null
  return { reason, queue, expiration: typeof expiration === "string" ? expiration : null }
}

function invalid(detail: string): Refusal {
  return { outcome: "invalid", detail }
}

function isIdIn(alphabet: RegExp, value: HeaderValue): value is string {
  return typeof value === "string" && alphabet.test(value)
}

function readText(value: HeaderValue): string | null {
  return typeof value === "string" && value !== "" ? value : null
}

/** Null when absent, undefined when it is not an integer from 0 to 2^53 - 1. */
function readInteger(value: HeaderValue): number | null | undefined {
  if (value === undefined || value === null) return null
  const digits = typeof value === "string" && /^[0-9]{1,16}$/.test(value)
  if (!digits && typeof value !== "number" && typeof value !== "bigint") return undefined
  const number = Number(value)
  return Number.isSafeInteger(number) && number >= 0 ? number : undefined
}

/** Milliseconds since 1970, `Infinity` without expiration, undefined when it is not a number. */
function readExpiry(properties: MessageProperties, nowMs: number): number | undefined {
  const carried = readInteger(properties.headers?.[EXPIRES_AT_HEADER])
  if (typeof carried === "number") return carried
  if (properties.expiration === undefined) return Number.POSITIVE_INFINITY
  if (!/^[0-9]{1,15}$/.test(properties.expiration)) return undefined
  const secondMs = properties.timestamp?.getTime() ?? nowMs
  // A timestamp has whole seconds, so the message was sent in that second, but not after its
  // arrival. A timestamp in other units than seconds may exceed the range of a Date.
  const sentAtMs = Number.isNaN(secondMs) ? nowMs : Math.min(nowMs, secondMs + 999)
  return sentAtMs + Number(properties.expiration)
}
