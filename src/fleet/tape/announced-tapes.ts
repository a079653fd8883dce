/**
 * The tapes of the other workers, as each of them has announced its own.
 *
 * An announcement contains all tapes of its sender and replaces the one before, so a lost one does
 * no harm for longer than until the next. Times are durations: clocks of two machines are not
 * compared. Pure. Bound: `MAX_TAPES_OF_WORKER` for each member.
 */

import type { WorkerProcess } from "../../device/ids.ts"
import { keyOf } from "../directory.ts"
import type { TapeRow } from "./own-tape.ts"

/** Those that are recorded, and those that have ended and can still be read. */
export const MAX_TAPES_OF_WORKER = 20

/** A row with the time for which the device is still recorded; 0 or less when the tape is over. */
export interface AnnouncedRow extends TapeRow {
  readonly left_ms: number
}

export interface AnnouncedTape {
  readonly row: TapeRow
  readonly owner: WorkerProcess
  /** Milliseconds of the monotonic clock of this worker. */
  readonly endsAtMs: number
}

export class AnnouncedTapes {
  /** By process. */
  readonly #tapes = new Map<string, readonly AnnouncedTape[]>()

  heard(owner: WorkerProcess, rows: readonly AnnouncedRow[], steadyMs: number): void {
    const tapes = rows.slice(0, MAX_TAPES_OF_WORKER).map(({ left_ms: leftMs, ...row }) => {
      return { row, owner, endsAtMs: steadyMs + leftMs }
    })
    if (tapes.length === 0) this.#tapes.delete(keyOf(owner))
    else this.#tapes.set(keyOf(owner), tapes)
  }

  /** @returns whether any was forgotten. */
  forget(hasEnded: (process: WorkerProcess) => boolean): boolean {
    let isChanged = false
    for (const [key, [first]] of this.#tapes) {
      if (first === undefined || !hasEnded(first.owner)) continue
      this.#tapes.delete(key)
      isChanged = true
    }
    return isChanged
  }

  *all(): Generator<AnnouncedTape> {
    for (const tapes of this.#tapes.values()) yield* tapes
  }
}

/** Of two tapes of one device the newer one counts. */
export function isNewerTape(a: TapeRow, b: TapeRow): boolean {
  return a.started_at === b.started_at ? a.id > b.id : a.started_at > b.started_at
}
