/**
 * The latest refusals of a worker: connections that ended before they became devices.
 *
 * Each peer can cause any number of them, so one costs a small object and a place in a ring. Its
 * text is made safe when it is read. Pure: the time is passed in. Bounds: `MAX_REFUSALS`, the
 * oldest makes room; `MAX_DETAIL_LENGTH` characters of each detail that is read.
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
  /** The cause. It may contain text of the peer; `newest` makes that printable. */
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
