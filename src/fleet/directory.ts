/**
 * The directory of a keeper: where the devices of its shards are, as far as they are connected to
 * other workers.
 *
 *   gain ─► incomplete ──each member has told all its devices──► complete        lose ─► (nothing)
 *
 * A registration is a hint, except for one answer: when the directory is complete and has no
 * registration of a device, no other worker holds it. A member tells all its devices of a shard
 * when it hears who keeps the shard, and from then on each change.
 *
 * Pure: times are passed in. Bound: one registration for each device of the kept shards, about 250
 * bytes each.
 */

import { isSameOrEarlier, processOfConnection, type WorkerProcess } from "../device/ids.ts"
import type { Registration } from "./registration.ts"
import { shardOf } from "./shards.ts"

interface Entry {
  readonly connectionId: string
  readonly epoch: number
  readonly atMs: number
}

export interface Found {
  readonly registration: Registration
  /** When the connection was registered first. */
  readonly atMs: number
}

interface Shard {
  readonly devices: Map<string, Entry>
  /** The processes that have told all their devices, as `keyOf`. */
  readonly told: Set<string>
}

export class Directory {
  readonly #shards: number
  readonly #kept = new Map<number, Shard>()

  /** @param shards the number of all shards. */
  constructor(shards: number) {
    this.#shards = shards
  }

  /** The number of registrations. */
  get count(): number {
    let count = 0
    for (const { devices } of this.#kept.values()) count += devices.size
    return count
  }

  gain(shard: number): void {
    this.#kept.set(shard, { devices: new Map(), told: new Set() })
  }

  lose(shard: number): void {
    this.#kept.delete(shard)
  }

  /** Registrations may have been lost: all members tell all their devices again. */
  restart(): void {
    for (const { told } of this.#kept.values()) told.clear()
  }

  keeps(deviceId: string): boolean {
    return this.#shardOf(deviceId) !== undefined
  }

  /** Has no effect when this worker does not keep the shard. */
  set([deviceId, connectionId, epoch]: Registration, atMs: number): void {
    const devices = this.#shardOf(deviceId)?.devices
    const known = devices?.get(deviceId)
    const sinceMs = known?.connectionId === connectionId ? known.atMs : atMs
    devices?.set(deviceId, { connectionId, epoch, atMs: sinceMs })
  }

  find(deviceId: string): Found | undefined {
    const entry = this.#shardOf(deviceId)?.devices.get(deviceId)
    if (entry === undefined) return undefined
    return { registration: [deviceId, entry.connectionId, entry.epoch], atMs: entry.atMs }
  }

  /** Removes the registration of a device. */
  remove(deviceId: string): void {
    this.#shardOf(deviceId)?.devices.delete(deviceId)
  }

  /**
   * A process has no connection of the device any more. Its last connection need not have been
   * registered: it may have replaced another one of the process and closed within the same turn.
   * @param connectionId that last connection.
   */
  gone(deviceId: string, connectionId: string): void {
    const devices = this.#shardOf(deviceId)?.devices
    const known = devices?.get(deviceId)?.connectionId
    if (known !== undefined && isSameOrEarlier(known, connectionId)) devices?.delete(deviceId)
  }

  /** A process begins to tell all its devices of a shard. */
  tells(shard: number, process: WorkerProcess): void {
    const kept = this.#kept.get(shard)
    if (kept === undefined) return
    kept.told.delete(keyOf(process))
    for (const [deviceId, { connectionId }] of kept.devices) {
      if (isOf(connectionId, process)) kept.devices.delete(deviceId)
    }
  }

  /** A process has told all its devices of a shard. */
  hasTold(shard: number, process: WorkerProcess): void {
    this.#kept.get(shard)?.told.add(keyOf(process))
  }

  /** Whether each of these processes has told all its devices of this device's shard. */
  isComplete(deviceId: string, processes: Iterable<WorkerProcess>): boolean {
    const shard = this.#shardOf(deviceId)
    if (shard === undefined) return false
    for (const process of processes) if (!shard.told.has(keyOf(process))) return false
    return true
  }

  /** Removes the registrations of processes that have ended. */
  purge(hasEnded: (process: WorkerProcess) => boolean): void {
    for (const { devices, told } of this.#kept.values()) {
      for (const [deviceId, { connectionId }] of devices) {
        const holder = processOfConnection(connectionId)
        if (holder !== null && hasEnded(holder)) devices.delete(deviceId)
      }
      for (const key of told) if (hasEnded(processOf(key))) told.delete(key)
    }
  }

  #shardOf(deviceId: string): Shard | undefined {
    return this.#kept.get(shardOf(deviceId, this.#shards))
  }
}

/** Identifies a process as a map key. */
export function keyOf({ worker, incarnation }: WorkerProcess): string {
  return `${worker}.${incarnation}`
}

function processOf(key: string): WorkerProcess {
  const at = key.lastIndexOf(".")
  return { worker: key.slice(0, at), incarnation: key.slice(at + 1) }
}

function isOf(connectionId: string, { worker, incarnation }: WorkerProcess): boolean {
  return connectionId.startsWith(`${worker}.${incarnation}.`)
}
