/**
 * The keeper: keeps the directory of this worker's shards, and decides between two connections of
 * one device.
 *
 *   devices ─► directory ─┬─ newer than the registered one ─► newer ─► the worker of the older one, which closes it
 *                         ├─ older ─────────────────────────► newer ─► the worker that registers it, which closes it
 *                         └─ older by its epoch, but `ARRIVAL_MS` later ─► its worker registers it with a larger epoch
 *   all that came from one worker ─► kept
 *   find ─► found: where each device is, or that no worker holds it
 *
 * The clocks of two machines may differ. So a device that has just connected is newer than a
 * connection that was registered long ago, whatever their epochs say. Both connections stay until
 * the worker has registered the larger epoch: its connection may have closed. Bounds: those of the
 * directory; one answer and one notice for each member.
 */

import { processOfConnection, type WorkerProcess } from "../device/ids.ts"
import type { Channel } from "./channel.ts"
import { type Directory, type Found, keyOf } from "./directory.ts"
import { Gathered } from "./gathered.ts"
import type { Members } from "./members.ts"
import { type FleetMessage, MAX_ROWS } from "./messages.ts"
import { isNewer, type Registration } from "./registration.ts"
import type { SendSchedule } from "./send-schedule.ts"

/** More than a registration needs to arrive. */
const ARRIVAL_MS = 2_000

export interface KeeperOptions {
  readonly schedule: Pick<SendSchedule, "soon">
  readonly self: WorkerProcess
  /** Milliseconds of a monotonic clock. */
  readonly steadyMs: () => number
  /** This worker's open connection of a device. */
  readonly own: (deviceId: string) => Found | undefined
  /** This worker's connection of the device is older than this one. */
  readonly takenOver: (registration: Registration) => void
  /** A device has just connected to another worker. */
  readonly connected: (deviceId: string, epoch: number) => void
  /** A device has registered. @returns whether commands are held for it. */
  readonly hasHeld: (registration: Registration, at: WorkerProcess) => boolean
}

/** What the keeper answers for one registration. */
export interface Kept {
  /**
   * The larger epoch with which the connection must be registered again; null when it is
   * registered.
   */
  readonly raised: number | null
  readonly hasHeld: boolean
}

type Devices = Extract<FleetMessage, { type: "devices" }>

/** What waits to be sent to one process. */
class Outbox {
  readonly process: WorkerProcess
  n = 0
  isAnswerDue = false
  raised: Registration[] = []
  held: string[] = []
  refused: string[] = []
  readonly newer = new Map<string, Registration>()

  constructor(process: WorkerProcess) {
    this.process = process
  }

  get rows(): number {
    return Math.max(this.raised.length, this.held.length, this.refused.length)
  }
}

export class Keeper {
  readonly #channel: Channel
  readonly #members: Members
  readonly #directory: Directory
  readonly #options: KeeperOptions
  /** By process. */
  readonly #outboxes = new Map<string, Outbox>()
  readonly #gathered: Gathered

  constructor(channel: Channel, members: Members, directory: Directory, options: KeeperOptions) {
    this.#channel = channel
    this.#members = members
    this.#directory = directory
    this.#options = options
    this.#gathered = new Gathered(options.schedule, (ended) => this.#send(ended))
  }

  /** Answers and notices that are not sent yet. */
  get pendingCount(): number {
    let count = 0
    for (const { isAnswerDue, newer } of this.#outboxes.values()) {
      count += newer.size + (isAnswerDue ? 1 : 0)
    }
    return count
  }

  /** Handles the changes of another worker, as far as their shards are kept here. */
  heard({ from, incarnation, here, gone, n, tells = [], told = [] }: Devices): void {
    const sender = { worker: from, incarnation }
    for (const shard of tells) this.#directory.tells(shard, sender)
    for (const [deviceId, connectionId] of gone) this.#directory.gone(deviceId, connectionId)
    // An answer has at most as many rows as a message may have.
    const rows = this.#outboxes.get(keyOf(sender))?.rows ?? 0
    if (rows + here.length > MAX_ROWS) this.#sendAll()
    const outbox = n === undefined ? null : this.#outboxTo(sender)
    for (const registration of here) {
      const [deviceId, connectionId, epoch, isFresh] = registration
      if (!this.#directory.keeps(deviceId)) {
        outbox?.refused.push(deviceId)
        continue
      }
      if (isFresh === 1) this.#options.connected(deviceId, epoch)
      const { raised, hasHeld } = this.#register(registration, sender)
      if (outbox === null) continue
      if (raised !== null) outbox.raised.push([deviceId, connectionId, raised])
      if (hasHeld) outbox.held.push(deviceId)
    }
    for (const shard of told) this.#directory.hasTold(shard, sender)
    if (outbox === null || n === undefined) return
    outbox.n = n
    outbox.isAnswerDue = true
    this.#gathered.soon()
  }

  /** Messages can be sent again. */
  opened(): void {
    if (this.#outboxes.size > 0) this.#gathered.soon()
  }

  /** A device of this worker, whose shard is kept here, has connected or is registered again. */
  registerOwn(registration: Registration): Kept {
    return this.#register(registration, this.#options.self)
  }

  /** Where the devices are, and which of them no worker holds. Of the others nothing is known. */
  find(deviceIds: readonly string[]): { devices: Registration[]; absent: string[] } {
    const devices: Registration[] = []
    const absent: string[] = []
    for (const deviceId of deviceIds) {
      const found = this.#options.own(deviceId) ?? this.#directory.find(deviceId)
      if (found === undefined) {
        if (this.#directory.isComplete(deviceId, this.#members.processes())) absent.push(deviceId)
      } else if (this.#isThere(found)) devices.push(found.registration)
    }
    return { devices, absent }
  }

  #register(registration: Registration, at: WorkerProcess): Kept {
    const { steadyMs, own, hasHeld } = this.#options
    const [deviceId, connectionId, epoch, isFresh] = registration
    const isOwn = at === this.#options.self
    const atMs = steadyMs()
    const known = (isOwn ? undefined : own(deviceId)) ?? this.#directory.find(deviceId)
    if (known !== undefined && known.registration[1] !== connectionId) {
      const [, knownConnection, knownEpoch] = known.registration
      if (!isNewer(epoch, connectionId, knownEpoch, knownConnection)) {
        const isLater = isFresh === 1 && atMs - known.atMs > ARRIVAL_MS && this.#isThere(known)
        if (isLater) return { raised: knownEpoch + 1, hasHeld: false }
        this.#tellNewer(at, known.registration)
        return { raised: null, hasHeld: false }
      }
      const holder = processOfConnection(knownConnection)
      if (holder !== null) this.#tellNewer(holder, [deviceId, connectionId, epoch])
    }
    // Devices of this worker are found without the directory.
    if (isOwn) this.#directory.remove(deviceId)
    else this.#directory.set([deviceId, connectionId, epoch], atMs)
    return { raised: null, hasHeld: hasHeld(registration, at) }
  }

  /** Whether the process that holds the connection is known to answer. */
  #isThere({ registration }: Found): boolean {
    const holder = processOfConnection(registration[1])
    if (holder === null) return false
    return keyOf(holder) === keyOf(this.#options.self) || this.#members.answers(holder)
  }

  #tellNewer(to: WorkerProcess, registration: Registration): void {
    if (keyOf(to) === keyOf(this.#options.self)) {
      this.#options.takenOver(registration)
      return
    }
    const outbox = this.#outboxTo(to)
    outbox.newer.set(registration[0], registration)
    this.#gathered.soon()
  }

  #outboxTo(process: WorkerProcess): Outbox {
    const key = keyOf(process)
    const outbox = this.#outboxes.get(key) ?? new Outbox(process)
    this.#outboxes.set(key, outbox)
    return outbox
  }

  #send(ended: () => void): boolean {
    if (this.#outboxes.size === 0) return false
    this.#sendAll()
    queueMicrotask(ended)
    return true
  }

  /**
   * The notices to all workers go before the answers: a worker that has its answer need not tell
   * its registrations to all. When messages cannot be sent, all workers register again.
   */
  #sendAll(): void {
    // `opened` sends them.
    if (!this.#channel.open) return
    const outboxes = [...this.#outboxes.values()]
    this.#outboxes.clear()
    for (const { process, newer } of outboxes) {
      const rows = [...newer.values()]
      for (let from = 0; from < rows.length; from += MAX_ROWS) {
        this.#tellRows(process, rows.slice(from, from + MAX_ROWS))
      }
    }
    for (const { process, isAnswerDue, n, raised, held, refused } of outboxes) {
      if (isAnswerDue) this.#channel.tell(process, { type: "kept", n, raised, held, refused })
    }
  }

  #tellRows(process: WorkerProcess, devices: Registration[]): void {
    this.#channel.tell(process, { type: "newer", devices }, (result) => {
      // The messages in flight have reached their bound, or the broker has refused it.
      const isDropped = result === "nacked" || (result === "cut" && this.#channel.open)
      if (isDropped) for (const device of devices) this.#tellNewer(process, device)
    })
  }
}
