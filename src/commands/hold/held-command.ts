/**
 * Held commands, and the messages of the queue `owsla.held.<shard>` in which they are stored. The
 * queue is a log: messages are read from its front and added at its end.
 *
 *   entry      one held command, with the time and number that give its place in the order
 *   tombstone  the command with this id has ended; its entries before it are void
 *   marker     everything before it has been read; see `held-log.ts`
 *
 * An entry may occur several times. Its order comes from its headers, not from the queue. All
 * messages carry the command key of the fleet (`fleet-keys.ts`). Pure.
 */

import type { HeaderValue, MessageProperties } from "../../broker/broker.ts"
import { republishable } from "../../broker/republishing.ts"
import {
  COMMAND_ID_HEADER,
  EXPIRES_AT_HEADER,
  HELD_AT_HEADER,
  HELD_ENDED_HEADER,
  HELD_MARKER_HEADER,
  HELD_NUMBER_HEADER,
  INTERNAL_HEADERS,
  MEMBER_HEADER,
} from "../command-message.ts"

export interface HeldCommand {
  /** The gateway's id of the command: the same in all its entries and forwards. */
  readonly id: string
  readonly deviceId: string
  readonly messageId: string | null
  readonly supersedeKey: string | null
  /** When it was first held, in milliseconds since 1970. */
  readonly heldAtMs: number
  /** The order of commands of one shard that were held in the same millisecond. */
  readonly number: number
  /** Milliseconds since 1970: the end of `hold_ms` or of its own expiration. */
  readonly expiresAtMs: number
  readonly body: Uint8Array
  /** As its sender has set them, without an expiration and without internal headers. */
  readonly properties: MessageProperties
}

export type LogMessage =
  | { readonly kind: "entry"; readonly command: HeldCommand }
  | { readonly kind: "tombstone"; readonly id: string }
  | { readonly kind: "marker"; readonly marker: string }

/** Whether `a` is written before `b`. */
export function isBefore(a: HeldCommand, b: HeldCommand): boolean {
  if (a.heldAtMs !== b.heldAtMs) return a.heldAtMs < b.heldAtMs
  return a.number === b.number ? a.id < b.id : a.number < b.number
}

/** The id by which operators see and cancel it. */
export function shownId({ messageId, id }: HeldCommand): string {
  return messageId ?? id
}

/** Properties of a received command without what the gateway and the broker have added. */
export function ownProperties(properties: MessageProperties): MessageProperties {
  const own = republishable(properties)
  for (const name of INTERNAL_HEADERS) delete own.headers[name]
  return own
}

/** New properties for one publish of an entry. */
export function entryProperties(command: HeldCommand, commandKey: string): MessageProperties {
  const { properties } = command
  return {
    ...properties,
    headers: {
      ...properties.headers,
      [MEMBER_HEADER]: commandKey,
      [COMMAND_ID_HEADER]: command.id,
      [HELD_AT_HEADER]: command.heldAtMs,
      [HELD_NUMBER_HEADER]: command.number,
      [EXPIRES_AT_HEADER]: command.expiresAtMs,
    },
  }
}

export function tombstoneProperties(id: string, commandKey: string): MessageProperties {
  return { headers: { [MEMBER_HEADER]: commandKey, [HELD_ENDED_HEADER]: id } }
}

export function markerProperties(marker: string, commandKey: string): MessageProperties {
  return { headers: { [MEMBER_HEADER]: commandKey, [HELD_MARKER_HEADER]: marker } }
}

/** Reads a message that a member has stored; null when it is none of these. */
export function readLogMessage(body: Uint8Array, properties: MessageProperties): LogMessage | null {
  const headers = properties.headers ?? {}
  const marker = readText(headers[HELD_MARKER_HEADER])
  if (marker !== null) return { kind: "marker", marker }
  const ended = readText(headers[HELD_ENDED_HEADER])
  if (ended !== null) return { kind: "tombstone", id: ended }
  const id = readText(headers[COMMAND_ID_HEADER])
  const deviceId = readText(headers["device_id"])
  const heldAtMs = readNumber(headers[HELD_AT_HEADER])
  const number = readNumber(headers[HELD_NUMBER_HEADER])
  const expiresAtMs = readNumber(headers[EXPIRES_AT_HEADER])
  if (id === null || deviceId === null) return null
  if (heldAtMs === null || number === null || expiresAtMs === null) return null
  const messageId = properties.messageId || null
  const supersedeKey = readText(headers["supersede_key"])
  const own = ownProperties(properties)
  const order = { heldAtMs, number, expiresAtMs }
  const command = { id, deviceId, messageId, supersedeKey, ...order, body, properties: own }
  return { kind: "entry", command }
}

function readText(value: HeaderValue): string | null {
  return typeof value === "string" && value !== "" ? value : null
}

function readNumber(value: HeaderValue): number | null {
  if (typeof value !== "number" && typeof value !== "bigint") return null
  const number = Number(value)
  return Number.isSafeInteger(number) && number >= 0 ? number : null
}
