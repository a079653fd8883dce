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
 * Bound: `MAX_ROWS` devices a message.
 */

import * as v from "valibot"
import type { Parting, Sighting } from "./sighting.ts"

export const MAX_ROWS = 1_000

/** The longest ids are those of devices. */
const MAX_ID_CHARACTERS = 128

const id = v.pipe(v.string(), v.maxLength(MAX_ID_CHARACTERS))
const ask = v.pipe(v.number(), v.safeInteger())
const sender = { from: id, incarnation: id }
const sightings = v.pipe(v.array(v.custom<Sighting>(isSighting)), v.maxLength(MAX_ROWS))
/** `readDeviceView` checks each row by itself: a row that cannot be read does not affect the others. */
const view = v.record(v.string(), v.unknown())
/** Milliseconds of the clock of the process that holds the connection; it never jumps. */
const holderMs = v.optional(v.pipe(v.number(), v.finite()))

const message = v.variant("type", [
  /** `asks`: whoever gets this tells the sender the same of itself. */
  v.object({ type: v.literal("alive"), ...sender, asks: v.boolean() }),
  v.object({ type: v.literal("leaving"), ...sender }),
  v.object({
    type: v.literal("devices"),
    ...sender,
    here: sightings,
    gone: v.pipe(v.array(v.custom<Parting>(isParting)), v.maxLength(MAX_ROWS)),
  }),
  v.object({
    type: v.literal("where"),
    ...sender,
    ask,
    devices: v.pipe(v.array(id), v.maxLength(MAX_ROWS)),
  }),
  v.object({ type: v.literal("there"), ...sender, ask, devices: sightings }),
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

/** The message, or null when the text is none, for example of a later version. */
export function parseFleetMessage(text: string): FleetMessage | null {
  let parsed: unknown
  try {
    parsed = JSON.parse(text)
  } catch {
    return null
  }
  const checked = v.safeParse(message, parsed)
  return checked.success ? checked.output : null
}

function isSighting(value: unknown): boolean {
  if (!Array.isArray(value) || value.length !== 3) return false
  const [deviceId, connectionId, epoch] = value
  return isId(deviceId) && isId(connectionId) && Number.isSafeInteger(epoch)
}

function isParting(value: unknown): boolean {
  return Array.isArray(value) && value.length === 2 && value.every(isId)
}

function isId(value: unknown): boolean {
  return typeof value === "string" && value.length <= MAX_ID_CHARACTERS
}
