/**
 * The registrar: registers the named devices of this worker with the keepers of their shards.
 *
 *   come, gone ─┬─ this worker keeps the shard ─► keeper.ts
 *               ├─ other workers claim it ──────► one message at a time to each (`destination.ts`) ─► kept
 *               └─ no worker that answers does ─► all workers, once it is known that nobody claims it
 *
 * A keeper that a worker hears of is told all its devices of the new shards, and then each change.
 * A registration goes to all workers too when the keeper does not answer it within
 * `KEPT_TIMEOUT_MS`, or refuses it because it does not keep the shard any more. So a device has two
 * connections for a moment only, even when its keeper is dead, slow or paused. All devices are told
 * again when the broker connection returns, and every `REPEAT_MS`, since a message may be lost.
 *
 * While a worker of an earlier version, or with another number of shards, is known, all changes go
 * to all workers too.
 *
 * Bounds: one change for each device and claimant of its shard.
 */

import type { WorkerProcess } from "../device/ids.ts"
import type { Channel } from "./channel.ts"
import { type Change, Destination, type DestinationOptions, type Waiting } from "./destination.ts"
import { keyOf } from "./directory.ts"
import type { Keeper } from "./keeper.ts"
import type { Keepers } from "./keepers.ts"
import type { Members } from "./members.ts"
import type { FleetMessage } from "./messages.ts"
import { aged, type Registration } from "./registration.ts"
import type { SendSchedule } from "./send-schedule.ts"
import { shardOf } from "./shards.ts"

const REPEAT_MS = 300_000
/** With the interval of sweeps, well below the second within which a takeover must happen. */
const KEPT_TIMEOUT_MS = 350
/** A device whose keeper does not answer counts as one without held commands after this time. */
const ANSWER_TIMEOUT_MS = 1_000
/** The same, while its keeper has sent another message in the past second: it is slow. */
const SLOW_ANSWER_TIMEOUT_MS = 5_000
/** The same, while the fleet has held commands: longer than the replacement of a keeper takes. */
const HELD_ANSWER_TIMEOUT_MS = 15_000

export interface RegistrarOptions {
  readonly schedule: Pick<SendSchedule, "soon">
  /** Milliseconds of a monotonic clock. */
  readonly steadyMs: () => number
  readonly isCurrent: DestinationOptions["isCurrent"]
  /** The registrations of all named devices of this worker. */
  readonly devices: () => Iterable<Registration>
  /** A connection is newer than its epoch says: call `again` with this epoch if it is open. */
  readonly raised: (registration: Registration) => void
  /**
   * Called once for each device that has connected, when its keeper has answered, or not in time.
   */
  readonly answered: (deviceId: string, connectionId: string, hasHeld: boolean) => void
}

/** What a keeper was told. */
interface Told {
  readonly worker: string
  /** The claim that this belongs to. */
  readonly since: number
  /** Shards of which it was told all devices. */
  readonly shards: Set<number>
  readonly destination: Destination
}

interface Untold {
  readonly told: Told
  readonly shards: readonly number[]
  readonly devices: Registration[]
}

interface Awaited {
  readonly connectionId: string
  readonly sinceMs: number
}

export class Registrar {
  readonly #channel: Channel
  readonly #members: Members
  readonly #keepers: Keepers
  readonly #keeper: Keeper
  readonly #options: RegistrarOptions
  readonly #everyone: Destination
  /** What each process was told, by process. */
  readonly #told = new Map<string, Told>()
  /**
   * Changes in shards that no worker claims, until it is known that none does, and in those of a
   * keeper that this worker has not begun to tell its devices.
   */
  readonly #unplaced = new Map<string, Waiting>()
  /** Devices that have connected and whose keeper has not answered, the oldest first. */
  readonly #awaited = new Map<string, Awaited>()
  /** Numbers the messages to all keepers. */
  #next = 0
  #hadForeign = false
  #claimsSeen = -1
  #claimsDueMs = Number.POSITIVE_INFINITY
  #repeatAtMs = Number.POSITIVE_INFINITY

  constructor(
    channel: Channel,
    members: Members,
    keepers: Keepers,
    keeper: Keeper,
    options: RegistrarOptions,
  ) {
    this.#channel = channel
    this.#members = members
    this.#keepers = keepers
    this.#keeper = keeper
    this.#options = options
    this.#everyone = this.#destination(null, () => undefined)
  }

  /** Changes that are not sent yet, and messages that no keeper has answered yet. */
  get pendingCount(): number {
    let count = this.#everyone.pendingCount + this.#unplaced.size
    if (this.#keepers.changes !== this.#claimsSeen) count += 1
    for (const { destination } of this.#told.values()) count += destination.pendingCount
    return count
  }

  /** A named device was admitted. */
  come([deviceId, connectionId, epoch]: Registration): void {
    this.#awaited.delete(deviceId)
    this.#awaited.set(deviceId, { connectionId, sinceMs: this.#options.steadyMs() })
    this.#place([deviceId, connectionId, epoch, 1])
  }

  /**
   * A named device has no connection on this worker any more. Do not call it for a connection that
   * was taken over here.
   */
  gone(deviceId: string, connectionId: string): void {
    if (this.#awaited.get(deviceId)?.connectionId === connectionId) this.#awaited.delete(deviceId)
    this.#place([deviceId, connectionId])
  }

  /**
   * The broker connection has returned: registrations may be lost.
   * @param claimsDueMs when it will be known which workers keep shards.
   */
  connected(claimsDueMs: number): void {
    this.#claimsDueMs = claimsDueMs
    this.#tellAgain()
    this.#unplaced.clear()
    this.#everyone.clear()
    for (const device of this.#options.devices()) this.#place(device)
    this.#repeatAtMs = this.#options.steadyMs() + REPEAT_MS * (0.5 + Math.random())
  }

  /** Messages can be sent again. */
  opened(): void {
    this.#everyone.opened()
    for (const { destination } of this.#told.values()) destination.opened()
  }

  /** Handles the answer of a keeper. */
  kept({
    from,
    incarnation,
    n,
    raised,
    held,
    refused,
  }: Extract<FleetMessage, { type: "kept" }>): void {
    const process = { worker: from, incarnation }
    const hasHeld = new Set(held)
    const isRaised = new Set(raised.map(([, connectionId]) => connectionId))
    const answered = this.#told.get(keyOf(process))?.destination.answered(n) ?? []
    const isRefused = new Set(refused)
    for (const registration of answered) {
      const [deviceId, connectionId] = registration
      if (isRefused.has(deviceId)) this.#everyone.add(registration)
      else if (!isRaised.has(connectionId)) {
        this.#answered(deviceId, connectionId, hasHeld.has(deviceId))
      }
    }
    for (const registration of raised) this.#options.raised(registration)
  }

  /** The connection of this worker is not known to the keeper, or not as the newest one. */
  again(registration: Registration): void {
    this.#place(registration)
  }

  /** This worker keeps these shards now. */
  gained(shards: readonly number[]): void {
    const gained = new Set(shards)
    for (const device of this.#options.devices()) {
      if (gained.has(this.#shardOf(device[0]))) this.#place(device)
    }
    this.#placeAgain()
  }

  /** To be called periodically. */
  sweep(): void {
    const steadyMs = this.#options.steadyMs()
    const mayHold = this.#awaited.size > 0 && this.#members.mayHold
    for (const [deviceId, { connectionId, sinceMs }] of this.#awaited) {
      const waitedMs = steadyMs - sinceMs
      if (waitedMs < ANSWER_TIMEOUT_MS) break
      if (waitedMs < HELD_ANSWER_TIMEOUT_MS && mayHold) continue
      if (waitedMs < SLOW_ANSWER_TIMEOUT_MS && this.#isKeeperSlow(deviceId)) continue
      this.#answered(deviceId, connectionId, false)
    }
    if (!this.#channel.open) return
    if (steadyMs >= this.#repeatAtMs) {
      this.#repeatAtMs = steadyMs + REPEAT_MS
      this.#tellAgain()
    }
    if (this.#keepers.changes !== this.#claimsSeen) this.#tellClaimants()
    if (this.#keepers.hasForeign && !this.#hadForeign) {
      for (const device of this.#options.devices()) this.#everyone.add(device)
    }
    this.#hadForeign = this.#keepers.hasForeign
    for (const told of this.#told.values()) this.#missed(told, KEPT_TIMEOUT_MS)
    this.#placeAgain()
  }

  /** All keepers are told everything again. */
  #tellAgain(): void {
    for (const { destination } of this.#told.values()) destination.clear()
    this.#told.clear()
    this.#claimsSeen = -1
  }

  #placeAgain(): void {
    if (this.#unplaced.size === 0) return
    const unplaced = [...this.#unplaced.values()]
    this.#unplaced.clear()
    for (const { change, sinceMs } of unplaced) this.#place(change, sinceMs)
  }

  #shardOf(deviceId: string): number {
    return shardOf(deviceId, this.#keepers.shards)
  }

  /** Whether a keeper of the device sends other messages. One that has died does not. */
  #isKeeperSlow(deviceId: string): boolean {
    const sinceMs = this.#options.steadyMs() - ANSWER_TIMEOUT_MS
    const claimants = this.#keepers.claimants(this.#shardOf(deviceId))
    return claimants.some(({ process }) => this.#members.wasHeard(process, sinceMs))
  }

  #place(change: Change, sinceMs = this.#options.steadyMs()): void {
    const [deviceId] = change
    // When it opens again, all devices are told.
    if (this.#channel.closed) return
    const shard = this.#shardOf(deviceId)
    const claimants = this.#keepers.claimants(shard)
    for (const { process } of claimants) {
      this.#told.get(keyOf(process))?.destination.add(change, sinceMs)
    }
    if (this.#keepers.hasForeign) this.#everyone.add(change)
    if (this.#keepers.kept.has(shard)) {
      if (change.length === 2) return
      const [, connectionId] = change
      const { raised, hasHeld } = this.#keeper.registerOwn(
        aged(change, this.#options.steadyMs() - sinceMs),
      )
      if (raised === null) this.#answered(deviceId, connectionId, hasHeld)
      else this.#options.raised([deviceId, connectionId, raised])
      return
    }
    const answering = claimants.filter(({ process }) => this.#members.answers(process))
    if (answering.some(({ process }) => this.#told.has(keyOf(process)))) return
    const isKept = answering.length > 0 || this.#options.steadyMs() < this.#claimsDueMs
    if (isKept) this.#unplaced.set(deviceId, { change, sinceMs })
    else this.#everyone.add(change)
  }

  /** Tells each keeper all devices of the shards that it did not claim before. */
  #tellClaimants(): void {
    this.#claimsSeen = this.#keepers.changes
    const claiming = new Set<string>()
    /** By shard, the keepers that have not been told of it. */
    const untold = new Map<number, Untold[]>()
    const all: Untold[] = []
    for (const { process, since, shards } of this.#keepers.all()) {
      const key = keyOf(process)
      claiming.add(key)
      const told = this.#toldTo(process, since)
      for (const shard of told.shards) if (!shards.has(shard)) told.shards.delete(shard)
      const fresh = [...shards].filter((shard) => !told.shards.has(shard))
      if (fresh.length === 0) continue
      const waiting = { told, shards: fresh, devices: [] }
      all.push(waiting)
      for (const shard of fresh) {
        told.shards.add(shard)
        untold.set(shard, [...(untold.get(shard) ?? []), waiting])
      }
    }
    for (const [key, { destination }] of this.#told) {
      if (claiming.has(key)) continue
      this.#told.delete(key)
      // The worker has ended or gives the shard up, perhaps without having handled these.
      for (const change of destination.clear()) this.#everyone.add(change)
    }
    if (all.length === 0) return
    for (const device of this.#options.devices()) {
      for (const { devices } of untold.get(this.#shardOf(device[0])) ?? []) devices.push(device)
    }
    for (const { told, shards, devices } of all) told.destination.tellAll(shards, devices)
  }

  /** Tells all workers the registrations that the keeper has not answered within this time. */
  #missed({ worker, destination }: Told, timeoutMs = 0): void {
    const overdue = destination.overdue(timeoutMs)
    if (overdue.length === 0) return
    this.#members.wasSlow(worker, this.#options.steadyMs())
    for (const registration of overdue) this.#everyone.add(registration)
  }

  #toldTo(process: WorkerProcess, since: number): Told {
    const key = keyOf(process)
    const before = this.#told.get(key)
    if (before?.since === since) return before
    // Its `told` would count for what the keeper is told from now on.
    before?.destination.clear()
    const told: Told = {
      ...{ worker: process.worker, since, shards: new Set() },
      destination: this.#destination(process, (result) => {
        if (result === "returned") {
          // The process has ended.
          this.#members.missed(process.worker)
          this.#missed(told)
          return
        }
        if (this.#told.get(key) !== told) return
        // It is told everything again. Its `told` would hide that a message is missing.
        told.destination.clear()
        this.#told.delete(key)
        this.#claimsSeen = -1
      }),
    }
    this.#told.set(key, told)
    return told
  }

  #destination(keeper: WorkerProcess | null, failed: DestinationOptions["failed"]): Destination {
    const { schedule, steadyMs, isCurrent } = this.#options
    const channel = this.#channel
    // One counter for all: a late answer must not count for the messages of a later destination.
    const next = () => {
      this.#next += 1
      return this.#next
    }
    return new Destination({ schedule, channel, keeper, steadyMs, next, isCurrent, failed })
  }

  #answered(deviceId: string, connectionId: string, hasHeld: boolean): void {
    if (this.#awaited.get(deviceId)?.connectionId !== connectionId) return
    this.#awaited.delete(deviceId)
    this.#options.answered(deviceId, connectionId, hasHeld)
  }
}
