/** The description of one connection in the HTTP API: plain data for JSON, and its schema. */

import * as v from "valibot"
import { type Connection, PAUSED_BY, type PauseSource } from "../device/connection.ts"
import type { WorkerProcess } from "../device/ids.ts"

export interface DeviceView {
  readonly device_id: string
  readonly connection_id: string
  /** When it was admitted, in milliseconds since 1970 like all times in this interface. */
  readonly epoch: number
  readonly instance: string
  readonly worker: string
  readonly state: string
  readonly remote_address: string
  readonly tls_version: string
  readonly lines_in: number
  readonly lines_out: number
  /** When bytes were last received from the device. */
  readonly last_activity: number
  /**
   * Why the device is not read: `window`, `memory`, `drain`, `rate`; empty when it is read. Later
   * versions may add reasons.
   */
  readonly reading_paused_by: readonly string[]
  /** Bytes of commands that wait for the socket. */
  readonly outgoing_bytes: number
  readonly reorder: { readonly held: number; readonly gaps: number }
}

const text = v.pipe(v.string(), v.maxLength(128))
const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0))
export const deviceViewSchema = v.object({
  device_id: text,
  connection_id: text,
  epoch: count,
  instance: text,
  worker: text,
  state: text,
  // Absent when the socket was closed already and had no peer address.
  remote_address: v.optional(text, ""),
  tls_version: v.optional(text, ""),
  lines_in: count,
  lines_out: count,
  last_activity: v.pipe(v.number(), v.safeInteger()),
  reading_paused_by: v.pipe(v.array(text), v.maxLength(16)),
  outgoing_bytes: count,
  reorder: v.object({ held: count, gaps: count }),
})

/** Parses a description from another worker; null when it is not valid. */
export function readDeviceView(value: unknown): DeviceView | null {
  const checked = v.safeParse(deviceViewSchema, value)
  return checked.success ? checked.output : null
}

/** Null for a connection that was not admitted. */
export function deviceView(
  connection: Connection,
  { worker }: WorkerProcess,
  nowMs: number,
): DeviceView | null {
  const { endpoint, peer } = connection
  if (endpoint === null) return null
  const { deviceId, connectionId, epoch } = endpoint.recipient
  const sources = Object.keys(PAUSED_BY) as PauseSource[]
  return {
    device_id: deviceId,
    connection_id: connectionId,
    epoch,
    instance: instanceOf(worker),
    worker,
    state: connection.state,
    remote_address: connection.remoteAddress,
    tls_version: peer.tlsVersion,
    lines_in: endpoint.linesIn,
    lines_out: endpoint.linesOut,
    last_activity: Math.round(nowMs - connection.idleMs),
    reading_paused_by: sources.filter((source) => connection.isPausedBy(source)),
    outgoing_bytes: connection.outgoingBytes,
    reorder: { held: endpoint.heldCommands, gaps: endpoint.gaps },
  }
}

/** The instance id in a worker id, which is `<instance>.<slot>`. */
export function instanceOf(worker: string): string {
  return worker.slice(0, worker.lastIndexOf("."))
}
