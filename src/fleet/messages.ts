/**
 * The messages between workers: a closed list, sent as JSON to `owsla.fleet` or to the fleet queue
 * of one worker.
 *
 *   alive, leaving                  membership in the fleet
 *   devices ──► kept                registers devices that have connected or disconnected, with the keepers of their shards
 *                                   or, when no keeper is known, with all workers
 *   newer                           tells a worker of newer connections of devices that it holds
 *   find ──► found                  asks a keeper where these devices are
 *   where ──► there                 asks which of these devices a worker holds
 *   list ──► listed                 asks for the devices of a worker
 *   describe ──► described          asks for the description of one connection
 *   kick ──► kicked                 asks to close one connection
 *   held_done                       tells a worker that held commands for its connections were written
 *   held_waits                      tells it that held commands for its connections wait for others
 *   held_list ──► held_listed       asks a keeper for the held commands of one device
 *   held_cancel ──► held_cancelled  asks a keeper to cancel held commands of one device
 *   refusals_list ──► refusals_listed
 *   connections_list ──► connections_listed
 *                                   asks for what a worker remembers of connections (`records-query.ts`)
 *   gate, bans                      which devices the fleet refuses (`admission-rules.ts`)
 *   tapes ──► tapes_told            the tapes of a worker (`tape/tapes.ts`)
 *   tape_entries                    what a worker has recorded, for the owner of the tape
 *   tape_read ──► tape_part         asks the owner of a tape for entries
 *   tape_stop ──► tape_stopped      asks it to discard the tape
 *   broadcast ──► broadcast_matched, broadcast_go ──► broadcast_report, broadcast_end
 *                                   writes a line to many devices (`broadcasts.ts`)
 *
 * Each row of a message is validated separately: an invalid row does not affect the others. A
 * member can register only its own connections; a keeper tells of those of others. No epoch is more
 * than `MAX_EPOCH_AHEAD_MS` ahead of the clock: a device with a larger one could never be taken
 * over. Pure: schemas and their check. Bounds: `MAX_ROWS` devices in each message,
 * `MAX_BROADCAST_IDS` in a broadcast; `MAX_SHARDS`; `MAX_TAPES_OF_WORKER`.
 */

import * as v from "valibot"
import { CONNECTION_ID, DEVICE_ID, processOfConnection } from "../device/ids.ts"
import { MAX_BROADCAST_IDS, MAX_PER_S } from "./broadcast-request.ts"
import { deviceFilter } from "./device-filter.ts"
import type { Deregistration, Registration } from "./registration.ts"
import { MAX_SHARDS } from "./shards.ts"
import { type AnnouncedRow, MAX_TAPES_OF_WORKER } from "./tape/announced-tapes.ts"
import { PAYLOADS } from "./tape/entry.ts"

export const MAX_ROWS = 1_000

/** More than the clocks of two machines differ, even with a wrong time zone. */
const MAX_EPOCH_AHEAD_MS = 86_400_000

const id = v.pipe(v.string(), v.regex(DEVICE_ID))
const ask = v.pipe(v.number(), v.safeInteger())
const sender = { from: id, incarnation: id }
/** Unchecked rows; `checkRows` checks them. */
const rows = v.pipe(v.array(v.unknown()), v.maxLength(MAX_ROWS))
const registrations = v.pipe(
  rows,
  v.transform((unchecked) => unchecked as readonly Registration[]),
)
const deregistrations = v.pipe(
  rows,
  v.transform((unchecked) => unchecked as readonly Deregistration[]),
)
const deviceIds = v.pipe(
  rows,
  v.transform((unchecked) => unchecked as readonly string[]),
)
const shard = v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(MAX_SHARDS - 1))
const shards = v.pipe(v.array(shard), v.maxLength(MAX_SHARDS))
/** Counts the registration messages from one process to another. */
const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0))
/** Unchecked; `readDeviceView` checks each row separately. */
const view = v.record(v.string(), v.unknown())
/** Milliseconds of the monotonic clock of the process that holds the connection. */
const holderMs = v.optional(v.pipe(v.number(), v.finite()))

const wholeNumber = v.pipe(v.number(), v.safeInteger(), v.minValue(0))
const timeMs = wholeNumber
const ban = v.object({ device_id: id, at: timeMs, until: timeMs, connects: timeMs })
const MAX_TAPE_MS = 3_600_000
/** Longer than any ban. */
const MAX_BAN_MS = 86_400_000

const tapeId = v.pipe(v.string(), v.maxLength(64))
const tape = v.object({
  id: tapeId,
  device_id: id,
  payload: v.picklist(PAYLOADS),
  max_bytes: wholeNumber,
  started_at: timeMs,
  until: timeMs,
  left_ms: v.pipe(wholeNumber, v.maxValue(MAX_TAPE_MS)),
})
const tapes = v.pipe(
  v.array(v.unknown()),
  v.maxLength(MAX_TAPES_OF_WORKER),
  v.transform((unchecked) => unchecked as readonly AnnouncedRow[]),
)
/** The numbers of the entries of a tape. */
const numbers = v.pipe(v.array(wholeNumber), v.maxLength(MAX_ROWS))

const broadcastId = v.pipe(v.string(), v.maxLength(64))
const audience = v.variant("kind", [
  v.object({ kind: v.literal("all") }),
  v.object({ kind: v.literal("prefix"), prefix: v.pipe(v.string(), v.maxLength(128)) }),
  v.object({
    kind: v.literal("ids"),
    ids: v.pipe(
      v.array(v.unknown()),
      v.maxLength(MAX_BROADCAST_IDS),
      v.transform((unchecked) => unchecked as readonly string[]),
    ),
  }),
])
/** Of a later version, they may have names that are not known here. */
const lineCounts = v.pipe(
  v.record(v.pipe(v.string(), v.regex(/^[a-z_]{1,32}$/)), wholeNumber),
  v.maxEntries(32),
)

/** Of a later version, they may have names that are not known here. */
const settings = v.pipe(
  v.record(
    v.pipe(v.string(), v.regex(/^[A-Z_]{1,64}$/)),
    v.union([v.pipe(v.string(), v.maxLength(255)), v.pipe(v.number(), v.finite())]),
  ),
  v.maxEntries(64),
)

const message = v.variant("type", [
  /** With `asks` each receiver answers with its own `alive`. */
  v.object({
    type: v.literal("alive"),
    ...sender,
    asks: v.boolean(),
    /** The sender's clock, for the comparison of clocks by the doctor. */
    sent_at: v.optional(timeMs),
    /** How many devices the sender can admit in a second, as far as it knows. */
    admits_per_s: v.optional(v.pipe(v.number(), v.minValue(0), v.maxValue(1e6))),
    /** The number of held commands that the sender keeps. */
    held: v.optional(count),
    /**
     * Settings that must be equal on all instances, for the doctor. Earlier versions send none.
     * Invalid ones are dropped, because membership must not depend on them.
     */
    settings: v.fallback(v.optional(settings), undefined),
    /** The shards that the sender keeps. Earlier versions keep none. */
    keeps: v.optional(
      v.object({
        of: v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(MAX_SHARDS)),
        since: count,
        version: count,
        shards,
        /** Earlier versions send none. */
        keepers: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1))),
      }),
    ),
  }),
  v.object({ type: v.literal("leaving"), ...sender }),
  v.object({
    type: v.literal("devices"),
    ...sender,
    here: registrations,
    gone: deregistrations,
    /** Set in a message to a keeper, which answers with `kept`. */
    n: v.optional(count),
    /** The sender begins to tell the keeper all its devices of these shards. */
    tells: v.optional(shards),
    /** With this message the sender has told all its devices of these shards. */
    told: v.optional(shards),
  }),
  /** The keeper has handled all messages up to `n`. */
  v.object({
    type: v.literal("kept"),
    ...sender,
    n: count,
    /** Connections that must be registered again with this larger epoch: they came later. */
    raised: registrations,
    /** Of the devices that have connected, those with held commands. */
    held: deviceIds,
    /** Devices that are not registered: the sender does not keep their shards any more. */
    refused: deviceIds,
  }),
  v.object({ type: v.literal("newer"), ...sender, devices: registrations }),
  v.object({ type: v.literal("find"), ...sender, ask, devices: deviceIds }),
  /** `absent`: the devices that no worker holds. Of all others the keeper does not know. */
  v.object({
    type: v.literal("found"),
    ...sender,
    ask,
    devices: registrations,
    absent: deviceIds,
  }),
  v.object({
    type: v.literal("where"),
    ...sender,
    ask,
    devices: deviceIds,
  }),
  v.object({ type: v.literal("there"), ...sender, ask, devices: registrations }),
  v.object({
    type: v.literal("list"),
    ...sender,
    ask,
    prefix: v.string(),
    after: v.string(),
    limit: v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(MAX_ROWS)),
    filter: v.optional(deviceFilter),
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
  /**
   * Not carried out at or after `until_ms`. Earlier versions send no `until_ms`, which means no
   * deadline.
   */
  v.object({ type: v.literal("kick"), ...sender, ask, connection: id, until_ms: holderMs }),
  /** `overdue`: the kick arrived after its deadline and was not carried out. */
  v.object({
    type: v.literal("kicked"),
    ...sender,
    ask,
    device: v.nullable(view),
    overdue: v.optional(v.boolean()),
  }),
  /** All held commands for these connections have been written. */
  v.object({
    type: v.literal("held_done"),
    ...sender,
    connections: v.pipe(v.array(id), v.maxLength(MAX_ROWS)),
  }),
  /** The held commands for these connections wait for those of others. */
  v.object({
    type: v.literal("held_waits"),
    ...sender,
    connections: v.pipe(v.array(id), v.maxLength(MAX_ROWS)),
  }),
  v.object({
    type: v.literal("held_list"),
    ...sender,
    ask,
    device: id,
    /** With the lines themselves. */
    lines: v.boolean(),
  }),
  /** Null while the keeper does not know all of them; `held-query.ts` checks the rows. */
  v.object({
    type: v.literal("held_listed"),
    ...sender,
    ask,
    held: v.nullable(v.pipe(v.array(v.unknown()), v.maxLength(MAX_ROWS))),
  }),
  v.object({
    type: v.literal("held_cancel"),
    ...sender,
    ask,
    device: id,
    /** Null for all. */
    message_id: v.nullable(v.pipe(v.string(), v.maxLength(255))),
  }),
  v.object({ type: v.literal("held_cancelled"), ...sender, ask, cancelled: v.nullable(count) }),
  v.object({
    type: v.literal("refusals_list"),
    ...sender,
    ask,
    limit: v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(MAX_ROWS)),
  }),
  /** `records-query.ts` checks the rows of this and of `connections_listed`. */
  v.object({ type: v.literal("refusals_listed"), ...sender, ask, refusals: rows }),
  v.object({ type: v.literal("connections_list"), ...sender, ask, device: id }),
  v.object({ type: v.literal("connections_listed"), ...sender, ask, connections: rows }),
  v.object({
    type: v.literal("gate"),
    ...sender,
    gate: v.object({
      open: v.boolean(),
      prefix: v.pipe(v.string(), v.maxLength(128)),
      retry_after_ms: v.nullable(timeMs),
      set_at: timeMs,
      set_by: id,
    }),
  }),
  v.object({
    type: v.literal("bans"),
    ...sender,
    bans: v.pipe(
      rows,
      v.transform((unchecked) => unchecked as readonly v.InferOutput<typeof ban>[]),
    ),
  }),
  v.object({
    type: v.literal("broadcast"),
    ...sender,
    id: broadcastId,
    key: v.nullable(broadcastId),
    again: v.boolean(),
    to: audience,
    /** Base64. */
    line: v.string(),
    supersede_key: v.nullable(v.string()),
  }),
  /** `matched` is null when the worker has no room. `outcomes`: of lines that it wrote before. */
  v.object({
    type: v.literal("broadcast_matched"),
    ...sender,
    id: broadcastId,
    matched: v.nullable(wholeNumber),
    outcomes: lineCounts,
  }),
  v.object({
    type: v.literal("broadcast_go"),
    ...sender,
    id: broadcastId,
    per_s: v.pipe(v.number(), v.gtValue(0), v.maxValue(MAX_PER_S)),
  }),
  v.object({
    type: v.literal("broadcast_report"),
    ...sender,
    id: broadcastId,
    outcomes: lineCounts,
    ended: v.boolean(),
  }),
  v.object({ type: v.literal("broadcast_end"), ...sender, id: broadcastId }),
  /** All tapes of the sender. With `ask` each receiver answers with its own. */
  v.object({ type: v.literal("tapes"), ...sender, ask: v.optional(ask), tapes }),
  v.object({ type: v.literal("tapes_told"), ...sender, ask, tapes }),
  /** `own-tape.ts` checks the rows. */
  v.object({
    type: v.literal("tape_entries"),
    ...sender,
    id: tapeId,
    /** The number of the first row, counted by the sender. */
    first: wholeNumber,
    rows: v.pipe(v.array(v.unknown()), v.maxLength(MAX_ROWS)),
    /** The numbers of entries that may be completed later. */
    open: numbers,
  }),
  /** The entries from the number `first` on. */
  v.object({ type: v.literal("tape_read"), ...sender, ask, id: tapeId, first: wholeNumber }),
  /** Null when there is no such tape. `tapes.ts` checks the items. */
  v.object({
    type: v.literal("tape_part"),
    ...sender,
    ask,
    part: v.nullable(
      v.object({
        first: wholeNumber,
        before: wholeNumber,
        items: v.pipe(v.array(v.unknown()), v.maxLength(MAX_ROWS)),
        end: wholeNumber,
      }),
    ),
    is_over: v.boolean(),
  }),
  v.object({ type: v.literal("tape_stop"), ...sender, ask, id: tapeId }),
  v.object({ type: v.literal("tape_stopped"), ...sender, ask, stopped: v.boolean() }),
])

export type FleetMessage = v.InferOutput<typeof message>

/** Values by the names of the settings. */
export type FleetSettings = Readonly<v.InferOutput<typeof settings>>

/** A message without its sender, which the channel adds. */
export type FleetContent = FleetMessage extends infer M
  ? M extends FleetMessage
    ? Omit<M, "from" | "incarnation">
    : never
  : never

export type Answer = Extract<
  FleetMessage,
  {
    type:
      | "there"
      | "listed"
      | "described"
      | "kicked"
      | "held_listed"
      | "held_cancelled"
      | "refusals_listed"
      | "connections_listed"
      | "tapes_told"
      | "tape_part"
      | "tape_stopped"
  }
>

export type BroadcastMessage = Extract<FleetMessage, { type: `broadcast${string}` }>

export interface ReadMessage {
  readonly message: FleetMessage
  /** The number of invalid rows that were removed. */
  readonly refusedRows: number
}

/**
 * The message, or null when the text is not a valid message, for example one of a later version.
 * @param nowMs milliseconds since 1970, like epochs.
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

/** @returns null when the message as a whole is not valid. */
function checkRows(message: FleetMessage, nowMs: number): ReadMessage | null {
  switch (message.type) {
    case "there": {
      const devices = message.devices.filter((row) => isRegistrationOf(row, message, nowMs))
      return {
        message: { ...message, devices },
        refusedRows: message.devices.length - devices.length,
      }
    }
    case "newer": {
      const devices = message.devices.filter((row) => isRegistration(row, nowMs))
      return {
        message: { ...message, devices },
        refusedRows: message.devices.length - devices.length,
      }
    }
    case "found": {
      const devices = message.devices.filter((row) => isRegistration(row, nowMs))
      const absent = message.absent.filter(isDevice)
      const left = devices.length + absent.length
      const refusedRows = message.devices.length + message.absent.length - left
      return { message: { ...message, devices, absent }, refusedRows }
    }
    case "kept": {
      const raised = message.raised.filter((row) => isRegistration(row, nowMs))
      const held = message.held.filter(isDevice)
      const refused = message.refused.filter(isDevice)
      const left = raised.length + held.length + refused.length
      const sent = message.raised.length + message.held.length + message.refused.length
      return { message: { ...message, raised, held, refused }, refusedRows: sent - left }
    }
    case "find":
    case "where": {
      const devices = message.devices.filter(isDevice)
      return {
        message: { ...message, devices },
        refusedRows: message.devices.length - devices.length,
      }
    }
  }
  if (message.type === "broadcast" && message.to.kind === "ids") {
    const { to } = message
    const ids = to.ids.filter(isDevice)
    return { message: { ...message, to: { ...to, ids } }, refusedRows: to.ids.length - ids.length }
  }
  if (message.type === "bans") {
    const bans = message.bans.filter((row) => isBan(row, nowMs))
    return { message: { ...message, bans }, refusedRows: message.bans.length - bans.length }
  }
  if (message.type === "tapes" || message.type === "tapes_told") {
    const checked = message.tapes.filter((row) => isTape(row, nowMs))
    const refusedRows = message.tapes.length - checked.length
    return { message: { ...message, tapes: checked }, refusedRows }
  }
  if (message.type === "gate" && message.gate.set_at > nowMs + MAX_EPOCH_AHEAD_MS) return null
  if (message.type !== "devices") return { message, refusedRows: 0 }
  const here = message.here.filter((row) => isRegistrationOf(row, message, nowMs))
  const gone = message.gone.filter((row) => isDeregistration(row, message))
  const refusedRows = message.here.length - here.length + message.gone.length - gone.length
  return { message: { ...message, here, gone }, refusedRows }
}

interface Sender {
  readonly from: string
  readonly incarnation: string
}

/** A fourth element, 1, marks a device that has just connected. */
function isRegistration(row: unknown, nowMs: number): row is Registration {
  if (!Array.isArray(row) || row.length < 3 || row.length > 4) return false
  const [deviceId, connectionId, epoch, fresh = 1] = row
  if (!isDevice(deviceId) || fresh !== 1) return false
  if (typeof connectionId !== "string" || processOfConnection(connectionId) === null) return false
  return Number.isSafeInteger(epoch) && epoch >= 0 && epoch <= nowMs + MAX_EPOCH_AHEAD_MS
}

function isRegistrationOf(row: unknown, sender: Sender, nowMs: number): boolean {
  return isRegistration(row, nowMs) && isConnectionOf(row[1], sender)
}

function isDeregistration(row: unknown, sender: Sender): boolean {
  return (
    Array.isArray(row) && row.length === 2 && isDevice(row[0]) && isConnectionOf(row[1], sender)
  )
}

function isBan(row: unknown, nowMs: number): boolean {
  const checked = v.safeParse(ban, row)
  if (!checked.success) return false
  const { at, until } = checked.output
  return at <= nowMs + MAX_EPOCH_AHEAD_MS && until <= at + MAX_BAN_MS
}

function isTape(row: unknown, nowMs: number): boolean {
  const checked = v.safeParse(tape, row)
  return checked.success && checked.output.started_at <= nowMs + MAX_EPOCH_AHEAD_MS
}

function isDevice(value: unknown): boolean {
  return typeof value === "string" && DEVICE_ID.test(value)
}

function isConnectionOf(value: unknown, { from, incarnation }: Sender): boolean {
  if (typeof value !== "string" || !CONNECTION_ID.test(value)) return false
  const holder = processOfConnection(value)
  return holder?.worker === from && holder.incarnation === incarnation
}
