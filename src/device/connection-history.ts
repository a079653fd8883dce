/**
 * The connections of devices that have ended on this worker, by device id.
 *
 * A device's connections are in the order of their ends. In memory: they are gone when the worker
 * ends. Bounds: `MAX_PER_DEVICE` for each device, `MAX_ENDED` in all; the oldest make room.
 */

import { ByAge } from "../structures/by-age.ts"
import type { CloseReason } from "./close-reason.ts"

export const MAX_PER_DEVICE = 20
export const MAX_ENDED = 10_000

export interface EndedConnection {
  readonly deviceId: string
  readonly connectionId: string
  readonly address: string
  /** When it was admitted and when it ended, in milliseconds since 1970. */
  readonly connectedAt: number
  readonly endedAt: number
  readonly reason: CloseReason
}

export class ConnectionHistory {
  readonly #all = new ByAge<EndedConnection>()
  /** The oldest first. */
  readonly #byDevice = new Map<string, EndedConnection[]>()

  get count(): number {
    return this.#all.size
  }

  add(ended: EndedConnection): void {
    const ofDevice = this.#byDevice.get(ended.deviceId)
    if (ofDevice === undefined) this.#byDevice.set(ended.deviceId, [ended])
    else ofDevice.push(ended)
    this.#all.add(ended, ended.endedAt)
    if (ofDevice !== undefined && ofDevice.length > MAX_PER_DEVICE) this.#removeOldest(ofDevice)
    const { oldest } = this.#all
    if (oldest === null || this.#all.size <= MAX_ENDED) return
    this.#removeOldest(this.#byDevice.get(oldest.item.deviceId) ?? [])
  }

  /** The latest connections of the device, the one that ended last first. */
  of(deviceId: string): readonly EndedConnection[] {
    return this.#byDevice.get(deviceId)?.toReversed() ?? []
  }

  /** The oldest of all is also the oldest of its device. */
  #removeOldest(ofDevice: EndedConnection[]): void {
    const removed = ofDevice.shift()
    if (removed === undefined) return
    this.#all.delete(removed)
    if (ofDevice.length === 0) this.#byDevice.delete(removed.deviceId)
  }
}
