/**
 * The ledger: the lines that devices sent and that the back-end consumed, in append-only files,
 * which can be judged however the processes ended.
 *
 * Two kinds of file in one directory, any number of each: `<run>.devices` of a herd,
 * `<run>.back-end` of a back-end. Text, one record a line, fields separated by one space:
 *
 *   devices    sent <device> <attempt> <count>          its connection's socket has taken so many lines
 *              acked <device> <attempt> <from> <to>     `ACK n` came for each of these lines
 *              end <device> <attempt> <sent> <offered> drained|broken
 *                                                       the connection is over; lines up to `offered` may
 *                                                       have left, those up to `sent` were taken whole
 *              got <device> <attempt> <run> <n> [late]  the n-th held command of a run came; late: after a
 *                                                       newer command
 *              misdirected <device> <attempt>           a held command for another device came
 *              done                                     nothing follows: the herd ended by itself
 *   back-end   took <connection id> <run> <device> <attempt> <n> <seq> <count> [again]
 *                                                       so many lines, each with the next n and the next
 *                                                       from_device_seq, in the order they were taken; again:
 *                                                       the broker had delivered them before
 *              stray <connection id> <seq>              a line that no simulated device writes
 *              mislabelled <connection id> <seq>        its message id, or its device id, is not what the
 *                                                       contract says
 *              held <device> <n>                        the n-th held command for this device is published
 *              unconfirmed <device> <n>                 the broker has not confirmed it
 *              receipt <device> <n> <outcome> [again]   its receipt; again: the broker had delivered it before
 *              left <count>                             the back-end ended with so many in its queue
 *
 * drained: the device had sent everything and closed the connection, and then the gateway closed it
 * too. broken: any other end. A connection without `end` was open when the simulator was killed.
 *
 * Bound: `BATCH_CHARACTERS` in memory, which are written synchronously. When `flush` returns, the
 * kernel has all records, so only a crash of the machine loses any.
 */

import { closeSync, mkdirSync, openSync, writeSync } from "node:fs"
import { join } from "node:path"

const BATCH_CHARACTERS = 65_536

export const LEDGER_KINDS = ["devices", "back-end"] as const
export type LedgerKind = (typeof LEDGER_KINDS)[number]

export class LedgerFile {
  readonly #file: number
  #batch = ""

  /** @throws when the directory or the file cannot be made. */
  constructor(directory: string, run: string, kind: LedgerKind) {
    mkdirSync(directory, { recursive: true })
    this.#file = openSync(join(directory, `${run}.${kind}`), "ax")
  }

  append(...fields: (string | number)[]): void {
    this.#batch += `${fields.join(" ")}\n`
    if (this.#batch.length >= BATCH_CHARACTERS) this.flush()
  }

  /** Returns when the kernel has all records. */
  flush(): void {
    // Records are ASCII: characters are bytes.
    const batch = Buffer.from(this.#batch, "latin1")
    this.#batch = ""
    for (let written = 0; written < batch.length; ) {
      written += writeSync(this.#file, batch, written)
    }
  }

  close(): void {
    this.flush()
    closeSync(this.#file)
  }
}

/** A line that the back-end consumed. */
export interface TakenLine {
  readonly connectionId: string
  readonly run: string
  readonly device: string
  readonly attempt: number
  readonly n: number
  readonly seq: number
  readonly redelivered: boolean
}

/**
 * Joins consecutive lines of one connection to one record, within a batch: call `flush` before the
 * lines are acknowledged. Bound: one entry for each connection of a batch.
 */
export class TakenLines {
  readonly #file: LedgerFile
  readonly #open = new Map<string, TakenLine & { count: number }>()

  constructor(file: LedgerFile) {
    this.#file = file
  }

  take(line: TakenLine): void {
    const open = this.#open.get(line.connectionId)
    if (open !== undefined && follows(open, line)) {
      open.count += 1
      return
    }
    if (open !== undefined) this.#write(open)
    this.#open.set(line.connectionId, { ...line, count: 1 })
  }

  flush(): void {
    for (const open of this.#open.values()) this.#write(open)
    this.#open.clear()
    this.#file.flush()
  }

  #write(open: TakenLine & { count: number }) {
    const { connectionId, run, device, attempt, n, seq, count, redelivered } = open
    const again = redelivered ? ["again"] : []
    this.#file.append("took", connectionId, run, device, attempt, n, seq, count, ...again)
  }
}

function follows(open: TakenLine & { count: number }, line: TakenLine): boolean {
  return (
    line.n === open.n + open.count &&
    line.seq === open.seq + open.count &&
    line.redelivered === open.redelivered &&
    line.device === open.device &&
    line.attempt === open.attempt &&
    line.run === open.run
  )
}
