/**
 * In any order of commands, connections, takeovers, lost broker connections, killed and drained
 * workers and time, each command has its outcome the right number of times, and each device has one
 * connection that all workers find. The real code of several workers runs on a simulated broker.
 * Each run is one order of the possible events.
 *
 * A command was "disturbed" when its consumer was lost before the acknowledgement (`requeued`), or
 * when its publisher was lost while the command was being forwarded or copied to the undelivered
 * queue (`cut`, or `abandoned` by a killed worker). Only then may it be repeated, and only as often
 * as it was disturbed.
 *
 * `FUZZ_TRACE=1` prints each step of a failure. `FUZZ_SEED` and `FUZZ_RUNS` work as in
 * `property.ts`.
 */

import { test } from "bun:test"
import fc from "fast-check"
import { WORKER_QUEUE_TTL_MS } from "../../src/broker/topology.ts"
import { MAX_HOPS } from "../../src/commands/routing.ts"
import { isKept, isWritten, type Outcome } from "../../src/device/command.ts"
import { SWEEP_EVERY_MS } from "../../src/device/connections.ts"
import type { PresenceEvent } from "../../src/fleet/presence.ts"
import { isNewer } from "../../src/fleet/registration.ts"
import { check } from "../support/property.ts"
import {
  REPLIES,
  REPLY_TIMEOUT_MS,
  type SeenConnection,
  type SentCommand,
  type SimulatedFleet,
} from "../support/simulated-fleet.ts"
import {
  MAX_ACTIONS,
  NAMES,
  type Performed,
  PRESENCE,
  perform,
  type Scenario,
  scenario,
} from "../support/simulated-scenario.ts"
import { DEFAULT_LIMITS, QUEUES, type SimulatedWorker } from "../support/simulated-worker.ts"

/** Some 3 ms each. */
const ORDERS = 1_000
/**
 * The longest that a command may be without an outcome once nothing keeps it from having one: twice
 * the wait in the queue of a worker that died, a gap in the numbers, a slow device, and the sweeps
 * that notice each.
 */
const { gapTimeoutMs, slowDeviceTimeoutMs } = DEFAULT_LIMITS
const LONGEST_REPLY_MS = REPLY_TIMEOUT_MS + SWEEP_EVERY_MS
/** Commands that wait for the next line wait for each other. */
const MAX_REPLIES_MS = MAX_ACTIONS * LONGEST_REPLY_MS
const ENDS_WITHIN_MS =
  2 * WORKER_QUEUE_TTL_MS + gapTimeoutMs + slowDeviceTimeoutMs + MAX_REPLIES_MS + 1_000
/** How long a dead worker counts as a member that answers; see `members.ts`. */
const BELIEVED_MS = 7_000
/** Several times the steps of the busiest scenario. More steps mean a loop. */
const MAX_STEPS = 20_000
const FAR_LONGER_THAN_IT_TAKES_MS = 600_000

test(
  "every command has its outcome and every device its connection, in every order",
  () => {
    check(fc.property(scenario, verifyScenario), ORDERS)
  },
  FAR_LONGER_THAN_IT_TAKES_MS,
)

function verifyScenario(each: Scenario): void {
  const steps: string[] = []
  const traced = process.env["FUZZ_TRACE"] === "1"
  try {
    const performed = perform(each, (what) => {
      if (traced) steps.push(what)
    })
    const { fleet } = performed
    for (const command of fleet.commands) verifyCommand(performed, command)
    for (const seen of fleet.connections) verifyConnection(fleet, seen)
    for (const name of NAMES) verifyTakeover(fleet, name)
    for (const name of NAMES) verifyPresence(performed, name)
    fleet.pass(BELIEVED_MS)
    for (const name of NAMES) verifyLocators(fleet, name)
    if (fleet.steps > MAX_STEPS) throw new Error(`${fleet.steps} steps`)
  } catch (error) {
    if (!traced) throw error
    throw new Error(`${(error as Error).message}\n${steps.join("\n")}`, { cause: error })
  }
}

/** All observations about one command. */
interface Evidence {
  readonly command: SentCommand
  readonly outcomes: readonly Outcome[]
  /** The connections on whose wire the command is, once for each occurrence. */
  readonly wires: readonly SeenConnection[]
  /** The outcomes of the copies in the undelivered queue. */
  readonly kept: readonly unknown[]
  readonly receipts: readonly { outcome: Outcome; connection_id: string | null }[]
  /** Whether the worker of the HTTP request has ended before the request was finished. */
  readonly entryLost: boolean
  /** Whether the HTTP request was answered with `unreachable` or `busy`. */
  readonly refused: boolean
  /**
   * Whether the command was redelivered, and another one has its message id or, without one, its
   * number. The connection cannot know which of the two it has written, takes this one for the
   * other, and gives it no outcome.
   */
  readonly mistakable: boolean
  readonly fail: (why: string) => never
}

function verifyCommand(performed: Performed, command: SentCommand): void {
  const evidence = gather(performed.fleet, command)
  verifyEnds(performed, evidence)
  verifyRepeats(performed, evidence)
  verifyWhereItIs(evidence)
  verifyReceipts(performed.fleet, evidence)
  if (command.by === "http") verifyAnswers(evidence)
  verifyMeaning(performed, evidence)
}

function gather(fleet: SimulatedFleet, command: SentCommand): Evidence {
  const outcomes = command.endings.map(({ outcome }) => outcome)
  const ended = command.entry?.ended
  const kept = fleet.broker
    .waiting(QUEUES.undeliveredQueue)
    .filter((message) => fleet.commandOf(message) === command)
  const receipts = fleet.broker
    .waiting(REPLIES)
    .filter((message) => fleet.commandOfReceipt(message) === command)
  return {
    command,
    outcomes,
    wires: fleet.connections.flatMap((seen) =>
      seen.device.socket.lines.filter((line) => line === command.body).map(() => seen),
    ),
    kept: kept.map(({ properties }) => properties.headers?.["owsla-outcome"]),
    receipts: receipts.map(({ body }) => JSON.parse(Buffer.from(body).toString())),
    entryLost: ended === "killed" || ended === "cut_short",
    refused: command.answers.some(({ outcome }) => outcome === "unreachable" || outcome === "busy"),
    mistakable: command.disturbed.requeued > 0 && namesakes(fleet, command).length > 0,
    fail: (why) => {
      const entry = command.entry === null ? null : [command.entry.process.name, ended]
      const takenBy = [...command.takenBy]
      const forwardedAs = [...command.forwardedAs]
      const foundDeadBy = [...command.foundDeadBy]
      const told = { ...command, entry, takenBy, foundDeadBy, forwardedAs }
      throw new Error(`${command.body} ${why}: ${JSON.stringify(told, null, 1)}`)
    },
  }
}

/** "Every command has exactly one" outcome, "none is silently dropped". */
function verifyEnds(performed: Performed, evidence: Evidence): void {
  const { command, outcomes, entryLost, refused, mistakable, fail } = evidence
  // An HTTP command that was not stored in a queue yet is lost with its worker, and its caller
  // notices that.
  const owed = command.by === "queue" || (!refused && (command.stored || !entryLost))
  if (owed && outcomes.length === 0 && !mistakable) fail("has no outcome")
  if (refused && outcomes.length > 0) fail("was refused and has an outcome")
  if (command.hops > MAX_HOPS) fail("looped")
  // Even when workers have died and were not replaced, all commands are settled this long after the
  // last action.
  const fromMs = Math.max(performed.lastActionAtMs, command.atMs)
  if (command.endings.some(({ atMs }) => atMs > fromMs + ENDS_WITHIN_MS)) fail("took too long")
}

/** At least once: only the commands that a fault may repeat are repeated. */
function verifyRepeats({ fleet, jumped }: Performed, evidence: Evidence): void {
  const { command, outcomes, wires, fail } = evidence
  const { requeued, cut, abandoned } = command.disturbed
  // A command starts again only by a redelivery. A repeated publish is recognised by the command's
  // id at its receiver, unless that worker has ended, or has left both in its queue until the
  // broker dead-lettered them.
  const copies = cut + abandoned
  const leftInQueue = command.deadLetters > 0
  const someEnded = fleet.allWorkers.some(({ ended }) => ended !== null)
  // The memory of a worker ends with its process.
  const dead = fleet.allWorkers.filter(
    ({ ended, process }) =>
      ended !== null &&
      (command.takenBy.has(process.name) ||
        command.endings.some((ending) => ending.process === process.name)),
  ).length
  // Another worker may get the dead letter of a command that one worker has ended or forwarded, and
  // several workers a dead letter that was delivered again. A command that was written without
  // being forwarded is recognised as long as its connection exists, by which its worker is found,
  // unless its device has had another: the worker of that one may not know yet.
  const moved = fleet.connections.filter(({ name }) => name === command.deviceId).length > 1
  const isThere = wires.some((seen) => fleet.isOpen(seen)) && !moved
  const writtenAndThere = isThere && command.forwardedAs.size === 0
  const found = [...command.foundDeadBy].filter((name) => !command.takenBy.has(name)).length
  const others = writtenAndThere ? Math.max(0, command.foundDeadBy.size - 1) : found
  // Workers that were not run for a long time forget each other. Then the worker that forwarded a
  // command may end it.
  const forgotten = jumped && command.forwardedAs.size > 0 ? command.foundDeadBy.size : 0
  const handlers = Math.max(1, command.takenBy.size) + others + forgotten
  // The command may be equal to others. When its acknowledgement may be lost, it is written again
  // rather than dropped.
  const isDistinct = command.messageId !== null || command.seq !== null || command.wantsReceipt
  const unsure = command.by === "queue" && !isDistinct ? requeued : 0
  const most = handlers + unsure + dead + (someEnded || leftInQueue ? copies : 0)
  if (outcomes.length > most) fail(`has more than ${most} outcomes`)
  const mostByOne = handlers + unsure + dead + (leftInQueue ? copies : 0)
  for (const { process: one } of command.endings) {
    const byOne = command.endings.filter(({ process }) => process === one)
    if (byOne.length > mostByOne) fail(`has more than ${mostByOne} outcomes from ${one}`)
  }
  // So a command that was not redelivered is not written twice. There is one outcome of a written
  // command for each time that the command is on the wire.
  // One that waited for its reply at a worker that was killed has none there, and starts again.
  const killed = wires.filter(({ worker }) => worker.ended === "killed").length
  const mostUnended = command.asks === null ? 0 : killed
  const unended = wires.length - outcomes.filter(isWritten).length
  if (unended < 0 || unended > mostUnended) {
    fail(`is ${wires.length} times on the wire`)
  }
}

/** "Written, or kept in the undelivered queue". */
function verifyWhereItIs(evidence: Evidence): void {
  const { command, outcomes, kept, entryLost, mistakable, fail } = evidence
  const { requeued, cut, abandoned } = command.disturbed
  const wanted = outcomes.filter(isKept)
  // The caller got the outcome, and then the worker died before a queue had the copy.
  const byEntry = command.endings.every(({ process }) => process === command.entry?.process.name)
  const told = command.by === "http" && entryLost && byEntry
  const nowhere = outcomes.length > 0 && wanted.length === outcomes.length && kept.length === 0
  if (nowhere && !told && !mistakable) fail("was not written and is not kept")
  // A copy whose confirm was lost may be stored, although its worker then has no outcome for the
  // command.
  if (kept.length > wanted.length + cut + abandoned) fail(`is kept ${kept.length} times`)
  if (requeued + cut + abandoned === 0 && kept.length !== wanted.length && !told) {
    fail(`is kept ${kept.length} times, and nothing disturbed it`)
  }
  const others = kept.filter((outcome) => !outcomes.some((each) => each === outcome))
  if (others.length > cut + abandoned) fail(`is kept as ${others.join(", ")}`)
}

/** "A command that asked for a receipt gets one". */
function verifyReceipts(fleet: SimulatedFleet, evidence: Evidence): void {
  const { command, outcomes, wires, receipts, mistakable, fail } = evidence
  const { cut, abandoned } = command.receiptsDisturbed
  // These outcomes are recorded when the receipt is confirmed, all others before the receipt is
  // published. So the broker may have the receipt of a killed worker that recorded none.
  const told = receipts.filter(({ outcome }) => isOnlyTold(outcome)).length
  const forgotten = Math.max(0, told - outcomes.filter(isOnlyTold).length)
  if (forgotten > cut + abandoned) fail("has receipts that were not disturbed")
  if (receipts.length - Math.min(forgotten, abandoned) > outcomes.length + cut) {
    fail("has many receipts")
  }
  // A connection that is handed out again what it wrote trusts its worker to see the receipt
  // through; one that was killed before does not.
  const untold = command.endings.some(({ outcome, process: one }) => {
    const worker = fleet.allWorkers.find(({ process }) => process.name === one)
    return isWritten(outcome) && (worker?.ended === "killed" || worker?.ended === "cut_short")
  })
  const unseen = mistakable || (untold && command.disturbed.requeued > 0)
  if (command.wantsReceipt && receipts.length === 0 && !unseen) fail("has no receipt")
  if (!command.wantsReceipt && receipts.length > 0) fail("has a receipt that nobody wanted")
  for (const { outcome, connection_id } of receipts) {
    const isKnown = outcomes.some((each) => each === outcome)
    if (!isKnown && !mayBeForgotten(evidence, outcome)) fail(`was told to be ${outcome}`)
    if (isWritten(outcome) && !wires.some(({ id }) => id === connection_id)) {
      fail(`was told to be written to ${connection_id}`)
    }
  }
}

/**
 * Of a command that is neither written nor kept only the receipt is stored. When its worker is lost
 * before the broker has confirmed that, the command starts again.
 */
function mayBeForgotten({ command }: Evidence, outcome: Outcome): boolean {
  const { requeued, cut, abandoned } = command.disturbed
  return isOnlyTold(outcome) && requeued + cut + abandoned > 0
}

function isOnlyTold(outcome: Outcome): boolean {
  return !isWritten(outcome) && !isKept(outcome)
}

/** Each request has exactly one answer, and it is correct. */
function verifyAnswers(evidence: Evidence): void {
  const { command, outcomes, wires, entryLost, fail } = evidence
  const [answer, ...others] = command.answers
  if (others.length > 0) fail("has more than one answer")
  if (answer === undefined) {
    if (!entryLost) fail("has no answer")
    return
  }
  // The outcome is not known yet, or the request was refused; see `verifyEnds`.
  if (["timeout", "unreachable", "busy"].includes(answer.outcome)) return
  const outcome = answer.outcome as Outcome
  const isKnown = outcomes.some((each) => each === outcome)
  if (!isKnown && !mayBeForgotten(evidence, outcome)) fail(`was answered ${outcome}`)
  if (!isWritten(outcome)) return
  if (!wires.some(({ id }) => id === (answer as { connection_id: string }).connection_id)) {
    fail("was answered with another connection")
  }
}

/** Each outcome is at the right place. */
function verifyMeaning(performed: Performed, evidence: Evidence): void {
  const { command, outcomes, wires, refused, fail } = evidence
  const { fleet, plain, jumped, limited } = performed
  const { requeued, cut, abandoned } = command.disturbed
  const calm = requeued + cut + abandoned === 0
  for (const { id, name } of wires) {
    if (command.connectionId !== null && command.connectionId !== id)
      fail(`is on the wire of ${id}`)
    if (command.connectionId !== null) continue
    if (command.deviceId !== id && command.deviceId !== name) fail(`is on the wire of ${id}`)
  }
  for (const { outcome, atMs } of command.endings) {
    // A command that was offered to a socket is offered again, even if it has expired by then.
    const offered = wires.some(({ device }) => device.socket.stalled)
    // Its reply comes later than it is written, and later still when the worker was not run.
    const isTimely = command.asks === null || !jumped
    const writtenByMs = atMs - (command.asks === null ? 0 : LONGEST_REPLY_MS)
    const isLate = isTimely && writtenByMs >= command.expiresAtMs
    if (isWritten(outcome) && isLate && !offered) fail("was written too late")
    const asked = outcome === "answered" || outcome === "no_reply"
    if (asked !== (isWritten(outcome) && command.asks !== null)) fail(`asked and is ${outcome}`)
    // Without an id its own forward may supersede its redelivery.
    if (outcome === "superseded" && requeued === 0 && rivals(fleet, command).length === 0) {
      fail("is superseded by nothing")
    }
    if (outcome === "late" && command.seq === null) fail("is late without a number")
    if (outcome === "duplicate" && calm && namesakes(fleet, command, false).length === 0) {
      fail("is a duplicate of nothing")
    }
  }
  // A device that is connected and stays must not be called offline.
  const there = plain.get(command)
  if (there === undefined || jumped || limited || refused || there.losses !== fleet.losses) return
  const { on } = there
  const at = fleet.connections.indexOf(on)
  const stays = fleet.connections.every(
    (seen, when) => seen === on || on.name === null || seen.name !== on.name || when < at,
  )
  const newest = fleet.connections.every(
    (seen) => on.name === null || seen.name !== on.name || seen.epoch <= on.epoch,
  )
  if (!fleet.isOpen(on) || !stays || !newest || on.device.socket.stalled) return
  for (const outcome of outcomes) {
    const isThere = isWritten(outcome) || outcome === "superseded"
    if (!isThere && !["expired", "duplicate", "late"].includes(outcome))
      fail("is not at its device")
  }
}

/** "The same id is written once only" and numbers "in this order whatever order they arrive in". */
function verifyConnection(fleet: SimulatedFleet, { id, device }: SeenConnection): void {
  const written = new Set<string>()
  let highest = -1
  for (const line of device.socket.lines) {
    const command = fleet.commands.find(({ body }) => body === line)
    if (command === undefined) throw new Error(`${line} on the wire of ${id} was never sent`)
    const { messageId, seq } = command
    if (messageId !== null && written.has(messageId)) throw new Error(`${messageId} twice on ${id}`)
    if (messageId !== null) written.add(messageId)
    if (seq !== null && seq <= highest) throw new Error(`number ${seq} after ${highest} on ${id}`)
    if (seq !== null) highest = seq
  }
}

/** "The newest wins on whatever machine; the older is closed". */
function verifyTakeover(fleet: SimulatedFleet, name: string): void {
  const all = fleet.connections.filter((seen) => seen.name === name)
  const open = fleet.openOf(name)
  const fail = (why: string) => {
    const told = all.map((seen) => [seen.id, seen.epoch, seen.device.reason, fleet.isOpen(seen)])
    throw new Error(`${name} ${why}: ${JSON.stringify(told)}`)
  }
  if (open.length > 1) fail("has two connections")
  const isLost = (seen: SeenConnection) =>
    seen.closedFromOutside || seen.device.reason === "slow_device"
  // The keeper may have raised it: a stall makes a device come later than its epoch says.
  const epochOf = ({ device, epoch }: SeenConnection) =>
    device.connection.endpoint?.recipient.epoch ?? epoch
  const newest = all.reduce<SeenConnection | null>(
    (best, seen) =>
      best === null || isNewer(epochOf(seen), seen.id, epochOf(best), best.id) ? seen : best,
    null,
  )
  // When the device has closed its newest connection, the worker of an older one may not have
  // learned of it.
  if (newest !== null && !isLost(newest) && open[0] !== newest) fail("lost its newest connection")
  for (const seen of all) {
    if (seen !== open[0] && !isLost(seen) && seen.device.reason !== "taken_over") {
      fail(`lost ${seen.id} for no reason`)
    }
  }
}

/** A subscriber that keeps the largest epoch of each device knows which devices are connected. */
function verifyPresence({ fleet, killed }: Performed, name: string): void {
  // A killed worker publishes no more events, nor does one that drained while the broker was not
  // available.
  if (killed || fleet.allWorkers.some((worker) => worker.ended !== null && owesPresence(worker))) {
    return
  }
  let last: PresenceEvent | null = null
  let ambiguous = false
  for (const { body } of fleet.broker.waiting(PRESENCE)) {
    const event: PresenceEvent = JSON.parse(Buffer.from(body).toString())
    if (event.device_id !== name) continue
    if (last !== null && event.epoch < last.epoch) continue
    // Connections of one millisecond on two workers.
    if (last?.epoch === event.epoch) ambiguous ||= last.connection_id !== event.connection_id
    else ambiguous = false
    last = event
  }
  const [open] = fleet.openOf(name)
  if (ambiguous) return
  const told = last === null || last.reason !== undefined ? undefined : last.connection_id
  const newest = last?.epoch ?? 0
  // An older connection than the newest may be left when the device has closed that; see above.
  if (told !== open?.id && (open === undefined || open.epoch >= newest)) {
    throw new Error(`${name}: presence tells of ${told}, open is ${open?.id}`)
  }
}

function owesPresence({ worker }: SimulatedWorker): boolean {
  return worker.fleet.presence.count > 0
}

/** Each worker finds the device, whatever announcements it got before. */
function verifyLocators(fleet: SimulatedFleet, name: string): void {
  const [open] = fleet.openOf(name)
  if (open !== undefined) fleet.readAll(open)
  for (const [slot, { state }] of fleet.workers.entries()) {
    if (state !== "serving") continue
    const probe = fleet.send(slot, name)
    fleet.calm()
    const answer = probe?.answers[0]
    const found = answer?.outcome === "written" ? answer.connection_id : answer?.outcome
    if (found !== (open?.id ?? "offline")) {
      throw new Error(`worker ${slot} finds ${name}: ${found}, not ${open?.id}`)
    }
  }
}

/** Other commands with its supersede key. */
function rivals(fleet: SimulatedFleet, command: SentCommand): SentCommand[] {
  return fleet.commands.filter(
    (other) => other !== command && other.supersedeKey === command.supersedeKey,
  )
}

/**
 * Other commands that a connection may take this one for, by its message id or its number.
 *
 * @param alone whether its number counts only when it has no message id.
 */
function namesakes(fleet: SimulatedFleet, command: SentCommand, alone = true): SentCommand[] {
  const { messageId, seq } = command
  return fleet.commands.filter(
    (other) =>
      other !== command &&
      ((messageId !== null && other.messageId === messageId) ||
        (seq !== null && other.seq === seq && (!alone || messageId === null))),
  )
}
