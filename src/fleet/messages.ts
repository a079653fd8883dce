/**
 * What workers tell each other: one closed list of messages, JSON on `owsla.fleet` and on the fleet
 * queue of one worker. Pure: formats and their check.
 *
 *   alive, leaving        who is in the fleet
 *   devices               which devices have come and gone
 *   where ──► there       which of these devices do you hold
 *   list ──► listed       what devices do you hold
 *   describe ──► described, kick ──► kicked      one connection
 *
 * Each row of a message is checked by itself: one that is not valid does not affect the others. A member registers its own
 * connections alone, and no epoch is more than `MAX_EPOCH_AHEAD_MS` ahead of the clock: a larger one would keep its
 * device from ever being taken over. Bound: `MAX_ROWS` devices a message.
 */

import * as v from "valibot"
import { CONNECTION_ID, DEVICE_ID, processOfConnection } from "../device/ids.ts"
import type { Deregistration, Registration } from "./registration.ts"

export const MAX_ROWS = 1_000

/** More than the clocks of two machines differ, and two time zones. */
const MAX_EPOCH_AHEAD_MS = 86_400_000

const id = v.pipe(v.string(), v.regex(DEVICE_ID))
const ask = v.pipe(v.number(), v.safeInteger())
const sender = { from: id, incarnation: id }
/** Rows that are not checked yet; `checkRows` does. */
const rows = v.pipe(v.array(v.unknown()), v.maxLength(MAX_ROWS))
const registrations = v.pipe(
  rows,
  v.transform((unchecked) => unchecked as readonly Registration[]),
)
const deregistrations = v.pipe(
  rows,
  v.transform((unchecked) => unchecked as readonly Deregistration[]),
)
/** `readDeviceView` checks each row by itself: a row that cannot be read does not affect the others. */
const view = v.record(v.string(), v.unknown())
/** Milliseconds of the clock of the process that holds the connection; it never jumps. */
const holderMs = v.optional(v.pipe(v.number(), v.finite()))

const message = v.variant("type", [
  /** `asks`: each receiver answers with its own. */
  v.object({ type: v.literal("alive"), ...sender, asks: v.boolean() }),
  v.object({ type: v.literal("leaving"), ...sender }),
  v.object({
    type: v.literal("devices"),
    ...sender,
    here: registrations,
    gone: deregistrations,
  }),
  v.object({
    type: v.literal("where"),
    ...sender,
    ask,
    devices: v.pipe(
      rows,
      v.transform((unchecked) => unchecked as readonly string[]),
    ),
  }),
  v.object({ type: v.literal("there"), ...sender, ask, devices: registrations }),
  v.object({
    type: v.literal("list"),
    ...sender,
    ask,
    prefix: v.string(),
    after: v.string(),
    limit: v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(MAX_ROWS)),
  }),
  v.object({
    type: v.literal("listed"),
    ...sender,
    ask,
    devices: v.pipe(v.array(view), v.maxLength(MAX_ROWS)),
    total: v.pipe(v.number(), v.safeInteger(), v.minValue(0)),
  }),
  v.object({ type: v.literal("describe"), ...sender, ask, connection: id }),
  v.object({
    type: v.literal("described"),
    ...sender,
    ask,
    device: v.nullable(view),
    clock_ms: holderMs,
  }),
  /** `until_ms`: not to be carried out at or after this time; without it, from an earlier version, always. */
  v.object({ type: v.literal("kick"), ...sender, ask, connection: id, until_ms: holderMs }),
  /** `overdue`: it came too late and was not carried out. */
  v.object({
    type: v.literal("kicked"),
    ...sender,
    ask,
    device: v.nullable(view),
    overdue: v.optional(v.boolean()),
  }),
])

export type FleetMessage = v.InferOutput<typeof message>

/** A message without its sender, which the channel adds. */
export type FleetContent = FleetMessage extends infer M
  ? M extends FleetMessage
    ? Omit<M, "from" | "incarnation">
    : never
  : never

export type Answer = Extract<FleetMessage, { type: "there" | "listed" | "described" | "kicked" }>

export interface ReadMessage {
  readonly message: FleetMessage
  /** Rows that were left out, since they are not valid. */
  readonly refusedRows: number
}

/**
 * The message, or null when the text is none, for example of a later version.
 * @param nowMs milliseconds since 1970, as epochs are.
 */
export function parseFleetMessage(text: string, nowMs: number): ReadMessage | null {
  let parsed: unknown
  try {
    parsed = JSON.parse(text)
  } catch {
    return null
  }
  const checked = v.safeParse(message, parsed)
  return checked.success ? checkRows(checked.output, nowMs) : null
}

function checkRows(message: FleetMessage, nowMs: number): ReadMessage {
  if (message.type === "there") {
    const devices = message.devices.filter((row) => isRegistration(row, message, nowMs))
    const refusedRows = message.devices.length - devices.length
    return { message: { ...message, devices }, refusedRows }
  }
  if (message.type === "where") {
    const devices = message.devices.filter(isDevice)
    return {
      message: { ...message, devices },
      refusedRows: message.devices.length - devices.length,
    }
  }
  if (message.type !== "devices") return { message, refusedRows: 0 }
  const here = message.here.filter((row) => isRegistration(row, message, nowMs))
  const gone = message.gone.filter((row) => isDeregistration(row, message))
  const refusedRows = message.here.length - here.length + message.gone.length - gone.length
  return { message: { ...message, here, gone }, refusedRows }
}

interface Sender {
  readonly from: string
  readonly incarnation: string
}

function isRegistration(row: unknown, sender: Sender, nowMs: number): boolean {
  if (!Array.isArray(row) || row.length !== 3) return false
  const [deviceId, connectionId, epoch] = row
  if (!isDevice(deviceId) || !isConnectionOf(connectionId, sender)) return false
  return Number.isSafeInteger(epoch) && epoch >= 0 && epoch <= nowMs + MAX_EPOCH_AHEAD_MS
}

function isDeregistration(row: unknown, sender: Sender): boolean {
  return (
    Array.isArray(row) && row.length === 2 && isDevice(row[0]) && isConnectionOf(row[1], sender)
  )
}

function isDevice(value: unknown): boolean {
  return typeof value === "string" && DEVICE_ID.test(value)
}

function isConnectionOf(value: unknown, { from, incarnation }: Sender): boolean {
  if (typeof value !== "string" || !CONNECTION_ID.test(value)) return false
  const holder = processOfConnection(value)
  return holder?.worker === from && holder.incarnation === incarnation
}
