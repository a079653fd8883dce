/**
 * The latest refusals of a worker: connections that ended before they became devices.
 *
 * Each peer can cause any number of them, so one costs an object of four fields and a place in a
 * ring. Its text is made safe when it is read. Pure: the time is passed in. Bound: `MAX_REFUSALS`,
 * the oldest makes room; `MAX_DETAIL_LENGTH` characters for each detail.
 */

import { Ring } from "../structures/ring.ts"
import type { CloseReason } from "./close-reason.ts"
import { shownText } from "./shown-text.ts"

export const MAX_REFUSALS = 1_000
export const MAX_DETAIL_LENGTH = 200

export interface Refusal {
  /** Milliseconds since 1970. */
  readonly at: number
  /** Of the device; empty when the peer had reset the connection before it was read. */
  readonly address: string
  readonly reason: CloseReason
  /** The cause, in printable characters. */
  readonly detail: string
  /** The id that the device has proven or claimed; null when it has shown none. */
  readonly deviceId: string | null
}

export class Refusals {
  readonly #ring = new Ring<Refusal>(MAX_REFUSALS)

  add(refusal: Refusal): void {
    this.#ring.push(refusal)
  }

  /** At most `count` refusals, the newest first. */
  newest(count: number): Refusal[] {
    return this.#ring.newest(count).map((refusal) => ({
      ...refusal,
      detail: shownText(refusal.detail, MAX_DETAIL_LENGTH),
    }))
  }
}
