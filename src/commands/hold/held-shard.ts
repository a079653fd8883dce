/**
 * The held commands of one shard at its keeper: takes commands, forwards them when their device is
 * connected, and stores their outcomes.
 *
 *   unknown ──exists──► reading ◄──► read ──close──► closed
 *      └────does not──► absent ──first command──► reading
 *
 *   hold ─► index ─► log ─► stored                       (index: may it be held; log: it survives this worker)
 *   registered ─► the next command ─► the queue of the worker with the connection ─► its receipt
 *   receipt, expire, cancel, supersede ─► outcome stored ─► tombstone
 *
 * Only in "read" are commands forwarded and outcomes decided: in no other state is it certain that
 * all commands are known and that there is no other keeper. Until then registrations and requests
 * wait, requests for at most `MAX_WAIT_MS`: then they are stored behind what the log has.
 *
 * A forward names the connection. Its outcome `closed` or `offline` without any byte offered to the
 * socket means that the command is still held. A forward without a receipt is repeated to the same
 * connection (`held-forwards.ts`). The command goes to another connection only after an outcome,
 * because it may have been written. A device whose forward failed is looked for after
 * `LOOK_AGAIN_MS`, in case its worker was only slow.
 *
 * Bounds: those of the index; one forward for each device.
 */

import type { Counters } from "../../counters.ts"
import type { Outcome } from "../../device/command.ts"
import { processOfConnection } from "../../device/ids.ts"
import { isNewer, type Registration } from "../../fleet/registration.ts"
import { type Receipt, receipt } from "../outcomes.ts"
import type { HeldCommand } from "./held-command.ts"
import type { HeldForward, HeldForwards, Turn } from "./held-forwards.ts"
import { type HeldEntry, HeldIndex, type HeldRoom } from "./held-index.ts"
import type { HeldLog, HeldLogHooks } from "./held-log.ts"

const MAX_WAIT_MS = 5_000
const LOOK_AGAIN_MS = 2_000
/** Another worker that takes itself for the keeper may make the queue until then. */
const CHECK_AGAIN_MS = 10_000
const RETRY_CHECK_MS = 1_000

/** A command that a worker asks this one to hold. Exactly one of the callbacks is called. */
export interface HoldRequest {
  readonly command: Omit<HeldCommand, "heldAtMs" | "number" | "expiresAtMs">
  readonly holdMs: number
  /** Of the command itself; `Infinity` without. */
  readonly expiresAtMs: number
  /** Its source may have been delivered before. */
  readonly redelivered: boolean
  /** False once its delivery is lost: the next delivery decides. */
  readonly wanted: () => boolean
  /** @param heldUntilMs milliseconds since 1970. */
  readonly stored: (heldUntilMs: number) => void
  /** The same command is held already. */
  readonly known: (heldUntilMs: number) => void
  readonly refused: (outcome: Outcome, detail: string) => void
  /** It was not stored, because its delivery is lost or the shard has another keeper. */
  readonly withdrawn: () => void
}

export interface HeldShardOptions {
  readonly makeLog: (hooks: HeldLogHooks) => HeldLog
  readonly exists: () => Promise<boolean>
  readonly forwards: HeldForwards
  /** Finds the connection of a device; null when no worker has it. */
  readonly locate: (
    deviceId: string,
    trusting: boolean,
    found: (connectionId: string | null) => void,
  ) => void
  /** Stores copy and receipt. @param wanted whether to publish the first of them. */
  readonly store: (
    command: HeldCommand,
    receipt: Receipt,
    wanted: () => boolean,
    done: (result: "stored" | "withdrawn") => void,
  ) => void
  readonly foreign: HeldLogHooks["foreign"]
  /** All held commands of the device have been written. */
  readonly done: (connectionId: string) => void
  readonly room: () => HeldRoom
  readonly maxPerDevice: number
  readonly counters: Counters
  readonly nowMs: () => number
  readonly steadyMs: () => number
}

interface WaitingRequest {
  readonly request: HoldRequest
  readonly sinceMs: number
}

/** A device with held commands that is connected or looked for. */
interface Device {
  readonly id: string
  /** Null while it is not connected as far as this worker knows. */
  connectionId: string | null
  forward: HeldForward | null
  /** Set while it waits until a command may go to its connection. */
  turn: Turn | null
  lookAtMs: number
}

/** An outcome that is not stored yet. */
interface Ending {
  readonly command: HeldCommand
  readonly receipt: Receipt
  isStoring: boolean
}

export class HeldShard {
  readonly #options: HeldShardOptions
  readonly index: HeldIndex
  readonly #log: HeldLog
  #state: "unknown" | "absent" | "open" | "closed" = "unknown"
  #isChecking = false
  #checkAtMs = 0
  #waiting: WaitingRequest[] = []
  /** The newest registrations that came before all commands were known, by device. */
  readonly #registrations = new Map<string, Registration>()
  readonly #devices = new Map<string, Device>()
  readonly #endings = new Map<string, Ending>()
  #lastHeldAtMs = 0
  #lastNumber = 0

  constructor(options: HeldShardOptions) {
    this.#options = options
    this.index = new HeldIndex(options.maxPerDevice)
    this.#log = options.makeLog({
      entry: (command) => this.#loaded(command),
      gone: (id) => this.#gone(id),
      read: () => this.#read(),
      lost: () => undefined,
      foreign: options.foreign,
    })
  }

  /** Whether all commands are known. */
  get isReady(): boolean {
    return this.#state === "absent" || (this.#state === "open" && this.#log.isRead)
  }

  /** Outcomes that are being stored, and requests that wait. */
  get unsettledCount(): number {
    return this.#endings.size + this.#waiting.length
  }

  /** The broker is connected: the queue may have been made meanwhile. */
  check(): void {
    if (this.#isChecking || this.#state === "open" || this.#state === "closed") return
    this.#isChecking = true
    this.#options.exists().then(
      (exists) => this.#checked(exists),
      () => this.#checked(null),
    )
  }

  hold(request: HoldRequest): void {
    if (this.#state === "absent") this.#open()
    if (this.isReady) this.#store(request)
    else this.#waiting.push({ request, sinceMs: this.#options.steadyMs() })
  }

  /**
   * A device is connected.
   * @param isNew false when its worker may have another answer already: it registers again, or with
   * several keepers. Then the worker is told when there are no held commands.
   * @returns whether it has held commands, or may have.
   */
  registered(registration: Registration, isNew: boolean): boolean {
    const [deviceId, connectionId, epoch] = registration
    if (!this.isReady) {
      const known = this.#registrations.get(deviceId)
      // A worker may register a connection late that has been replaced meanwhile.
      const isOlder = known !== undefined && isNewer(known[2], known[1], epoch, connectionId)
      if (!isOlder) this.#registrations.set(deviceId, registration)
      return true
    }
    if (!this.#hasHeld(deviceId)) {
      if (!isNew) this.#options.done(connectionId)
      return false
    }
    this.#connected(deviceId, connectionId)
    return true
  }

  /** Handles the receipt of a forward. */
  answered(forward: HeldForward, receipt: Receipt, wasOffered: boolean): void {
    const device = this.#devices.get(forward.command.deviceId)
    if (device?.forward !== forward) return
    if (!this.#log.isRead) {
      // Another keeper may have got it too. If not, it counts when all commands are known.
      forward.receipt = { receipt, wasOffered }
      return
    }
    this.#options.forwards.end(forward)
    device.forward = null
    const { outcome } = receipt
    if ((outcome === "closed" || outcome === "offline") && !wasOffered) {
      this.#failed(device, forward)
      return
    }
    if (this.index.end(forward.command.id)) this.#end(forward.command, receipt)
    this.#advance(device)
  }

  /**
   * Cancels held commands of a device.
   * @param messageId null for all.
   * @returns their number; null when not all commands are known.
   */
  cancel(deviceId: string, messageId: string | null): number | null {
    if (!this.isReady) return null
    const cancelled = this.index.cancel(deviceId, messageId)
    for (const command of cancelled) this.#decide(command, "cancelled", "by a request")
    this.#advanceIf(deviceId)
    return cancelled.length
  }

  /** The held commands of a device; null when not all are known. */
  list(deviceId: string): HeldEntry[] | null {
    if (!this.isReady) return null
    return this.index.of(deviceId).filter(({ state }) => state === "held" || state === "forwarded")
  }

  /** To be called periodically. */
  sweep(steadyMs: number): void {
    if (steadyMs >= this.#checkAtMs) this.check()
    this.#log.sweep(steadyMs)
    const overdue = this.#waiting.filter(({ sinceMs }) => steadyMs - sinceMs >= MAX_WAIT_MS)
    if (overdue.length > 0 && this.#state === "open") {
      this.#waiting = this.#waiting.filter((waiting) => !overdue.includes(waiting))
      for (const { request } of overdue) this.#store(request)
    }
    if (!this.#log.isRead) return
    for (const command of this.index.expire(this.#options.nowMs())) {
      this.#decide(command, "expired", "while it was held")
      this.#advanceIf(command.deviceId)
    }
    for (const device of this.#devices.values()) {
      if (steadyMs >= device.lookAtMs) this.#look(device, false)
    }
  }

  /** The shard has another keeper. */
  close(): void {
    this.#state = "closed"
    this.#log.close()
    for (const device of this.#devices.values()) {
      if (device.forward !== null) this.#options.forwards.end(device.forward)
      this.#stopWaiting(device)
    }
    this.#devices.clear()
    this.#registrations.clear()
    const waiting = this.#waiting
    this.#waiting = []
    for (const { request } of waiting) request.withdrawn()
  }

  #checked(exists: boolean | null): void {
    this.#isChecking = false
    if (this.#state === "open" || this.#state === "closed") return
    const { steadyMs } = this.#options
    if (exists === null) {
      this.#checkAtMs = steadyMs() + RETRY_CHECK_MS
      return
    }
    if (exists) {
      this.#open()
      return
    }
    const isFirst = this.#state === "unknown"
    this.#checkAtMs = isFirst ? steadyMs() + CHECK_AGAIN_MS : Number.POSITIVE_INFINITY
    this.#state = "absent"
    if (isFirst) this.#known()
  }

  #open(): void {
    this.#state = "open"
    this.#checkAtMs = Number.POSITIVE_INFINITY
    this.#log.open()
  }

  #loaded(command: HeldCommand): void {
    this.index.load(command)
    const { heldAtMs, number } = command
    this.#lastHeldAtMs = Math.max(this.#lastHeldAtMs, heldAtMs)
    this.#lastNumber = Math.max(this.#lastNumber, number)
    // Another worker that took itself for the keeper has stored it.
    if (this.#log.isRead) this.#held(command.deviceId)
  }

  #gone(id: string): void {
    const entry = this.index.find(id)
    this.index.remove(id)
    this.#endings.delete(id)
    if (entry === undefined) return
    const device = this.#devices.get(entry.command.deviceId)
    if (device?.forward?.command.id !== id) return
    this.#options.forwards.end(device.forward)
    device.forward = null
  }

  #read(): void {
    for (const deviceId of [...this.index.devices()]) this.#supersede(deviceId)
    for (const ending of this.#endings.values()) this.#storeEnding(ending)
    for (const { forward } of [...this.#devices.values()]) {
      const answer = forward?.receipt
      if (forward !== null && answer) this.answered(forward, answer.receipt, answer.wasOffered)
    }
    this.#known()
    for (const device of [...this.#devices.values()]) this.#advance(device)
  }

  /** All commands are known. */
  #known(): void {
    const registrations = [...this.#registrations.values()]
    this.#registrations.clear()
    for (const [deviceId, connectionId] of registrations) {
      if (this.#hasHeld(deviceId)) this.#connected(deviceId, connectionId)
      else this.#options.done(connectionId)
    }
    const waiting = this.#waiting
    this.#waiting = []
    for (const { request } of waiting) this.hold(request)
  }

  #store(request: HoldRequest): void {
    if (!request.wanted()) {
      request.withdrawn()
      return
    }
    const { nowMs, room } = this.#options
    const heldAtMs = Math.max(nowMs(), this.#lastHeldAtMs)
    const number = this.#lastNumber + 1
    const expiresAtMs = Math.min(heldAtMs + request.holdMs, request.expiresAtMs)
    const command = { ...request.command, heldAtMs, number, expiresAtMs }
    const verdict = this.index.offer(command, request.redelivered, room())
    switch (verdict.kind) {
      case "known":
        request.known(verdict.heldUntilMs)
        return
      case "duplicate":
        request.refused("duplicate", `message_id ${command.messageId} is held already`)
        return
      case "full":
        request.refused("hold_full", verdict.detail)
        return
      case "added":
        break
    }
    this.#lastHeldAtMs = heldAtMs
    this.#lastNumber = number
    this.#log.append(command, {
      wanted: () => this.#state === "open" && request.wanted(),
      done: (result) => {
        if (result === "confirmed") {
          this.index.stored(command.id)
          request.stored(expiresAtMs)
          this.#held(command.deviceId)
          return
        }
        this.index.remove(command.id)
        if (result === "withdrawn") request.withdrawn()
        else request.refused("invalid", "its headers are too large")
        this.#advanceIf(command.deviceId)
      },
    })
  }

  /** A command of the device is held now. */
  #held(deviceId: string): void {
    if (!this.#log.isRead) return
    this.#supersede(deviceId)
    const known = this.#devices.get(deviceId)
    if (known !== undefined) this.#advance(known)
    else this.#look(this.#deviceOf(deviceId), true)
  }

  #supersede(deviceId: string): void {
    for (const command of this.index.supersede(deviceId)) {
      this.#decide(command, "superseded", `by a newer command with its supersede_key`)
    }
  }

  #hasHeld(deviceId: string): boolean {
    return this.index.of(deviceId).some(({ state }) => state !== "ending")
  }

  #deviceOf(id: string): Device {
    const known = this.#devices.get(id)
    if (known !== undefined) return known
    const lookAtMs = Number.POSITIVE_INFINITY
    const device: Device = { id, connectionId: null, forward: null, turn: null, lookAtMs }
    this.#devices.set(id, device)
    return device
  }

  #connected(deviceId: string, connectionId: string): void {
    const device = this.#deviceOf(deviceId)
    device.connectionId = connectionId
    device.lookAtMs = Number.POSITIVE_INFINITY
    this.#advance(device)
  }

  #advanceIf(deviceId: string): void {
    const device = this.#devices.get(deviceId)
    if (device !== undefined) this.#advance(device)
  }

  /** Forwards the next command of a connected device, when it is its turn. */
  #advance(device: Device): void {
    const { connectionId, forward, turn } = device
    const { forwards, nowMs, done } = this.#options
    if (!this.#log.isRead || forward !== null || connectionId === null) return
    if (turn !== null && turn.connectionId !== connectionId) this.#stopWaiting(device)
    if (!this.#hasHeld(device.id)) {
      this.#stopWaiting(device)
      this.#devices.delete(device.id)
      done(connectionId)
      return
    }
    if (!forwards.hasRoom(connectionId)) {
      device.turn ??= forwards.wait(connectionId, () => {
        device.turn = null
        this.#advance(device)
      })
      return
    }
    const command = this.index.take(device.id, nowMs())
    if (command === null) return
    this.#stopWaiting(device)
    device.forward = forwards.send(command, connectionId, {
      wanted: () => this.#log.isRead,
      answered: (sent, answer, wasOffered) => this.answered(sent, answer, wasOffered),
    })
  }

  #stopWaiting(device: Device): void {
    if (device.turn !== null) this.#options.forwards.leave(device.turn)
    device.turn = null
  }

  /** The connection has ended, or its worker did not take the command. */
  #failed(device: Device, { command, connectionId }: HeldForward): void {
    this.index.release(command.id)
    this.#supersede(device.id)
    if (device.connectionId === connectionId) {
      device.connectionId = null
      device.lookAtMs = this.#options.steadyMs() + LOOK_AGAIN_MS
    }
    this.#advance(device)
  }

  #look(device: Device, trusting: boolean): void {
    device.lookAtMs = Number.POSITIVE_INFINITY
    this.#options.locate(device.id, trusting, (connectionId) => {
      if (this.#devices.get(device.id) !== device || device.connectionId !== null) return
      const holder = connectionId === null ? null : processOfConnection(connectionId)
      if (connectionId === null || holder === null) {
        // It registers when it connects.
        if (device.forward === null) this.#devices.delete(device.id)
        return
      }
      this.#connected(device.id, connectionId)
    })
  }

  #decide(command: HeldCommand, outcome: Outcome, detail: string): void {
    const target = { deviceId: command.deviceId, connectionId: null }
    this.#end(command, receipt(outcome, detail, null, target, this.#options.nowMs()))
  }

  #end(command: HeldCommand, receipt: Receipt): void {
    const ending = { command, receipt, isStoring: false }
    this.#endings.set(command.id, ending)
    this.#storeEnding(ending)
  }

  #storeEnding(ending: Ending): void {
    if (ending.isStoring) return
    ending.isStoring = true
    const { command, receipt } = ending
    const wanted = () => this.#log.isRead
    this.#options.store(command, receipt, wanted, (result) => {
      ending.isStoring = false
      // Stored by the next keeper, or by this one when all commands are known again.
      if (result === "withdrawn") return
      this.#options.counters.commandsSettled[receipt.outcome] += 1
      this.#log.end(command.id, () => {
        this.#endings.delete(command.id)
        this.index.remove(command.id)
      })
    })
  }
}
