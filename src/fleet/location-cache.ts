/**
 * The location cache: the locations of devices on other workers that this worker has looked up.
 *
 * An entry is a hint: a worker that gets a command and does not hold the device asks the fleet. So
 * no command is lost when an entry is missing or outdated. Pure: times are passed in. Bounds:
 * `MAX_CACHED_LOCATIONS` devices, beyond which the oldest entry is removed; `KEPT_MS` for each,
 * since a command that follows a wrong hint costs a question to all workers.
 */

import { BoundedMap } from "../structures/bounded-map.ts"
import { type Deregistration, isNewer, type Registration } from "./registration.ts"

/** About 200 bytes each. */
export const MAX_CACHED_LOCATIONS = 200_000
export const KEPT_MS = 30_000

interface CachedLocation {
  readonly connectionId: string
  readonly epoch: number
  readonly atMs: number
}

export class LocationCache {
  readonly #devices: BoundedMap<string, CachedLocation>

  constructor(max = MAX_CACHED_LOCATIONS) {
    this.#devices = new BoundedMap(max)
  }

  get count(): number {
    return this.#devices.size
  }

  /** The id of the connection that was looked up. @param steadyMs of a monotonic clock. */
  find(deviceId: string, steadyMs: number): string | undefined {
    const location = this.#devices.get(deviceId)
    if (location === undefined) return undefined
    if (steadyMs - location.atMs < KEPT_MS) return location.connectionId
    this.#devices.delete(deviceId)
    return undefined
  }

  /** The epoch of that connection. */
  epochOf(deviceId: string): number | undefined {
    return this.#devices.get(deviceId)?.epoch
  }

  add([deviceId, connectionId, epoch]: Registration, steadyMs: number): void {
    const known = this.#devices.get(deviceId)
    if (known && isNewer(known.epoch, known.connectionId, epoch, connectionId)) return
    this.#devices.add(deviceId, { connectionId, epoch, atMs: steadyMs })
  }

  /** Replaces the location of a device that is cached, and adds none. */
  moved(registration: Registration, steadyMs: number): void {
    if (this.#devices.get(registration[0]) !== undefined) this.add(registration, steadyMs)
  }

  gone([deviceId, connectionId]: Deregistration): void {
    if (this.#devices.get(deviceId)?.connectionId === connectionId) this.#devices.delete(deviceId)
  }
}
