/**
 * Reads ledger files (format in `ledger.ts`) for the verdict.
 *
 * A last line without its LF was cut off by a crash and is ignored. Any other invalid line is an
 * error, since a ledger that was changed proves nothing. Bound: one entry for each connection, one
 * range for each gap in its lines, and one for each held command that came and for each receipt;
 * files are read in pieces.
 */

import { createReadStream } from "node:fs"
import { readdir } from "node:fs/promises"
import { join } from "node:path"
import { LEDGER_KINDS, type LedgerKind } from "./ledger.ts"
import { Ranges } from "./ranges.ts"

/** The lines that one connection of a device sent, numbered from 0. */
export interface SentConnection {
  sent: number
  offered: number
  end: "drained" | "broken" | "unended"
  readonly acked: Ranges
}

/** Consecutive lines that a back-end consumed: `count` lines from `n`, with numbers from `seq`. */
export interface Segment {
  /** `<run> <device> <attempt>`, as in `Ledger.sent`. */
  readonly connection: string
  readonly n: number
  readonly seq: number
  /** The broker had delivered these lines before. */
  readonly redelivered: boolean
  count: number
}

/** The held commands for one device, by their numbers. */
export interface HeldOfDevice {
  readonly sent: Ranges
  readonly unconfirmed: Ranges
  /** In the order in which they came to the device. */
  readonly arrivals: { readonly n: number; readonly late: boolean }[]
  readonly receipts: HeldReceipt[]
}

export interface HeldReceipt {
  readonly n: number
  readonly outcome: string
  /** The broker had delivered it before. */
  readonly again: boolean
}

export interface Ledger {
  /** By `<run> <device> <attempt>`. */
  readonly sent: Map<string, SentConnection>
  /** By connection id, in the order of consumption. */
  readonly taken: Map<string, Segment[]>
  /** By `<run> <device>`. */
  readonly held: Map<string, HeldOfDevice>
  /** Held commands that came to another device. */
  misdirected: number
  /** The runs whose herd was killed. */
  readonly unfinished: Set<string>
  stray: number
  mislabelled: number
  /** Messages in the queues when the back-ends ended. */
  left: number
}

/** The message is a sentence for the user. */
export class LedgerError extends Error {
  override readonly name = "LedgerError"
}

export function emptyLedger(): Ledger {
  return {
    sent: new Map(),
    taken: new Map(),
    held: new Map(),
    misdirected: 0,
    unfinished: new Set(),
    stray: 0,
    mislabelled: 0,
    left: 0,
  }
}

/**
 * @throws LedgerError when the directory cannot be read, lacks one of both kinds, or holds no
 * records.
 */
export async function readLedger(directory: string): Promise<Ledger> {
  const names = await readdir(directory).catch((error: Error) => {
    throw new LedgerError(`${directory} cannot be read: ${error.message}`)
  })
  const ledger = emptyLedger()
  for (const kind of LEDGER_KINDS) {
    // Names of runs sort by their start, so the records of a later back-end come later.
    const files = names.filter((name) => name.endsWith(`.${kind}`)).sort()
    if (files.length === 0) throw new LedgerError(`${directory} has no file <run>.${kind}`)
    for (const file of files) {
      await readLedgerFile(join(directory, file), kind, file.slice(0, -kind.length - 1), ledger)
    }
  }
  return ledger
}

async function readLedgerFile(path: string, kind: LedgerKind, run: string, ledger: Ledger) {
  if (kind === "devices") ledger.unfinished.add(run)
  let rest = ""
  let number = 0
  for await (const chunk of createReadStream(path, "latin1")) {
    const lines = (rest + chunk).split("\n")
    rest = lines.pop() ?? ""
    for (const line of lines) {
      number += 1
      const read =
        kind === "devices" ? readDevices(line, run, ledger) : readBackEnd(line, run, ledger)
      if (!read) throw new LedgerError(`${path}:${number} is no record: ${line.slice(0, 100)}`)
    }
  }
}

function readDevices(line: string, run: string, ledger: Ledger): boolean {
  const [record = "", device = "", attempt = "", ...rest] = line.split(" ")
  if (record === "done") {
    ledger.unfinished.delete(run)
    return line === "done"
  }
  if (record === "got") return readGot(device, rest, ledger)
  if (record === "misdirected") {
    ledger.misdirected += 1
    return rest.length === 0
  }
  const [first = Number.NaN, second = Number.NaN] = rest.slice(0, 2).map(count)
  const connection = sentConnection(ledger, `${run} ${device} ${attempt}`)
  switch (record) {
    case "sent":
      if (rest.length !== 1 || !(first >= 0)) return false
      connection.sent = Math.max(connection.sent, first)
      return true
    case "acked":
      if (rest.length !== 2 || !(second >= first)) return false
      connection.acked.add(first, second)
      return true
    case "end": {
      const end = rest[2]
      if (rest.length !== 3 || !(second >= first)) return false
      if (end !== "drained" && end !== "broken") return false
      connection.sent = first
      connection.offered = second
      connection.end = end
      return true
    }
    default:
      return false
  }
}

function readGot(device: string, rest: readonly string[], ledger: Ledger): boolean {
  const [run = "", number = "", ...marks] = rest
  const n = count(number)
  const late = marks[0] === "late"
  if (!(n >= 0) || marks.length !== (late ? 1 : 0)) return false
  heldOf(ledger, run, device).arrivals.push({ n, late })
  return true
}

function readHeld(fields: readonly string[], run: string, ledger: Ledger): boolean {
  const [record, device = "", number = "", outcome = "", ...marks] = fields
  const n = count(number)
  if (!(n >= 0)) return false
  const held = heldOf(ledger, run, device)
  if (record === "receipt") {
    const again = marks[0] === "again"
    held.receipts.push({ n, outcome, again })
    return outcome !== "" && marks.length === (again ? 1 : 0)
  }
  if (record === "held") held.sent.add(n, n)
  else held.unconfirmed.add(n, n)
  return fields.length === 3
}

function heldOf(ledger: Ledger, run: string, device: string): HeldOfDevice {
  const key = `${run} ${device}`
  const known = ledger.held.get(key)
  if (known !== undefined) return known
  const made = { sent: new Ranges(), unconfirmed: new Ranges(), arrivals: [], receipts: [] }
  ledger.held.set(key, made)
  return made
}

function sentConnection(ledger: Ledger, key: string): SentConnection {
  const known = ledger.sent.get(key)
  if (known !== undefined) return known
  // Without an end the last lines may be missing here, so any line may have been sent.
  const offered = Number.POSITIVE_INFINITY
  const made: SentConnection = { sent: 0, offered, end: "unended", acked: new Ranges() }
  ledger.sent.set(key, made)
  return made
}

function readBackEnd(line: string, run: string, ledger: Ledger): boolean {
  const fields = line.split(" ")
  const [record, connectionId = ""] = fields
  switch (record) {
    case "took": {
      const [, , ofRun, device, attempt] = fields
      const [n = Number.NaN, seq = Number.NaN, lines = Number.NaN] = fields.slice(5, 8).map(count)
      if (!(n >= 0 && seq >= 0 && lines >= 1)) return false
      const redelivered = fields[8] === "again"
      if (fields.length !== (redelivered ? 9 : 8)) return false
      take(ledger, connectionId, {
        connection: `${ofRun} ${device} ${attempt}`,
        n,
        seq,
        redelivered,
        count: lines,
      })
      return true
    }
    case "stray":
      ledger.stray += 1
      return fields.length === 3
    case "mislabelled":
      ledger.mislabelled += 1
      return fields.length === 3
    case "held":
    case "unconfirmed":
    case "receipt":
      return readHeld(fields, run, ledger)
    case "left":
      ledger.left += count(connectionId)
      return fields.length === 2 && count(connectionId) >= 0
    default:
      return false
  }
}

/** Adds a segment, or extends the last one. */
export function take(ledger: Ledger, connectionId: string, segment: Segment): void {
  const segments = ledger.taken.get(connectionId)
  if (segments === undefined) {
    ledger.taken.set(connectionId, [segment])
    return
  }
  const last = segments.at(-1)
  const follows =
    last !== undefined &&
    last.connection === segment.connection &&
    last.n + last.count === segment.n &&
    last.seq + last.count === segment.seq &&
    last.redelivered === segment.redelivered
  if (follows) last.count += segment.count
  else segments.push(segment)
}

/** NaN when the text is not a whole number. */
function count(text: string): number {
  return /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN
}
