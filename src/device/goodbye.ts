/**
 * The goodbye line: the last line to a device whose connection the gateway closes. It says why, and
 * when to come back.
 *
 *   BYE {reason} {retry_after_ms} ─► BYE drained 1840
 *
 * Each goodbye takes the next free slot of a clock that runs at the rate at which the rest of the
 * fleet can admit devices. So devices that obey it come back no faster, however many are closed at
 * once. A part of a second is random, because several workers have clocks of their own.
 *
 * Pure: the time and chance are passed in. Bound: `MAX_RETRY_AFTER_MS`.
 */

import type { CloseReason } from "./close-reason.ts"

const REASONS: ReadonlySet<CloseReason> = new Set([
  "drained",
  "kicked",
  "aged",
  "taken_over",
  "denied",
  "gated",
  "flapping",
])
const MIN_RETRY_AFTER_MS = 500
const RANDOM_MS = 1_000
const MAX_RETRY_AFTER_MS = 3_600_000

export interface GoodbyeOptions {
  /** With `{reason}` and `{retry_after_ms}`, which are filled in. */
  readonly template: string
  /** Devices per second that may come back because of this worker. */
  readonly returnsPerS: () => number
  readonly steadyMs: () => number
  /** From 0 to 1. */
  readonly random: () => number
}

export class Goodbye {
  readonly #options: GoodbyeOptions
  #slotAtMs = Number.NEGATIVE_INFINITY

  constructor(options: GoodbyeOptions) {
    this.#options = options
  }

  /**
   * @param retryAfterMs when it is known; otherwise the device gets the next slot.
   * @returns the text without LF or length; null when the device gets none for this reason.
   */
  textFor(reason: CloseReason, retryAfterMs: number | null = null): string | null {
    if (!REASONS.has(reason)) return null
    // A device that was taken over is connected already.
    const slotMs = reason === "taken_over" ? 0 : null
    const afterMs = Math.min(retryAfterMs ?? this.#afterMs(slotMs), MAX_RETRY_AFTER_MS)
    return this.#options.template
      .replaceAll("{reason}", reason)
      .replaceAll("{retry_after_ms}", String(Math.round(afterMs)))
  }

  /** @param slotMs until its slot; null takes the next one. */
  #afterMs(slotMs: number | null): number {
    const { steadyMs, returnsPerS, random } = this.#options
    const nowMs = steadyMs()
    if (slotMs === null) {
      this.#slotAtMs = Math.max(nowMs, this.#slotAtMs) + 1_000 / returnsPerS()
    }
    return MIN_RETRY_AFTER_MS + (slotMs ?? this.#slotAtMs - nowMs) + random() * RANDOM_MS
  }
}
