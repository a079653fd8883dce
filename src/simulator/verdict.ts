/**
 * The verdict: whether a ledger shows that the gateway kept its promise. Pure.
 *
 * A line is sent by a device as (run, device, attempt, n). A message is consumed by the back-end as
 * (connection id, from_device_seq), which is also its `message_id`.
 *
 *   lost          no message carries it, although it was acknowledged to the device, or its connection was
 *                 drained: the device waited, closed in order, and then the gateway did. Breaks the promise.
 *   undecided     no message carries it, it was not acknowledged, and its connection broke: its bytes may
 *                 never have been read. Breaks no promise.
 *   recovered     its message came more than once: repeats after a fault, which a back-end drops by
 *                 message_id. Breaks the promise only with `noRepeats`; then it counts as duplicated.
 *   duplicated    messages with different ids carry it; counts each but the first.
 *   unexpected    a message, or an acknowledgement, of a line that no device sent.
 *   outOfOrder    the first message of it came after that of a later line of its connection.
 *   neverInOrder  even a back-end that goes by from_device_seq, and leaves a line alone until its
 *                 predecessor has come, does not find it: it came before its predecessor and not again after.
 *   lateAgain     the first message of it that was taken is one that the broker had delivered before, to a connection that
 *                 was lost, and it came after a later line. Breaks no promise: the broker hands on what is behind such a
 *                 message before it notices the loss, and no gateway can change that.
 *   mislabelled   its message id, its device id or its number is not what the contract says.
 *
 * `held-verdict.ts` judges held commands.
 *
 * A gap is not disorder: a missing line is lost, and the lines after it are judged without it.
 * Bound: `MAX_EXAMPLES` of each fault are reported.
 */

import { type HeldVerdict, isHeldPromiseKept, judgeHeld } from "./held-verdict.ts"
import type { Ledger, Segment, SentConnection } from "./ledger-reader.ts"
import { overlaps, type Range, Ranges, sizeOf } from "./ranges.ts"

const MAX_EXAMPLES = 5

export interface Rules {
  /** The number of lines that may be lost, for example when a worker was killed. */
  readonly allowLost: number
  /**
   * The number of held commands that may come twice, and of those that may have two receipts, for
   * example when a worker was killed.
   */
  readonly allowRepeats: number
  /** Nothing failed, so no message may be repeated. */
  readonly noRepeats: boolean
  /**
   * first: order of the first messages of lines. follow: order for a back-end that follows
   * from_device_seq.
   */
  readonly order: "first" | "follow"
}

export interface Verdict {
  readonly kept: boolean
  /** Connections of devices, and lines that their sockets accepted. */
  readonly connections: number
  readonly sent: number
  readonly acknowledged: number
  /** Different lines that arrived. */
  readonly taken: number
  readonly lost: number
  readonly undecided: number
  readonly recovered: number
  readonly duplicated: number
  readonly unexpected: number
  readonly outOfOrder: number
  readonly neverInOrder: number
  readonly lateAgain: number
  readonly mislabelled: number
  /** Messages in the queue when the back-end ended, which may be lines that count as lost. */
  readonly left: number
  /** Herds that were killed, so that their last lines are unknown. */
  readonly unfinished: number
  /** Null when the ledger has no held commands. */
  readonly held: HeldVerdict | null
  /** Examples of each fault, in words. */
  readonly examples: readonly string[]
}

type Fault = "lost" | "duplicated" | "unexpected" | "outOfOrder" | "mislabelled"

class Counts {
  sent = 0
  acknowledged = 0
  taken = 0
  undecided = 0
  recovered = 0
  neverInOrder = 0
  lateAgain = 0
  readonly faults: Record<Fault, number> = {
    lost: 0,
    duplicated: 0,
    unexpected: 0,
    outOfOrder: 0,
    mislabelled: 0,
  }
  readonly examples: string[] = []
  readonly #shown = new Map<Fault, number>()

  add(fault: Fault, ranges: readonly Range[], where: string): void {
    this.faults[fault] += sizeOf(ranges)
    for (const { from, to } of ranges) {
      const shown = this.#shown.get(fault) ?? 0
      if (shown === MAX_EXAMPLES) return
      this.#shown.set(fault, shown + 1)
      const lines = from === to ? `line ${from}` : `lines ${from} to ${to}`
      this.examples.push(`${fault}: ${lines} of ${where}`)
    }
  }
}

export function judge(ledger: Ledger, rules: Rules): Verdict {
  const counts = new Counts()
  counts.faults.mislabelled = ledger.mislabelled
  counts.faults.unexpected = ledger.stray
  const messages = new Map<string, Map<string, Range[]>>()
  for (const [connectionId, segments] of ledger.taken) {
    judgeOrder(counts, connectionId, segments)
    for (const segment of segments) addMessages(messages, connectionId, segment)
  }
  for (const [connection, sent] of ledger.sent) {
    judgeConnection(counts, connection, sent, messages.get(connection) ?? new Map(), rules)
    messages.delete(connection)
  }
  for (const [connection, byId] of messages) {
    // A killed herd may not have recorded this connection.
    const [run = ""] = connection.split(" ")
    if (ledger.unfinished.has(run)) continue
    const nothing = { sent: 0, offered: 0, end: "broken", acked: new Ranges() } as const
    judgeConnection(counts, connection, nothing, byId, rules)
  }
  return verdict(counts, ledger, rules)
}

/**
 * Groups messages by connection id and by the difference of their number and n: within a group,
 * equal ids mean the same line.
 */
function addMessages(
  messages: Map<string, Map<string, Range[]>>,
  connectionId: string,
  { connection, n, seq, count }: Segment,
): void {
  const byId = messages.get(connection) ?? new Map<string, Range[]>()
  messages.set(connection, byId)
  const id = `${connectionId} ${seq - n}`
  const ranges = byId.get(id) ?? []
  byId.set(id, ranges)
  ranges.push({ from: n, to: n + count - 1 })
}

function judgeConnection(
  counts: Counts,
  connection: string,
  { sent, offered, end, acked }: Readonly<SentConnection>,
  byId: ReadonlyMap<string, readonly Range[]>,
  { noRepeats }: Rules,
): void {
  const taken = new Ranges()
  const ids: Range[] = []
  for (const ranges of byId.values()) {
    const once = new Ranges()
    for (const { from, to } of ranges) once.add(from, to)
    for (const { from, to } of once.list) taken.add(from, to)
    ids.push(...once.list)
    counts.recovered += overlaps(ranges).numbers
    if (noRepeats) counts.faults.duplicated += overlaps(ranges).extra
  }
  counts.sent += sent
  counts.acknowledged += acked.size
  counts.taken += taken.size
  counts.faults.duplicated += overlaps(ids).extra
  counts.add("unexpected", taken.within(offered, Number.POSITIVE_INFINITY), connection)
  const acknowledged = `${connection} (acknowledged)`
  counts.add("unexpected", acked.within(offered, Number.POSITIVE_INFINITY), acknowledged)
  const missing = taken.without(0, sent - 1)
  const sure =
    end === "drained" ? missing : missing.flatMap(({ from, to }) => acked.within(from, to))
  counts.undecided += sizeOf(missing) - sizeOf(sure)
  // An acknowledged line has been sent, even if that was not recorded.
  const beyond = acked.within(sent, offered - 1).flatMap(({ from, to }) => taken.without(from, to))
  counts.add("lost", [...sure, ...beyond], connection)
}

/** By the numbers of the gateway, for one connection id. */
function judgeOrder(counts: Counts, connectionId: string, segments: readonly Segment[]): void {
  const seen = new Ranges()
  const early: Range[] = []
  const owner = segments[0]?.connection
  let largest = -1
  for (const { connection, n, seq, count, redelivered } of segments) {
    const last = seq + count - 1
    // Ids are unique: two connections with one id could not be distinguished.
    if (seq !== n || connection !== owner) {
      counts.add("mislabelled", [{ from: n, to: n + count - 1 }], connectionId)
    }
    for (const { from, to } of seen.add(seq, last)) {
      if (from >= largest) continue
      const late = { from, to: Math.min(to, largest - 1) }
      if (redelivered) counts.lateAgain += sizeOf([late])
      else early.push(late)
    }
    largest = Math.max(largest, last)
  }
  counts.add("outOfOrder", early, connectionId)
  // The order of first messages is also in order for a back-end that follows the numbers.
  if (early.length > 0) counts.neverInOrder += countNeverInOrder(segments)
}

/**
 * Follows one connection line by line, without `lateAgain` lines. Only for the few that were out of
 * order.
 */
function countNeverInOrder(segments: readonly Segment[]): number {
  const places = new Map<number, number[]>()
  const skipped = new Set<number>()
  let place = 0
  let largest = -1
  for (const { seq, count, redelivered } of segments) {
    for (let at = seq; at < seq + count; at += 1) {
      const known = places.get(at)
      if (known === undefined && redelivered && at < largest) skipped.add(at)
      largest = Math.max(largest, at)
      if (known === undefined) places.set(at, [place])
      else known.push(place)
      place += 1
    }
  }
  let reached = -1
  let never = 0
  for (const seq of [...places.keys()].sort((a, b) => a - b)) {
    if (skipped.has(seq)) continue
    const found = places.get(seq)?.find((at) => at > reached)
    if (found === undefined) never += 1
    else reached = found
  }
  return never
}

function verdict(
  counts: Counts,
  ledger: Ledger,
  { allowLost, allowRepeats, order }: Rules,
): Verdict {
  const { lost, duplicated, unexpected, outOfOrder, mislabelled } = counts.faults
  const disorder = order === "first" ? outOfOrder : counts.neverInOrder
  const held = judgeHeld(ledger)
  const areLinesKept = lost <= allowLost && duplicated + unexpected + disorder + mislabelled === 0
  const isDisorder = (example: string) => example.startsWith("outOfOrder")
  return {
    kept: areLinesKept && (held === null || isHeldPromiseKept(held, allowRepeats)),
    connections: ledger.sent.size,
    sent: counts.sent,
    acknowledged: counts.acknowledged,
    taken: counts.taken,
    lost,
    undecided: counts.undecided,
    recovered: counts.recovered,
    duplicated,
    unexpected,
    outOfOrder,
    neverInOrder: counts.neverInOrder,
    lateAgain: counts.lateAgain,
    mislabelled,
    left: ledger.left,
    unfinished: ledger.unfinished.size,
    held,
    // When a back-end that follows the numbers finds every line, early first messages are no fault.
    examples: disorder > 0 ? counts.examples : counts.examples.filter((each) => !isDisorder(each)),
  }
}
