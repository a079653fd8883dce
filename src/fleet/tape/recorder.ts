/**
 * Records the connections of one device to this worker, and hands the entries over in batches.
 *
 *   line, command, connection ─► unsent ─► batch ─► the owner of the tape
 *                                  ▲
 *   confirm, outcome ──completes───┴── after it was sent: `completed`
 *
 * An entry waits up to `COMPLETE_MS` for its confirm or outcome, so that most entries are complete
 * when they are sent. The entries are numbered, the dropped ones too, so that the owner knows how
 * many are missing. Bounds: `MAX_UNSENT_ROWS` and `MAX_UNSENT_BYTES`, beyond which entries are
 * dropped and counted; a batch has `MAX_BATCH_ROWS` and `MAX_BATCH_BYTES`, or one longer row;
 * `MAX_OPEN` entries that can still be completed.
 */

import type { CloseReason } from "../../device/close-reason.ts"
import type { Command, Outcome } from "../../device/command.ts"
import type { Connection, LineHandler } from "../../device/connection.ts"
import type { ConnectionTape } from "../../device/connection-tape.ts"
import { Fifo } from "../../structures/fifo.ts"
import { type Completion, type Payload, shownLine, sizeOf, type TapeItem } from "./entry.ts"
import { entriesIn } from "./tape.ts"

const COMPLETE_MS = 500
const MAX_UNSENT_ROWS = 2_000
const MAX_UNSENT_BYTES = 262_144
/** In each sweep: 2,000 rows or 256 KiB a second. */
const MAX_BATCH_ROWS = 500
const MAX_BATCH_BYTES = 65_536
const MAX_OPEN = 2_000

export interface RecorderOptions {
  readonly payload: Payload
  /** The next stage of lines. */
  readonly lines: LineHandler
  readonly nowMs: () => number
  readonly steadyMs: () => number
  /** Milliseconds of the monotonic clock. Nothing is recorded from then on. */
  readonly endsAtMs: number
}

export interface Batch {
  /** The number of the first row: how many entries this recorder has counted before it. */
  readonly first: number
  readonly rows: TapeItem[]
  /** The numbers of entries that may be completed later. */
  readonly open: number[]
}

interface Row {
  readonly n: number
  item: TapeItem
  readonly bytes: number
  /** Since when it waits to be completed; null when it is complete. */
  openSinceMs: number | null
  isSent: boolean
}

export class Recorder implements ConnectionTape {
  readonly #options: RecorderOptions
  readonly #unsent = new Fifo<Row>()
  #unsentBytes = 0
  #next = 0
  #endsAtMs: number
  /** Entries that were dropped since the last row. */
  #dropped = 0
  /** Whether the owner may have missed the last batch. */
  #repeatsNumber = false
  /** Lines without confirms, by connection and number. */
  readonly #lines = new Map<string, Row>()
  /** Written commands that wait for their replies. */
  readonly #commands = new Map<Command, Row>()

  constructor(options: RecorderOptions) {
    this.#options = options
    this.#endsAtMs = options.endsAtMs
  }

  /** Records nothing more. Connections that close may still report to it. */
  stop(): void {
    this.#endsAtMs = Number.NEGATIVE_INFINITY
  }

  /** @param at when it was admitted. */
  connected(connection: Connection, at: number): void {
    this.#record({ at, kind: "connected", connection_id: connection.id })
  }

  disconnected(connection: Connection, reason: CloseReason): void {
    const at = this.#options.nowMs()
    this.#record({ at, kind: "disconnected", connection_id: connection.id, reason })
  }

  take(connection: Connection, seq: number, line: Uint8Array, answered: Command | null): void {
    const { payload, nowMs, lines } = this.#options
    if (this.#hasRoom()) {
      const about = { connection_id: connection.id, seq, bytes: line.length }
      const item = { at: nowMs(), kind: "in", ...about, ...shownLine(line, payload) } as const
      const row = this.#add(item, true)
      remember(this.#lines, keyOfLine(connection, seq), row)
    }
    lines.take(connection, seq, line, answered)
  }

  confirmed(connection: Connection, seq: number): void {
    const key = keyOfLine(connection, seq)
    const row = this.#lines.get(key)
    if (row === undefined) return
    this.#lines.delete(key)
    this.#complete(row, { confirmed_at: this.#options.nowMs() })
  }

  written(connection: Connection, commands: readonly Command[]): void {
    for (const command of commands) {
      const row = this.#command(connection, command, "written", command.reply !== null)
      if (row !== null && command.reply !== null) remember(this.#commands, command, row)
    }
  }

  settled(connection: Connection, command: Command, outcome: Outcome): void {
    const row = this.#commands.get(command)
    if (row === undefined) {
      this.#command(connection, command, outcome, false)
      return
    }
    this.#commands.delete(command)
    this.#complete(row, { outcome })
  }

  /** The rows to send now; null when there are none. */
  batch(steadyMs: number): Batch | null {
    if (this.#dropped > 0 && this.#fits()) this.#addDropped()
    const rows: TapeItem[] = []
    const open: number[] = []
    let bytes = 0
    let first = this.#next
    for (;;) {
      const row = this.#unsent.first
      if (row === undefined || rows.length === MAX_BATCH_ROWS) break
      if (row.openSinceMs !== null && steadyMs - row.openSinceMs < COMPLETE_MS) break
      if (rows.length > 0 && bytes + row.bytes > MAX_BATCH_BYTES) break
      this.#unsent.shift()
      if (rows.length === 0) first = row.n
      rows.push(row.item)
      if (row.openSinceMs !== null) open.push(row.n)
      row.isSent = true
      bytes += row.bytes
    }
    this.#unsentBytes -= bytes
    if (rows.length === 0) {
      if (!this.#repeatsNumber) return null
      first = this.#unsent.first?.n ?? this.#next
    }
    this.#repeatsNumber = false
    return { first, rows, open }
  }

  /** The last batch may be lost: the next one, perhaps an empty one, shows it to the owner. */
  missed(): void {
    this.#repeatsNumber = true
  }

  #command(
    connection: Connection,
    command: Command,
    outcome: Outcome,
    isOpen: boolean,
  ): Row | null {
    // Acknowledgements: the confirm is in the entry of the line.
    if (command.cameBy === "gateway" || !this.#hasRoom()) return null
    const { payload, nowMs } = this.#options
    const { seq, body } = command
    const about = { connection_id: connection.id, seq, bytes: body.length }
    const item = {
      at: nowMs(),
      kind: "out",
      ...about,
      ...shownLine(body, payload),
      outcome,
    } as const
    return this.#add(item, isOpen)
  }

  #record(item: TapeItem): void {
    if (this.#hasRoom()) this.#add(item, false)
  }

  /** Whether an entry can be recorded. One that cannot is counted, unless the tape has ended. */
  #hasRoom(): boolean {
    if (this.#options.steadyMs() >= this.#endsAtMs) return false
    if (!this.#fits()) {
      this.#dropped += 1
      return false
    }
    if (this.#dropped > 0) this.#addDropped()
    return true
  }

  #fits(): boolean {
    return this.#unsent.length < MAX_UNSENT_ROWS && this.#unsentBytes < MAX_UNSENT_BYTES
  }

  #addDropped(): void {
    const count = this.#dropped
    this.#dropped = 0
    this.#add({ kind: "dropped", count }, false)
  }

  #add(item: TapeItem, isOpen: boolean): Row {
    const openSinceMs = isOpen ? this.#options.steadyMs() : null
    const row = { n: this.#next, item, bytes: sizeOf(item), openSinceMs, isSent: false }
    this.#next += entriesIn(item)
    this.#unsent.push(row)
    this.#unsentBytes += row.bytes
    return row
  }

  #complete(row: Row, completion: Completion): void {
    row.openSinceMs = null
    if (!row.isSent) row.item = { ...row.item, ...completion } as TapeItem
    else if (this.#fits()) this.#add({ kind: "completed", entry: row.n, ...completion }, false)
  }
}

function keyOfLine({ id }: Connection, seq: number): string {
  return `${id}:${seq}`
}

/** The entry that has waited longest makes room: it is not completed any more. */
function remember<K>(rows: Map<K, Row>, key: K, row: Row): void {
  rows.set(key, row)
  if (rows.size <= MAX_OPEN) return
  for (const oldest of rows.keys()) {
    rows.delete(oldest)
    return
  }
}
