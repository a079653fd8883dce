/**
 * The verdict on held commands: whether each came once, in order for its device, before newer
 * commands, and has one receipt. Pure.
 *
 *   missing         the broker confirmed it and it did not come, although all connections of its device were
 *                   drained, or although its receipt says that no byte of it was offered to a socket.
 *   undecided       it did not come, and it may be lost with a connection that broke, its device never
 *                   connected, or the simulator was killed. Breaks no promise.
 *   twice           counts each time that it came but the first.
 *   outOfOrder      it came first after a later one of its device.
 *   late            it came first after a newer command of its device.
 *   unexpected      it was not sent, or was sent to another device.
 *   withoutReceipt  the broker confirmed it and its device connected, and the back-end has no receipt.
 *   receiptsTwice   receipts beyond the first, except one that the broker delivered again.
 *   contradicted    it came, although its receipt says that no byte of it was offered to a socket, or it has
 *                   two receipts with different outcomes.
 *
 * All but undecided break the promise, twice and receiptsTwice only beyond the number that is
 * allowed. Commands that the broker has not confirmed may come or not.
 * Commands of a run that is not in the ledger are ignored.
 */

import type { HeldOfDevice, Ledger } from "./ledger-reader.ts"
import { Ranges } from "./ranges.ts"

/** Of a command with one of these outcomes bytes were offered to a socket. */
const OFFERED = ["written", "closed"]
const MAX_EXAMPLES = 5

export interface HeldVerdict {
  readonly sent: number
  /** Different commands that came. */
  readonly written: number
  readonly missing: number
  readonly undecided: number
  readonly twice: number
  readonly outOfOrder: number
  readonly late: number
  readonly unexpected: number
  readonly withoutReceipt: number
  readonly receiptsTwice: number
  readonly contradicted: number
  /** Commands by the outcome of their first receipts. */
  readonly receipts: Readonly<Record<string, number>>
  /** Examples of faults, in words. */
  readonly examples: readonly string[]
}

const FAULTS = [
  ...(["missing", "twice", "outOfOrder", "late", "unexpected"] as const),
  ...(["withoutReceipt", "receiptsTwice", "contradicted"] as const),
]
type Fault = (typeof FAULTS)[number]
const REPEATS: readonly Fault[] = ["twice", "receiptsTwice"]

/** @param allowRepeats as in `Rules`. */
export function isHeldPromiseKept(verdict: HeldVerdict, allowRepeats: number): boolean {
  const allowed = (fault: Fault) => (REPEATS.includes(fault) ? allowRepeats : 0)
  return FAULTS.every((fault) => verdict[fault] <= allowed(fault))
}

class Counts implements Record<Fault, number> {
  sent = 0
  written = 0
  missing = 0
  undecided = 0
  twice = 0
  outOfOrder = 0
  late = 0
  unexpected = 0
  withoutReceipt = 0
  receiptsTwice = 0
  contradicted = 0
  readonly receipts: Record<string, number> = {}
  readonly examples: string[] = []

  add(fault: Fault, n: number, key: string): void {
    this[fault] += 1
    const shown = this.examples.filter((each) => each.startsWith(`${fault}:`)).length
    if (shown < MAX_EXAMPLES) this.examples.push(`${fault}: held command ${n} of ${key}`)
  }
}

/** Null when the ledger has no held commands. */
export function judgeHeld(ledger: Ledger): HeldVerdict | null {
  const counts = new Counts()
  counts.unexpected = ledger.misdirected
  const ends = endsByDevice(ledger)
  const runs = new Set<string>()
  for (const [key, { sent }] of ledger.held) if (sent.size > 0) runs.add(runOf(key))
  for (const [key, held] of ledger.held) {
    if (!runs.has(runOf(key))) continue
    const came = judgeArrivals(counts, key, held)
    const outcomes = judgeReceipts(counts, key, held, came)
    const mayBeHeld = ledger.unfinished.has(runOf(key)) || !ends.has(key)
    const mayBeLost = mayBeHeld || ends.get(key) === "broken"
    judgeMissing(counts, key, held, { came, outcomes, mayBeHeld, mayBeLost })
    counts.sent += held.sent.size
    counts.written += came.size
  }
  return counts.sent + counts.unexpected === 0 ? null : { ...counts }
}

/** Returns the commands that came. */
function judgeArrivals(counts: Counts, key: string, { sent, arrivals }: HeldOfDevice): Ranges {
  const came = new Ranges()
  let largest = -1
  for (const { n, late } of arrivals) {
    if (!sent.has(n)) counts.add("unexpected", n, key)
    else if (came.add(n, n).length === 0) counts.add("twice", n, key)
    else {
      if (n < largest) counts.add("outOfOrder", n, key)
      if (late) counts.add("late", n, key)
      largest = Math.max(largest, n)
    }
  }
  return came
}

/** Returns the outcomes of the first receipts. */
function judgeReceipts(
  counts: Counts,
  key: string,
  { sent, receipts }: HeldOfDevice,
  came: Ranges,
): Map<number, string> {
  const outcomes = new Map<number, string>()
  for (const { n, outcome, again } of receipts) {
    const known = outcomes.get(n)
    if (!sent.has(n)) counts.add("unexpected", n, key)
    else if (known === undefined) {
      outcomes.set(n, outcome)
      counts.receipts[outcome] = (counts.receipts[outcome] ?? 0) + 1
      if (came.has(n) && !OFFERED.includes(outcome)) counts.add("contradicted", n, key)
    } else if (known !== outcome) counts.add("contradicted", n, key)
    else if (!again) counts.add("receiptsTwice", n, key)
  }
  return outcomes
}

function judgeMissing(
  counts: Counts,
  key: string,
  { sent, unconfirmed }: HeldOfDevice,
  by: {
    readonly came: Ranges
    readonly outcomes: ReadonlyMap<number, string>
    /** The run ended before all commands had to be written. */
    readonly mayBeHeld: boolean
    /** What was written may be lost with a connection of the device. */
    readonly mayBeLost: boolean
  },
): void {
  for (const n of numbersOf(sent)) {
    const outcome = by.outcomes.get(n)
    if (outcome === undefined && unconfirmed.has(n)) continue
    if (outcome === undefined && !by.mayBeHeld) counts.add("withoutReceipt", n, key)
    if (by.came.has(n)) continue
    const wasOffered = outcome === undefined || OFFERED.includes(outcome)
    if (wasOffered && by.mayBeLost) counts.undecided += 1
    else counts.add("missing", n, key)
  }
}

function* numbersOf({ list }: Ranges): Generator<number> {
  for (const { from, to } of list) for (let n = from; n <= to; n += 1) yield n
}

/**
 * By `<run> <device>`: whether all connections of the device were drained. Without an entry it was
 * never connected.
 */
function endsByDevice(ledger: Ledger): ReadonlyMap<string, "drained" | "broken"> {
  const ends = new Map<string, "drained" | "broken">()
  for (const [connection, { end }] of ledger.sent) {
    const key = connection.slice(0, connection.lastIndexOf(" "))
    ends.set(key, end === "drained" && ends.get(key) !== "broken" ? "drained" : "broken")
  }
  return ends
}

function runOf(key: string): string {
  return key.slice(0, key.indexOf(" "))
}
