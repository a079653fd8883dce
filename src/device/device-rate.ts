/**
 * The rate at which the lines of one device are taken: lines a second and bytes a second, each with
 * a burst of two seconds' worth. Beyond it the device is read no further until the rate allows the
 * next line; nothing is lost.
 *
 * A named device keeps its rate when it connects again to the same worker.
 *
 * Pure: the time is passed in. Bound: the rates of the `MAX_RATES` devices that connected last.
 */

import { BoundedMap } from "../structures/bounded-map.ts"
import { Pace } from "../structures/pace.ts"

const BURST_MS = 2_000
const MAX_RATES = 50_000

export interface DeviceRateLimits {
  /** 0 for no limit. */
  readonly linesPerS: number
  /** Of lines with their LF or length. 0 for no limit. */
  readonly bytesPerS: number
}

export class DeviceRate {
  readonly #lines: Pace | null
  readonly #bytes: Pace | null

  constructor({ linesPerS, bytesPerS }: DeviceRateLimits) {
    this.#lines = linesPerS === 0 ? null : new Pace(linesPerS, BURST_MS)
    this.#bytes = bytesPerS === 0 ? null : new Pace(bytesPerS, BURST_MS)
  }

  /** Whether the next line must wait. */
  isOver(steadyMs: number): boolean {
    return (this.#lines?.waitMs(steadyMs) ?? 0) > 0 || (this.#bytes?.waitMs(steadyMs) ?? 0) > 0
  }

  /** A line was taken. One longer than the burst is taken too, and paid off afterwards. */
  spend(lineBytes: number, steadyMs: number): void {
    this.#lines?.spend(1, steadyMs)
    this.#bytes?.spend(lineBytes, steadyMs)
  }
}

/** The rates of the devices of one worker. */
export class DeviceRates {
  readonly #limits: DeviceRateLimits
  readonly #byDevice = new BoundedMap<string, DeviceRate>(MAX_RATES)

  constructor(limits: DeviceRateLimits) {
    this.#limits = limits
  }

  /**
   * @param isNamed whether the device id is more than the id of one connection.
   * @returns null without limits.
   */
  of(deviceId: string, isNamed: boolean): DeviceRate | null {
    const { linesPerS, bytesPerS } = this.#limits
    if (linesPerS + bytesPerS === 0) return null
    if (!isNamed) return new DeviceRate(this.#limits)
    const rate = this.#byDevice.get(deviceId) ?? new DeviceRate(this.#limits)
    this.#byDevice.add(deviceId, rate)
    return rate
  }
}
