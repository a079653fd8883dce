/**
 * A filter of the device list, beside the prefix of the id. Each worker applies it to its own
 * connections, of which it looks at all for a list anyway. A worker of an earlier version does not
 * know filters and answers with all of its devices.
 */

import * as v from "valibot"
import { type Connection, PAUSED_BY, type PauseSource } from "../device/connection.ts"

const SOURCES = Object.keys(PAUSED_BY) as PauseSource[]

/** Why a device is not read; `any` is each of the causes. */
export const PAUSED = ["any", ...SOURCES] as const

/** In messages between workers. Without a field all devices match. */
export const deviceFilter = v.object({
  /** The beginning of the address. */
  address: v.optional(v.pipe(v.string(), v.maxLength(64))),
  paused_by: v.optional(v.picklist(PAUSED)),
  /** Nothing was received from the device for so many milliseconds. */
  silent_ms: v.optional(v.pipe(v.number(), v.safeInteger(), v.minValue(0))),
})

export type DeviceFilter = Readonly<v.InferOutput<typeof deviceFilter>>

export function matches(connection: Connection, filter: DeviceFilter): boolean {
  const { address = "", paused_by: pausedBy, silent_ms: silentMs = 0 } = filter
  if (!connection.remoteAddress.startsWith(address)) return false
  if (silentMs > 0 && connection.idleMs < silentMs) return false
  if (pausedBy === undefined) return true
  return pausedBy === "any"
    ? SOURCES.some((source) => connection.isPausedBy(source))
    : connection.isPausedBy(pausedBy)
}
