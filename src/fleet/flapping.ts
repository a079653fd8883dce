/**
 * Recognises devices that connect again and again: more than `limit` times within `windowMs`, on
 * whichever workers. Connections are told apart by their epochs, since workers announce the same
 * connection more than once.
 *
 * Pure: times are epochs. Bounds: `MAX_DEVICES`, the one that connected longest ago is forgotten;
 * `limit` + 1 times for each.
 */

import { BoundedMap } from "../structures/bounded-map.ts"

const MAX_DEVICES = 50_000

export interface FlappingLimits {
  readonly limit: number
  readonly windowMs: number
}

export class Flapping {
  readonly #limits: FlappingLimits
  /** The epochs of each device's latest connections, oldest first. */
  readonly #epochs = new BoundedMap<string, readonly number[]>(MAX_DEVICES)

  constructor(limits: FlappingLimits) {
    this.#limits = limits
  }

  /** Counts a connection. @returns whether the device has connected more often than allowed. */
  connected(deviceId: string, epoch: number): boolean {
    const { limit, windowMs } = this.#limits
    const before = this.#epochs.get(deviceId) ?? []
    const isNew = epoch > (before.at(-1) ?? Number.NEGATIVE_INFINITY)
    const epochs = isNew ? [...before, epoch] : before
    const recent = epochs.filter((each) => each > epoch - windowMs).slice(-limit - 1)
    this.#epochs.add(deviceId, recent)
    return recent.length > limit
  }

  /** The device starts again from nothing. */
  forget(deviceId: string): void {
    this.#epochs.delete(deviceId)
  }
}
