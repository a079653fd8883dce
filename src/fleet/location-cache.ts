/**
 * Location cache: where the devices of other workers were last said to be, from what those workers announce.
 *
 * A hint: a worker that gets a command by it and no longer holds the device asks the fleet. So
 * nothing is lost when one is missing, old or forgotten. Pure. Bound: `MAX_CACHED_LOCATIONS` devices; the one
 * heard of longest ago is forgotten first.
 */

import { type Deregistration, isNewer, type Registration } from "./registration.ts"

/** Some 200 bytes each. */
export const MAX_CACHED_LOCATIONS = 200_000

interface CachedLocation {
  readonly connectionId: string
  readonly epoch: number
}

export class LocationCache {
  readonly #most: number
  readonly #devices = new Map<string, CachedLocation>()

  constructor(most = MAX_CACHED_LOCATIONS) {
    this.#most = most
  }

  get count(): number {
    return this.#devices.size
  }

  /** The newest connection of this device that was heard of. */
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
    // Entered again, so that the order is that of the announcements.
    if (known) this.#devices.delete(deviceId)
    this.#devices.set(deviceId, { connectionId, epoch })
    if (this.#devices.size <= this.#most) return
    for (const oldest of this.#devices.keys()) {
      this.#devices.delete(oldest)
      return
    }
  }

  gone([deviceId, connectionId]: Deregistration): void {
    if (this.#devices.get(deviceId)?.connectionId === connectionId) this.#devices.delete(deviceId)
  }
}
