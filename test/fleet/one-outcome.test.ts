/**
 * In any order of commands, connections, takeovers, lost broker connections, killed and drained workers and time, each
 * command has its outcome the right number of times, and each device has one connection that all workers find. The real
 * code of several workers runs on a simulated broker. Each run is one order of the possible events.
 *
 * A command was "disturbed" when its consumer was lost before the acknowledgement (`requeued`), or when its publisher
 * was lost while the command was being forwarded or copied to the undelivered queue (`cut`, or `abandoned` by a killed
 * worker). Only then may it be repeated, and only as often as it was disturbed.
 *
 * `FUZZ_TRACE=1` prints each step of a failure. `FUZZ_SEED` and `FUZZ_RUNS` work as in `property.ts`.
 */

import { test } from "bun:test"
import fc from "fast-check"
import { WORKER_QUEUE_TTL_MS } from "../../src/broker/topology.ts"
import { MAX_HOPS } from "../../src/commands/routing.ts"
import type { PresenceEvent } from "../../src/fleet/presence.ts"
import { isNewer } from "../../src/fleet/registration.ts"
import { check } from "../support/property.ts"
import {
  REPLIES,
  type SeenConnection,
  type SentCommand,
  type SimulatedFleet,
} from "../support/simulated-fleet.ts"
import {
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
 * The longest that a command may be without an outcome once nothing keeps it from having one: twice the wait in the
 * queue of a worker that died, a gap in the numbers, a slow device, and the sweeps that notice each.
 */
const { gapTimeoutMs, slowDeviceTimeoutMs } = DEFAULT_LIMITS
const ENDS_WITHIN_MS = 2 * WORKER_QUEUE_TTL_MS + gapTimeoutMs + slowDeviceTimeoutMs + 1_000
/** As long as a worker that died is believed to be there; see `members.ts`. */
const BELIEVED_MS = 7_000
/** Several times what the busiest scenario takes: more would be a loop. */
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

/** All that there is to see of one command. */
interface Evidence {
  readonly command: SentCommand
  readonly outcomes: readonly string[]
  /** Connections that it is on the wire of, each as often as it is there. */
  readonly wires: readonly SeenConnection[]
  /** What the copies in the undelivered queue say. */
  readonly kept: readonly unknown[]
  readonly receipts: readonly { outcome: string; connection_id: string | null }[]
  /** The worker that the request came to was ended before it had finished. */
  readonly entryLost: boolean
  /** It was told to try elsewhere. */
  readonly refused: boolean
  /**
   * Another has its message id or, without one, its number, and it was handed out again: the connection
   * cannot know which of the two it wrote, takes this one for that, and says no more of it.
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
  // What came by HTTP and no queue had yet is gone with its worker; the caller sees that it is.
  const owed = command.by === "queue" || (!refused && (command.stored || !entryLost))
  if (owed && outcomes.length === 0 && !mistakable) fail("has no outcome")
  if (refused && outcomes.length > 0) fail("was refused and has an outcome")
  if (command.hops > MAX_HOPS) fail("looped")
  // Whichever workers died, and are not there again: all is settled this long after the last of it.
  const fromMs = Math.max(performed.lastActionAtMs, command.atMs)
  if (command.endings.some(({ atMs }) => atMs > fromMs + ENDS_WITHIN_MS)) fail("took too long")
}

/** At least once: what a fault may repeat, and nothing else. */
function verifyRepeats({ fleet, jumped }: Performed, evidence: Evidence): void {
  const { command, outcomes, wires, fail } = evidence
  const { requeued, cut, abandoned } = command.disturbed
  // Being handed out again is the one way to begin anew. A publish that is repeated is told by the
  // command's id where it arrives, unless the worker that knew has ended, or left both in its queue
  // for so long that the broker gave them up.
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
  // Another worker may get the dead letter of a command that one worker has ended or forwarded, and several workers a
  // dead letter that was delivered again. A command that was written without being forwarded is recognised as long as
  // its connection exists, by which its worker is found, unless its device has had another: the worker of that one may
  // not know yet.
  const moved = fleet.connections.filter(({ name }) => name === command.deviceId).length > 1
  const isThere = wires.some((seen) => fleet.isOpen(seen)) && !moved
  const writtenAndThere = isThere && command.forwardedAs.size === 0
  const found = [...command.foundDeadBy].filter((name) => !command.takenBy.has(name)).length
  const others = writtenAndThere ? Math.max(0, command.foundDeadBy.size - 1) : found
  // Workers that nobody has run for long forget each other, and then the worker that forwarded a command may end it.
  const forgotten = jumped && command.forwardedAs.size > 0 ? command.foundDeadBy.size : 0
  const handlers = Math.max(1, command.takenBy.size) + others + forgotten
  // Like others of its text: when its acknowledgement may be lost, it is written again rather than left out.
  const isDistinct = command.messageId !== null || command.seq !== null || command.wantsReceipt
  const unsure = command.by === "queue" && !isDistinct ? requeued : 0
  const most = handlers + unsure + dead + (someEnded || leftInQueue ? copies : 0)
  if (outcomes.length > most) fail(`has more than ${most} outcomes`)
  const mostByOne = handlers + unsure + dead + (leftInQueue ? copies : 0)
  for (const { process: one } of command.endings) {
    const byOne = command.endings.filter(({ process }) => process === one)
    if (byOne.length > mostByOne) fail(`has more than ${mostByOne} outcomes from ${one}`)
  }
  // So in particular nothing is written twice that was not handed out again. And whatever is told:
  // "written" is said once for each time that it is on the wire.
  if (wires.length !== outcomes.filter((outcome) => outcome === "written").length) {
    fail(`is ${wires.length} times on the wire`)
  }
}

/** "Written, or kept in the undelivered queue". */
function verifyWhereItIs(evidence: Evidence): void {
  const { command, outcomes, kept, entryLost, mistakable, fail } = evidence
  const { requeued, cut, abandoned } = command.disturbed
  const wanted = outcomes.filter(isKept)
  // The caller was told, and then the worker died before any queue had it.
  const byEntry = command.endings.every(({ process }) => process === command.entry?.process.name)
  const told = command.by === "http" && entryLost && byEntry
  const nowhere = outcomes.length > 0 && wanted.length === outcomes.length && kept.length === 0
  if (nowhere && !told && !mistakable) fail("was not written and is not kept")
  // A copy whose confirm was lost may be stored, though its worker has no outcome for the command then.
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
  if (receipts.length > outcomes.length + command.receiptsDisturbed.cut) fail("has many receipts")
  // A connection that is handed out again what it wrote trusts its worker to see the receipt through;
  // one that was killed before does not.
  const untold = command.endings.some(({ outcome, process: one }) => {
    const worker = fleet.allWorkers.find(({ process }) => process.name === one)
    return outcome === "written" && (worker?.ended === "killed" || worker?.ended === "cut_short")
  })
  const unseen = mistakable || (untold && command.disturbed.requeued > 0)
  if (command.wantsReceipt && receipts.length === 0 && !unseen) fail("has no receipt")
  if (!command.wantsReceipt && receipts.length > 0) fail("has a receipt that nobody wanted")
  for (const { outcome, connection_id } of receipts) {
    if (!outcomes.some((each) => each === outcome)) fail(`was told to be ${outcome}`)
    if (outcome === "written" && !wires.some(({ id }) => id === connection_id)) {
      fail(`was told to be written to ${connection_id}`)
    }
  }
}

/** One answer for each request, and a true one. */
function verifyAnswers({ command, outcomes, wires, entryLost, fail }: Evidence): void {
  const [answer, ...others] = command.answers
  if (others.length > 0) fail("has more than one answer")
  if (answer === undefined) {
    if (!entryLost) fail("has no answer")
    return
  }
  // Nobody knows yet, or it was not taken; see `verifyEnds`.
  if (["timeout", "unreachable", "busy"].includes(answer.outcome)) return
  if (!outcomes.some((each) => each === answer.outcome)) fail(`was answered ${answer.outcome}`)
  if (answer.outcome !== "written") return
  if (!wires.some(({ id }) => id === (answer as { connection_id: string }).connection_id)) {
    fail("was answered with another connection")
  }
}

/** Each outcome where it belongs. */
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
    // What was offered to a socket is offered again, even when its time is over by then.
    const offered = wires.some(({ device }) => device.socket.stalled)
    if (outcome === "written" && atMs >= command.expiresAtMs && !offered) {
      fail("was written too late")
    }
    if (outcome === "late" && command.seq === null) fail("is late without a number")
    if (outcome === "duplicate" && calm && namesakes(fleet, command, false).length === 0) {
      fail("is a duplicate of nothing")
    }
  }
  // Nobody may be called offline who is there and stays.
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
    if (!["written", "expired", "duplicate", "late"].includes(outcome)) fail("is not at its device")
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
  const newest = all.reduce<SeenConnection | null>(
    (best, seen) =>
      best === null || isNewer(seen.epoch, seen.id, best.epoch, best.id) ? seen : best,
    null,
  )
  // When the device itself has closed the newest, an older one may never have heard of it.
  if (newest !== null && !isLost(newest) && open[0] !== newest) fail("lost its newest connection")
  for (const seen of all) {
    if (seen !== open[0] && !isLost(seen) && seen.device.reason !== "taken_over") {
      fail(`lost ${seen.id} for no reason`)
    }
  }
}

/** "For each device keep the largest epoch seen": whoever does knows who is there. */
function verifyPresence({ fleet, killed }: Performed, name: string): void {
  // A killed worker says nothing any more, nor one that drained while the broker was away.
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

function owesPresence({ fleet }: SimulatedWorker): boolean {
  return fleet.presence.count > 0
}

/** Every worker finds the device, whatever it was told before. */
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

function isKept(outcome: string): boolean {
  return outcome !== "written" && outcome !== "duplicate"
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
