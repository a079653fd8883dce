/**
 * Refused connections in the log, at level info. Anyone who reaches the port can cause any number
 * of them, so the lines are limited.
 *
 *   refused ─┬─ new, and `LINES_PER_S` allows a line ─► a line
 *            └─ otherwise ─► counted by reason ──each minute──► one line with the counts
 *
 * A refusal is new when none with the same reason and address came in this minute or the last.
 * As in the limits by address, an IPv6 /64 counts as one address. So a scanner does not hide a
 * device that fails for another reason or from another address, and a health check that connects
 * all the time is in the counts only. While no line is allowed, a refusal costs a comparison and a
 * look-up.
 *
 * Pure: the time is passed in and lines are passed out. Bounds: `MAX_KEYS` reasons and addresses,
 * beyond which refusals are counted only; `MAX_DETAIL_LENGTH` characters of a detail.
 */

import { Pace } from "../structures/pace.ts"
import { addressGroup } from "./address.ts"
import type { CloseReason } from "./close-reason.ts"
import { MAX_DETAIL_LENGTH } from "./refusals.ts"
import { shownText } from "./shown-text.ts"

export const SUMMARY_EVERY_MS = 60_000
export const LINES_PER_S = 5
/** Lines that may come at once after a pause, in milliseconds' worth of `LINES_PER_S`. */
const BURST_MS = 4_000
const MAX_KEYS = 1_000

export interface RefusalLine {
  readonly message: string
  /** Structured fields of the line. */
  readonly fields: Readonly<Record<string, unknown>>
}

export interface LoggedRefusal {
  readonly reason: CloseReason
  readonly detail: string
  readonly address: string
  readonly deviceId: string | null
}

interface Counted {
  count: number
  latest: LoggedRefusal
}

export class RefusalLog {
  readonly #tell: (line: RefusalLine) => void
  readonly #pace = new Pace(LINES_PER_S, BURST_MS)
  /** Reasons and addresses in this minute, and in the one before. */
  #known = new Set<string>()
  #knownBefore = new Set<string>()
  readonly #counted = new Map<CloseReason, Counted>()
  /** When this minute began; `-Infinity` when there were no refusals lately. */
  #sinceMs = Number.NEGATIVE_INFINITY

  constructor(tell: (line: RefusalLine) => void) {
    this.#tell = tell
  }

  /** @param steadyMs milliseconds of a monotonic clock. */
  add(refusal: LoggedRefusal, steadyMs: number): void {
    if (this.#sinceMs === Number.NEGATIVE_INFINITY) this.#sinceMs = steadyMs
    if (!this.#mayTell(refusal, steadyMs)) {
      const counted = this.#counted.get(refusal.reason)
      if (counted === undefined) this.#counted.set(refusal.reason, { count: 1, latest: refusal })
      else {
        counted.count += 1
        counted.latest = refusal
      }
      return
    }
    this.#pace.spend(1, steadyMs)
    const { reason, address, deviceId } = refusal
    const detail = shownText(refusal.detail, MAX_DETAIL_LENGTH)
    this.#tell({
      message: `a connection from ${address} ended as ${reason}: ${detail}`,
      fields: { reason, address, detail, ...(deviceId === null ? {} : { deviceId }) },
    })
  }

  /** Call this periodically. */
  sweep(steadyMs: number): void {
    if (steadyMs - this.#sinceMs < SUMMARY_EVERY_MS) return
    if (this.#sinceMs === Number.NEGATIVE_INFINITY) return
    this.#sinceMs = this.#known.size === 0 ? Number.NEGATIVE_INFINITY : steadyMs
    this.#knownBefore = this.#known
    this.#known = new Set()
    if (this.#counted.size > 0) this.#summarize()
  }

  #summarize(): void {
    const byReason = [...this.#counted].sort(([, a], [, b]) => b.count - a.count)
    this.#counted.clear()
    const sum = byReason.reduce((sum, [, { count }]) => sum + count, 0)
    const seconds = SUMMARY_EVERY_MS / 1_000
    const parts = byReason.map(([reason, { count, latest }]) => {
      const detail = shownText(latest.detail, MAX_DETAIL_LENGTH)
      return `${count} ended as ${reason}, the latest from ${latest.address}: ${detail}`
    })
    this.#tell({
      message: `${sum} more connection(s) refused within ${seconds} s: ${parts.join("; ")}`,
      fields: {
        refused: Object.fromEntries(byReason.map(([reason, { count }]) => [reason, count])),
      },
    })
  }

  #mayTell({ reason, address }: LoggedRefusal, steadyMs: number): boolean {
    if (this.#known.size >= MAX_KEYS || this.#pace.waitMs(steadyMs) > 0) return false
    const key = `${reason} ${addressGroup(address)}`
    if (this.#known.has(key)) return false
    this.#known.add(key)
    return !this.#knownBefore.has(key)
  }
}
