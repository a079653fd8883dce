/**
 * Summarises rejected connections for the log. Anyone who reaches the port can cause any number of
 * rejections, so single ones are logged at level debug only. The first rejection with each close
 * reason is logged at once. Later ones are logged once a minute, with their number and the latest
 * detail.
 *
 * Pure: the time is passed in and messages are passed out. Bound: one entry for each close reason.
 */

import type { CloseReason } from "./close-reason.ts"

export const SUMMARY_EVERY_MS = 60_000

interface Refusals {
  count: number
  detail: string
  address: string
  reportedAtMs: number
}

export class RefusalSummary {
  readonly #tell: (message: string) => void
  readonly #byReason = new Map<CloseReason, Refusals>()

  constructor(tell: (message: string) => void) {
    this.#tell = tell
  }

  /** @param steadyMs milliseconds of a monotonic clock. */
  add(reason: CloseReason, detail: string, address: string, steadyMs: number): void {
    const refusals = this.#byReason.get(reason)
    if (refusals === undefined) {
      this.#byReason.set(reason, { count: 0, detail, address, reportedAtMs: steadyMs })
      this.#tell(`a connection from ${address} ended as ${reason}: ${detail}`)
      return
    }
    refusals.count += 1
    refusals.detail = detail
    refusals.address = address
  }

  /** Call this periodically. */
  sweep(steadyMs: number): void {
    for (const [reason, { count, detail, address, reportedAtMs }] of this.#byReason) {
      if (steadyMs - reportedAtMs < SUMMARY_EVERY_MS) continue
      // After a minute without rejections the next one is logged at once.
      if (count === 0) this.#byReason.delete(reason)
      else {
        this.#byReason.set(reason, { count: 0, detail, address, reportedAtMs: steadyMs })
        const seconds = SUMMARY_EVERY_MS / 1_000
        const number = count === 1 ? "1 more connection" : `${count} more connections`
        this.#tell(
          `${number} ended as ${reason} within ${seconds} s, the latest from ${address}: ${detail}`,
        )
      }
    }
  }
}
