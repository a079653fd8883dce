/**
 * A tape that this worker owns: its entries, and what is known of the workers that record them.
 *
 *   recording ──deadline──► ending (late batches still come) ──`LATE_MS`──► over ──`KEPT_MS`──► discarded
 *
 * Each process numbers its entries. Those that are missing in between count as dropped. Times are
 * passed in. Bounds: those of `tape.ts`; one number for each process that has recorded the device.
 */

import { processOfConnection, type WorkerProcess } from "../../device/ids.ts"
import { keyOf } from "../directory.ts"
import { type Payload, readTapeItem, sizeOf, type TapeItem } from "./entry.ts"
import { entriesIn, type PartLimits, Tape, type TapePart } from "./tape.ts"

/** More than an entry waits for its confirm, and than a message takes. */
export const LATE_MS = 1_500
/** How long a tape can be read after its end. */
const KEPT_MS = 600_000

/** What all workers know of a tape. */
export interface TapeRow {
  readonly id: string
  readonly device_id: string
  readonly payload: Payload
  readonly max_bytes: number
  readonly started_at: number
  readonly until: number
}

export class OwnTape {
  readonly row: TapeRow
  /** Milliseconds of the monotonic clock. */
  readonly endsAtMs: number
  readonly #tape: Tape
  /** By process, the number of its next entry. */
  readonly #next = new Map<string, number>()
  /** Connections that have not ended, as far as the tape shows. */
  readonly #connections = new Set<string>()

  constructor(row: TapeRow, endsAtMs: number) {
    this.row = row
    this.endsAtMs = endsAtMs
    this.#tape = new Tape(row.max_bytes)
  }

  /** Whether entries may still come. */
  isOpen(steadyMs: number): boolean {
    return steadyMs < this.endsAtMs + LATE_MS
  }

  isKept(steadyMs: number): boolean {
    return steadyMs < this.endsAtMs + KEPT_MS
  }

  read(from: number, limits: PartLimits): TapePart {
    return this.#tape.read(from, limits)
  }

  /**
   * Adds the rows of one process.
   * @param rows unchecked. The number of the first entry is `first`.
   * @param open the numbers of the entries that may be completed later.
   */
  add(from: WorkerProcess, first: number, rows: readonly unknown[], open: readonly number[]): void {
    const process = keyOf(from)
    // Never negative but after rows of a later version: the broker repeats no message.
    let dropped = Math.max(0, first - (this.#next.get(process) ?? 0))
    let next = first
    for (const row of rows) {
      const item = readTapeItem(row)
      const n = next
      next += item === null ? 1 : entriesIn(item)
      if (item === null || !isOf(item, from)) {
        dropped += 1
        continue
      }
      this.#addDropped(dropped)
      dropped = 0
      if (item.kind === "completed") {
        const { kind, entry, ...completion } = item
        this.#tape.complete(`${process} ${entry}`, completion, sizeOf(item))
        continue
      }
      this.#tape.add(item, sizeOf(item), open.includes(n) ? `${process} ${n}` : null)
      if (item.kind === "connected") this.#connections.add(item.connection_id)
      if (item.kind === "disconnected") this.#connections.delete(item.connection_id)
    }
    this.#addDropped(dropped)
    this.#next.set(process, next)
  }

  /** Ends the connections of processes that have ended: their last entries may be missing. */
  endLost(hasEnded: (process: WorkerProcess) => boolean, nowMs: number): void {
    for (const id of this.#connections) {
      const holder = processOfConnection(id)
      if (holder !== null && !hasEnded(holder)) continue
      this.#connections.delete(id)
      const item = { at: nowMs, kind: "disconnected", connection_id: id } as const
      this.#tape.add(item, sizeOf(item))
    }
  }

  #addDropped(count: number): void {
    if (count === 0) return
    const item = { kind: "dropped", count } as const
    this.#tape.add(item, sizeOf(item))
  }
}

/** A process records its own connections only. */
function isOf(item: TapeItem, { worker, incarnation }: WorkerProcess): boolean {
  if (!("connection_id" in item)) return true
  const holder = processOfConnection(item.connection_id)
  return holder?.worker === worker && holder.incarnation === incarnation
}
