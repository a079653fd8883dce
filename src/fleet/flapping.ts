/**
 * Recognises devices that connect again and again: more than `limit` times within `windowMs`, on
 * any workers. Connections are told apart by their epochs, since workers register the same
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

  /**
   * Counts a connection to this worker.
   * @returns whether the device has connected more often than allowed.
   */
  connectedHere(deviceId: string, nowMs: number): boolean {
    // The clock of the worker of the last connection may be ahead.
    const last = this.#epochs.get(deviceId)?.at(-1) ?? Number.NEGATIVE_INFINITY
    return this.#count(deviceId, Math.max(nowMs, last + 1)) > this.#limits.limit
  }

  /**
   * Counts a connection to another worker, once.
   * @returns whether the device has connected more often than allowed.
   */
  connectedElsewhere(deviceId: string, epoch: number): boolean {
    const last = this.#epochs.get(deviceId)?.at(-1) ?? Number.NEGATIVE_INFINITY
    return epoch > last && this.#count(deviceId, epoch) > this.#limits.limit
  }

  /** The device starts again from nothing. */
  forget(deviceId: string): void {
    this.#epochs.delete(deviceId)
  }

  #count(deviceId: string, epoch: number): number {
    const { limit, windowMs } = this.#limits
    const epochs = [...(this.#epochs.get(deviceId) ?? []), epoch]
    const recent = epochs.filter((each) => each > epoch - windowMs).slice(-limit - 1)
    this.#epochs.add(deviceId, recent)
    return recent.length
  }
}
