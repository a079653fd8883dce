/**
 * The location cache: the locations of devices on other workers, as those workers have announced
 * them.
 *
 * An entry is a hint: a worker that gets a command and does not hold the device asks the fleet. So
 * no command is lost when an entry is missing or outdated. Pure. Bound: `MAX_CACHED_LOCATIONS`
 * devices. Beyond it the entry with the oldest announcement is removed.
 */

import { BoundedMap } from "../structures/bounded-map.ts"
import { type Deregistration, isNewer, type Registration } from "./registration.ts"

/** About 200 bytes each. */
export const MAX_CACHED_LOCATIONS = 200_000

interface CachedLocation {
  readonly connectionId: string
  readonly epoch: number
}

export class LocationCache {
  readonly #devices: BoundedMap<string, CachedLocation>

  constructor(max = MAX_CACHED_LOCATIONS) {
    this.#devices = new BoundedMap(max)
  }

  get count(): number {
    return this.#devices.size
  }

  /** The id of the device's newest announced connection. */
  find(deviceId: string): string | undefined {
    return this.#devices.get(deviceId)?.connectionId
  }

  /** The epoch of that connection. */
  epochOf(deviceId: string): number | undefined {
    return this.#devices.get(deviceId)?.epoch
  }

  here([deviceId, connectionId, epoch]: Registration): void {
    const known = this.#devices.get(deviceId)
    if (known && isNewer(known.epoch, known.connectionId, epoch, connectionId)) return
    this.#devices.add(deviceId, { connectionId, epoch })
  }

  gone([deviceId, connectionId]: Deregistration): void {
    if (this.#devices.get(deviceId)?.connectionId === connectionId) this.#devices.delete(deviceId)
  }
}
