/**
 * Refusals in the log: connections that did not become a device are logged one by one at debug only, since anyone
 * who reaches the port can make any number of them. The first refusal of each reason is logged at once; the
 * following ones once a minute, with their number and the latest detail.
 *
 * Pure: the time is passed in, the message is handed out. Bound: one entry a reason, of a closed list.
 */

import type { CloseReason } from "./close-reason.ts"

export const SUMMARY_EVERY_MS = 60_000

interface Refusals {
  count: number
  detail: string
  address: string
  toldAtMs: number
}

export class RefusalSummary {
  readonly #tell: (message: string) => void
  readonly #byReason = new Map<CloseReason, Refusals>()

  constructor(tell: (message: string) => void) {
    this.#tell = tell
  }

  /** @param steadyMs never jumps. */
  add(reason: CloseReason, detail: string, address: string, steadyMs: number): void {
    const refusals = this.#byReason.get(reason)
    if (refusals === undefined) {
      this.#byReason.set(reason, { count: 0, detail, address, toldAtMs: steadyMs })
      this.#tell(`a connection from ${address} ended as ${reason}: ${detail}`)
      return
    }
    refusals.count += 1
    refusals.detail = detail
    refusals.address = address
  }

  /** To be called periodically. */
  sweep(steadyMs: number): void {
    for (const [reason, { count, detail, address, toldAtMs }] of this.#byReason) {
      if (steadyMs - toldAtMs < SUMMARY_EVERY_MS) continue
      // A minute without refusals: the next one is logged at once again.
      if (count === 0) this.#byReason.delete(reason)
      else {
        this.#byReason.set(reason, { count: 0, detail, address, toldAtMs: steadyMs })
        const seconds = SUMMARY_EVERY_MS / 1_000
        const number = count === 1 ? "1 more connection" : `${count} more connections`
        this.#tell(
          `${number} ended as ${reason} within ${seconds} s, the latest from ${address}: ${detail}`,
        )
      }
    }
  }
}
