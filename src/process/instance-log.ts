/**
 * The log of the whole instance as data, in the supervisor, or in the only worker of the embedded
 * broker: the newest warnings and errors, the newest audit entries, and those who follow it.
 *
 *   supervisor's own lines ─┐
 *   lines of the workers ───┴► add ─┬─ warnings and errors, audit entries ─► rings
 *                                   └─ each ──────────────────────────────► taps
 *
 * Pure. Bounds: `MAX_NOTICES`, `MAX_AUDIT`; the caller bounds the taps.
 */

import type { LogEntry, LogTap, NumberedEntry, RecentEntries } from "../log-entry.ts"
import { Ring } from "../structures/ring.ts"

export const MAX_NOTICES = 100
export const MAX_AUDIT = 100

export class InstanceLog {
  readonly #notices = new Ring<NumberedEntry>(MAX_NOTICES)
  readonly #audit = new Ring<NumberedEntry>(MAX_AUDIT)
  readonly #taps = new Set<LogTap>()
  #nextSeq = 1

  readonly add = (entry: LogEntry): void => {
    const numbered = { ...entry, seq: this.#nextSeq }
    this.#nextSeq += 1
    if (entry.level !== "info") this.#notices.push(numbered)
    if (entry.kind === "audit") this.#audit.push(numbered)
    for (const tap of this.#taps) tap.entry(numbered)
  }

  /** Entries of a worker were dropped before they arrived here. */
  missed(count: number): void {
    for (const tap of this.#taps) tap.missed(count)
  }

  recent(): RecentEntries {
    return {
      notices: this.#notices.newest(MAX_NOTICES).reverse(),
      audit: this.#audit.newest(MAX_AUDIT),
    }
  }

  /** @returns a function that stops it. */
  follow(tap: LogTap): () => void {
    this.#taps.add(tap)
    return () => this.#taps.delete(tap)
  }
}
