/**
 * The rate at which the lines of one device are taken: lines a second and bytes a second, each with
 * a burst of two seconds' worth. Beyond it the device is read no further until the rate allows the
 * next line; nothing is lost.
 *
 * Pure: the time is passed in.
 */

import { Pace } from "../structures/pace.ts"

const BURST_MS = 2_000

export interface DeviceRateLimits {
  /** 0 for no limit. */
  readonly linesPerS: number
  /** Of lines without LF or length. 0 for no limit. */
  readonly bytesPerS: number
}

export class DeviceRate {
  readonly #lines: Pace | null
  readonly #bytes: Pace | null

  /** @returns null without limits. */
  static of({ linesPerS, bytesPerS }: DeviceRateLimits): DeviceRate | null {
    return linesPerS + bytesPerS === 0 ? null : new DeviceRate(linesPerS, bytesPerS)
  }

  private constructor(linesPerS: number, bytesPerS: number) {
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
