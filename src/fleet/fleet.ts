/**
 * A worker's membership in the fleet. The fleet is all workers of all instances on one broker. This
 * class composes the members, the directory, the locator, the fleet query, broadcasts, tapes and
 * presence.
 *
 *   admitted, closed ─► registrar, presence ─► broker
 *   fleet queue ─► channel ─► members, keeper, registrar, locator, fleet query, broadcasts
 *
 * No worker stores the location of all devices. Each worker knows its own devices and keeps the
 * locations of the devices of its shards. It asks the keeper of another shard, or the whole fleet
 * when the keeper does not know. Bounds: those of its parts.
 */

import type { Broker, Delivery, PublishResult } from "../broker/broker.ts"
import type { Claim, HoldKeeper } from "../commands/hold/keeper.ts"
import type { Counters } from "../counters.ts"
import type { CloseReason } from "../device/close-reason.ts"
import type { Connection } from "../device/connection.ts"
import type { ConnectionHistory } from "../device/connection-history.ts"
import type { Connections } from "../device/connections.ts"
import { processOfConnection, type WorkerProcess } from "../device/ids.ts"
import type { Refusals } from "../device/refusals.ts"
import { AdmissionRules, type AdmissionRulesOptions } from "./admission-rules.ts"
import { Broadcasts } from "./broadcasts.ts"
import { Channel } from "./channel.ts"
import { instanceOf } from "./device-view.ts"
import { Directory, type Found, keyOf } from "./directory.ts"
import type { FleetKeys } from "./fleet-keys.ts"
import { FleetQuery } from "./fleet-query.ts"
import { type FleetView, fleetView } from "./fleet-view.ts"
import { HeldQuery } from "./held-query.ts"
import { Keeper } from "./keeper.ts"
import { KeeperLookUps } from "./keeper-look-ups.ts"
import { Keepers } from "./keepers.ts"
import { LocationCache } from "./location-cache.ts"
import { Locator } from "./locator.ts"
import { Members, REJOIN_MS } from "./members.ts"
import { type FleetMessage, type FleetSettings, MAX_ROWS } from "./messages.ts"
import { Presence } from "./presence.ts"
import { RecordsQuery } from "./records-query.ts"
import { Registrar } from "./registrar.ts"
import { isNewer, type Registration } from "./registration.ts"
import { SendSchedule } from "./send-schedule.ts"
import { shardOf } from "./shards.ts"
import { Tapes, type TapesHooks } from "./tape/tapes.ts"

const TELL_UNVERIFIED_EVERY_MS = 60_000
/** The other workers answer within this time after the broker connection has returned. */
const ACQUAINT_MS = 400
/** Workers that came at the same time say within this time which shards they keep. */
const CLAIMS_MS = 150
const REVIEW_AFTER_MS = 50
/** Registrations of processes that have ended are removed in this interval. */
const PURGE_EVERY_MS = 10_000

/** The keeper of held commands, which depends on who keeps a shard. */
export type KeeperHooks = Pick<
  HoldKeeper,
  "gained" | "lost" | "registered" | "list" | "cancel" | "count"
>

export interface FleetOptions {
  readonly self: WorkerProcess
  /** `FLEET_SHARDS`, the same on all instances. */
  readonly shards: number
  /** Those that the doctor compares between instances. */
  readonly settings: FleetSettings
  readonly keeping: KeeperHooks
  /**
   * Called once for each named device after its admission, within about a second, with whether
   * commands are held for it.
   */
  readonly registrationAnswered: (deviceId: string, connectionId: string, hasHeld: boolean) => void
  readonly nowMs: () => number
  /** Milliseconds of a monotonic clock. */
  readonly steadyMs: () => number
  readonly counters: Counters
  readonly keys: FleetKeys
  readonly warn: (message: string) => void
  /** What this worker remembers of connections that have ended. */
  readonly refusals: Refusals
  readonly history: ConnectionHistory
  /** Devices that this worker can admit in a second. */
  readonly admitsPerS: () => number
  readonly flapping: AdmissionRulesOptions["flapping"]
  /** The gate or a ban was set. */
  readonly rulesChanged: () => void
  readonly tapes: TapesHooks
}

interface HeldNews {
  readonly to: WorkerProcess
  readonly type: "held_done" | "held_waits"
  readonly connections: string[]
}

export class Fleet {
  readonly locator: Locator
  readonly fleetQuery: FleetQuery
  readonly broadcasts: Broadcasts
  readonly presence: Presence
  readonly rules: AdmissionRules
  readonly keepers: Keepers
  readonly heldQuery: HeldQuery
  readonly tapes: Tapes
  readonly records: RecordsQuery
  readonly #members = new Members()
  readonly #locationCache = new LocationCache()
  readonly #channel: Channel
  readonly #directory: Directory
  readonly #keeper: Keeper
  readonly #keeperLookUps: KeeperLookUps
  readonly #registrar: Registrar
  readonly #connections: Connections
  readonly #options: FleetOptions
  #toldAliveAtMs = 0
  /** Whether the last `alive` message told of held commands. */
  #toldHeld = false
  #connectedAtMs = Number.NEGATIVE_INFINITY
  #purgedAtMs = 0
  #reviewIsDue = false
  /** The state of members and claims at the last review. */
  #reviewed = ""
  #leaving = false
  /** A message with the gate or bans was dropped, because the channel was full, or is lost. */
  #rulesDropped = false
  readonly #rulesSettled = (result: PublishResult): void => {
    if (result === "cut") this.#rulesDropped = true
  }
  /** What workers are to be told of held commands, by process and type. */
  readonly #heldNews = new Map<string, HeldNews>()
  /** Other numbers of shards that were told of; at most `MAX_SHARDS`. */
  readonly #toldShards = new Set<number>()
  /** The value of `fleetMessagesUnverified` at the last warning. */
  #toldUnverified = 0
  #toldUnverifiedAtMs = Number.NEGATIVE_INFINITY

  constructor(broker: Broker, connections: Connections, options: FleetOptions) {
    const { self, nowMs, steadyMs, counters, keys } = options
    this.#options = options
    this.#connections = connections
    const opened = () => {
      this.#keeper.opened()
      this.#registrar.opened()
      this.locator.opened()
    }
    this.#channel = new Channel(broker, opened, { self, steadyMs, nowMs, counters, keys })
    this.keepers = new Keepers(self, options.shards, this.#members)
    this.#directory = new Directory(options.shards)
    const schedule = new SendSchedule()
    this.#keeper = new Keeper(this.#channel, this.#members, this.#directory, {
      ...{
        schedule,
        self,
        steadyMs,
        hasHeld: (registration) => options.keeping.registered(registration),
      },
      own: (deviceId) => this.#own(deviceId),
      takenOver: (registration) => this.#takenOver(registration),
      connected: (deviceId, epoch) => this.rules.connectedElsewhere(deviceId, epoch),
    })
    this.#registrar = new Registrar(this.#channel, this.#members, this.keepers, this.#keeper, {
      ...{ schedule, steadyMs },
      isCurrent: ([deviceId, connectionId]) =>
        connections.named().get(deviceId)?.id === connectionId,
      devices: () => this.#registrations(),
      raised: (registration) => this.#raised(registration),
      answered: options.registrationAnswered,
    })
    this.#keeperLookUps = new KeeperLookUps(
      this.#channel,
      this.#members,
      this.keepers,
      this.#keeper,
      this.#locationCache,
      steadyMs,
    )
    this.locator = new Locator(
      this.#channel,
      this.#members,
      this.#locationCache,
      (deviceId, found) => this.#keeperLookUps.find(deviceId, found),
      { steadyMs, counters },
    )
    this.fleetQuery = new FleetQuery(
      self,
      this.#channel,
      this.#members,
      connections,
      this.locator,
      {
        nowMs,
        steadyMs,
        counters,
      },
    )
    this.heldQuery = new HeldQuery(self, this.#channel, this.#members, {
      ...{ steadyMs, keeping: options.keeping },
      keeperOf: (deviceId) => this.keeperOf(deviceId),
    })
    const { refusals, history } = options
    this.records = new RecordsQuery(self, this.#channel, this.#members, {
      ...{ refusals, history, connections, steadyMs, counters },
    })
    this.broadcasts = new Broadcasts(this.#channel, this.#members, connections, {
      ...{ self, steadyMs, counters },
    })
    this.tapes = new Tapes(this.#channel, this.#members, connections, {
      ...{ self, nowMs, steadyMs, ...options.tapes },
    })
    this.rules = new AdmissionRules({
      ...{ flapping: options.flapping, worker: self.worker, nowMs },
      broadcast: (content) => this.#channel.broadcast(content, this.#rulesSettled),
      banned: (deviceId, retryAfterMs, reason) =>
        connections.named().get(deviceId)?.close(reason, { retryAfterMs }),
      changed: options.rulesChanged,
    })
    const { worker: workerId } = self
    this.presence = new Presence(broker, { schedule, workerId, nowMs, steadyMs, counters })
  }

  /** Whether messages reach the other workers. */
  get isConnected(): boolean {
    return this.#channel.open
  }

  /** When the broker last confirmed a message to other workers. One is sent every two seconds. */
  get confirmedAtMs(): number {
    return this.#channel.confirmedAtMs
  }

  /** For operators. */
  view(): FleetView {
    return fleetView(this.#members, this.keepers, {
      connected: this.isConnected,
      held: this.#options.keeping.count,
      admitsPerS: this.#options.admitsPerS(),
    })
  }

  gauges(): {
    locationCache: number
    directory: number
    keptShards: number
    lookUps: number
    members: number
    presence: number
  } {
    return {
      locationCache: this.#locationCache.count,
      directory: this.#directory.count,
      keptShards: this.keepers.kept.size,
      lookUps: this.locator.pendingCount,
      members: this.#members.count,
      presence: this.presence.count,
    }
  }

  /**
   * True when the broker has confirmed all registrations and presence events of this worker, or is
   * not available.
   */
  get settled(): boolean {
    if (!this.#channel.open) return true
    const pending = this.#registrar.pendingCount + this.#keeper.pendingCount
    return pending === 0 && this.presence.count === 0
  }

  /** The epoch of the device's newest connection to another worker, if this worker knows it. */
  epochElsewhere(deviceId: string): number | undefined {
    const found = this.#directory.find(deviceId)
    return found?.registration[2] ?? this.#locationCache.epochOf(deviceId)
  }

  /** The process that keeps the device's shard, perhaps this one; null when none is known. */
  keeperOf(deviceId: string): WorkerProcess | null {
    return this.keepers.keeperOf(shardOf(deviceId, this.keepers.shards))
  }

  /** This worker's claim on the device's shard, which it keeps. */
  claimOf(deviceId: string): Claim {
    const shard = shardOf(deviceId, this.keepers.shards)
    if (this.keepers.claimants(shard).length === 0) return "only"
    return this.keepers.keeperOf(shard) === this.keepers.self ? "first" : "other"
  }

  /** The number of held commands that other workers keep, as far as they have told it. */
  get heldElsewhere(): number {
    return this.#members.held
  }

  /** Tells the worker of a connection that all held commands for it were written, or still wait. */
  tellHeld(connectionId: string, type: HeldNews["type"]): void {
    const to = processOfConnection(connectionId)
    if (to === null) return
    if (keyOf(to) === keyOf(this.#options.self)) {
      this.#heardHeld(connectionId, type)
      return
    }
    // After a keeper has read the held commands there may be one for each connection.
    if (this.#heldNews.size === 0) setImmediate(() => this.#tellHeldNews())
    const key = `${keyOf(to)} ${type}`
    const news = this.#heldNews.get(key)
    if (news === undefined) this.#heldNews.set(key, { to, type, connections: [connectionId] })
    else news.connections.push(connectionId)
  }

  /** Devices that the workers of other instances can admit in a second. */
  get othersAdmitPerS(): number {
    const instance = instanceOf(this.#options.self.worker)
    return this.#members.admitPerS((worker) => instanceOf(worker) === instance)
  }

  admitted(connection: Connection): void {
    const registration = registrationOf(connection)
    if (registration !== null) this.#registrar.come(registration)
    this.tapes.admitted(connection)
    this.presence.connected(connection)
  }

  /** Call this after the connection was removed from `connections`. */
  closed(connection: Connection, reason: CloseReason): void {
    const recipient = connection.endpoint?.recipient
    if (recipient === undefined) return
    const { deviceId, connectionId } = recipient
    const named = deviceId !== connectionId
    if (named && !this.#connections.named().has(deviceId)) {
      this.#registrar.gone(deviceId, connectionId)
    }
    this.presence.disconnected(connection, reason)
  }

  /**
   * Whether a worker is known, or may not have announced itself yet since the broker connection
   * returned.
   */
  mayServe(worker: string): boolean {
    const sinceMs = this.#options.steadyMs() - this.#connectedAtMs
    return sinceMs < REJOIN_MS || this.#members.isKnown(worker)
  }

  /** As `mayServe`, for one process of a worker. */
  mayLive(process: WorkerProcess): boolean {
    const sinceMs = this.#options.steadyMs() - this.#connectedAtMs
    const { self } = this.#options
    if (process.worker === self.worker) return process.incarnation === self.incarnation
    return sinceMs < REJOIN_MS || this.#members.has(process)
  }

  /** Handles a delivery from this worker's fleet queue. */
  deliver(delivery: Delivery): void {
    const message = this.#channel.read(delivery)
    if (message !== null) this.#heard(message)
  }

  /**
   * Call this periodically.
   * @param steadyMs monotonic, so that setting the system clock removes no member.
   */
  sweep(steadyMs: number): void {
    if (this.#channel.open) this.#members.sweep(steadyMs)
    this.#keeperLookUps.sweep()
    this.locator.sweep(steadyMs)
    this.fleetQuery.sweep()
    this.broadcasts.sweep(steadyMs)
    this.heldQuery.sweep()
    this.tapes.sweep(steadyMs)
    this.records.sweep()
    this.#tellUnverified(steadyMs)
    this.#reviewAndRegister()
    if (!this.#channel.open || this.#leaving) return
    if (steadyMs - this.#purgedAtMs >= PURGE_EVERY_MS) {
      this.#purgedAtMs = steadyMs
      this.#directory.purge((process) => !this.#members.has(process))
    }
    // The first command that is held is told at once, for the time after the end of this worker:
    // see `mayHold` of the members. At most once between two others.
    const isFirstHeld = this.#options.keeping.count > 0 && !this.#toldHeld
    if (isFirstHeld || steadyMs - this.#toldAliveAtMs >= this.#members.aliveEveryMs) {
      this.#tellAlive(steadyMs, false)
    }
    if (this.#rulesDropped && this.#channel.hasRoom) this.#broadcastRules()
  }

  /**
   * The broker accepts and delivers messages again, on both connections. Call it only then: answers
   * that other workers send before are lost, and so were their messages in the meantime.
   */
  connected(): void {
    const steadyMs = this.#options.steadyMs()
    this.#connectedAtMs = steadyMs
    this.#members.resumed(steadyMs)
    this.keepers.restart(this.#options.nowMs())
    this.#directory.restart()
    this.#tellAlive(steadyMs, true)
    this.#registrar.connected(steadyMs + ACQUAINT_MS + CLAIMS_MS)
    // Not at the next sweep: a device with two connections must not wait for it.
    for (const ms of [ACQUAINT_MS, ACQUAINT_MS + CLAIMS_MS]) {
      setTimeout(() => this.#reviewAndRegister(), ms)
    }
    // Set while the broker was away, or unknown to the workers that started meanwhile.
    this.#broadcastRules()
    this.tapes.connected()
    this.locator.connected()
  }

  /** The worker drains: it ends its broadcasts, and other workers stop waiting for its answers. */
  leave(): void {
    this.#leaving = true
    this.broadcasts.stop()
    this.tapes.leave()
    this.#review()
    this.#channel.broadcast({ type: "leaving" })
  }

  stop(): void {
    this.presence.stop()
  }

  #broadcastRules(): void {
    this.#rulesDropped = false
    for (const content of this.rules.all()) this.#channel.broadcast(content, this.#rulesSettled)
  }

  #tellHeldNews(): void {
    for (const { to, type, connections } of this.#heldNews.values()) {
      for (let from = 0; from < connections.length; from += MAX_ROWS) {
        this.#channel.tell(to, { type, connections: connections.slice(from, from + MAX_ROWS) })
      }
    }
    this.#heldNews.clear()
  }

  #heardHeld(connectionId: string, type: HeldNews["type"]): void {
    const connection = this.#connections.find(connectionId)
    if (type === "held_done") connection?.releaseHeldBack()
    else connection?.heldAnswered(true)
  }

  #tellUnverified(steadyMs: number): void {
    const { fleetMessagesUnverified: count } = this.#options.counters
    if (count === this.#toldUnverified) return
    if (steadyMs - this.#toldUnverifiedAtMs < TELL_UNVERIFIED_EVERY_MS) return
    this.#options.warn(
      `${count - this.#toldUnverified} message(s) to this worker's fleet queue do not verify and were dropped: ` +
        "another instance has a different FLEET_SECRET or runs an earlier version, or a broker user outside the fleet sent them",
    )
    this.#toldUnverified = count
    this.#toldUnverifiedAtMs = steadyMs
  }

  #tellAlive(steadyMs: number, asks: boolean): void {
    this.#toldAliveAtMs = steadyMs
    this.#toldHeld = this.#options.keeping.count > 0
    this.#channel.broadcast(this.#alive(asks))
  }

  #alive(asks: boolean) {
    const { shards, ...claim } = this.keepers.claim
    const keeps = { ...claim, shards: [...shards] }
    const { admitsPerS, keeping, nowMs, settings } = this.#options
    const held = keeping.count
    const rate = admitsPerS()
    const told = { sent_at: nowMs(), admits_per_s: rate, held, keeps, settings }
    return { type: "alive", asks, ...told } as const
  }

  /** Many workers may tell their claims at the same time. */
  #reviewSoon(): void {
    if (this.#reviewIsDue) return
    this.#reviewIsDue = true
    setTimeout(() => {
      this.#reviewIsDue = false
      this.#reviewAndRegister()
    }, REVIEW_AFTER_MS)
  }

  #reviewAndRegister(): void {
    if (!this.#channel.open) return
    this.#review()
    this.#registrar.sweep()
  }

  /** Decides again which shards this worker keeps, after a member or a claim has changed. */
  #review(): void {
    const steadyMs = this.#options.steadyMs()
    const isNew = steadyMs < this.#connectedAtMs + ACQUAINT_MS
    const state = this.#leaving ? "leaving" : isNew ? "new" : "serving"
    const reviewed = `${this.#members.changes} ${this.keepers.changes} ${state}`
    if (reviewed === this.#reviewed) return
    this.#reviewed = reviewed
    const { gained, lost } = this.keepers.review(state)
    for (const shard of lost) {
      this.#directory.lose(shard)
      this.#options.keeping.lost(shard)
    }
    for (const shard of gained) {
      this.#directory.gain(shard)
      this.#options.keeping.gained(shard)
    }
    if (gained.length === 0) return
    this.#tellAlive(steadyMs, false)
    this.#registrar.gained(gained)
  }

  #compareShards(worker: string, theirs: number): void {
    const { shards, warn } = this.#options
    if (theirs === shards || this.#toldShards.has(theirs)) return
    this.#toldShards.add(theirs)
    warn(
      `FLEET_SHARDS is ${shards} here and ${theirs} on worker ${worker}: ` +
        "they do not find each other's held commands, so set the same on all instances",
    )
  }

  #heard(message: FleetMessage): void {
    const { from, incarnation } = message
    if (message.type === "leaving") {
      this.#members.left(from, incarnation)
      return
    }
    this.#members.heard(from, incarnation, this.#options.steadyMs())
    switch (message.type) {
      case "alive":
        this.#members.admits(from, incarnation, message.admits_per_s ?? 0)
        if (message.keeps !== undefined) this.#compareShards(from, message.keeps.of)
        if (this.keepers.heard({ worker: from, incarnation }, message.keeps)) this.#reviewSoon()
        this.#members.holds(from, incarnation, message.held ?? 0)
        if (message.asks && !this.#leaving) {
          const to = { worker: from, incarnation }
          this.#channel.tell(to, this.#alive(false))
          for (const content of this.rules.all()) {
            this.#channel.tell(to, content, this.#rulesSettled)
          }
          this.tapes.tell(to)
          this.locator.rejoined(to)
        }
        break
      case "devices":
        this.#devices(message)
        break
      case "kept":
        this.#registrar.kept(message)
        break
      case "newer":
        for (const registration of message.devices) this.#takenOver(registration)
        break
      case "find": {
        const found = this.#keeper.find(message.devices)
        const to = { worker: from, incarnation }
        this.#channel.tell(to, { type: "found", ask: message.ask, ...found })
        break
      }
      case "found":
        this.#keeperLookUps.answered(message)
        break
      case "gate":
      case "bans":
        this.rules.heard(message)
        break
      case "where":
        this.#where(message)
        break
      case "there":
        this.locator.answered(message)
        break
      case "list":
      case "describe":
      case "kick":
        this.fleetQuery.asked(message)
        break
      case "held_done":
      case "held_waits":
        for (const id of message.connections) this.#heardHeld(id, message.type)
        break
      case "held_list":
      case "held_cancel":
        this.heldQuery.asked(message)
        break
      case "held_listed":
      case "held_cancelled":
        this.heldQuery.answered(message)
        break
      case "tapes":
      case "tape_entries":
      case "tape_read":
      case "tape_stop":
        this.tapes.heard(message)
        break
      case "tapes_told":
      case "tape_part":
      case "tape_stopped":
        this.tapes.answered(message)
        break
      case "refusals_list":
      case "connections_list":
        this.records.asked(message)
        break
      case "refusals_listed":
      case "connections_listed":
        this.records.answered(message)
        break
      case "listed":
      case "described":
      case "kicked":
        this.fleetQuery.answered(message)
        break
      case "broadcast":
      case "broadcast_matched":
      case "broadcast_go":
      case "broadcast_report":
      case "broadcast_end":
        this.broadcasts.heard(message)
        break
    }
  }

  /** Handles what another worker registers here as their keeper, or tells all workers. */
  #devices(message: Extract<FleetMessage, { type: "devices" }>): void {
    this.#keeper.heard(message)
    if (message.n !== undefined) return
    const { from, incarnation, here, gone } = message
    for (const deregistration of gone) this.#locationCache.gone(deregistration)
    const newer: Registration[] = []
    for (const registration of here) {
      const [deviceId, connectionId, epoch] = registration
      const own = this.#own(deviceId)?.registration
      if (own === undefined) this.#locationCache.moved(registration, this.#options.steadyMs())
      else if (isNewer(epoch, connectionId, own[2], own[1])) this.#takenOver(registration)
      else newer.push(own)
    }
    if (newer.length === 0) return
    this.#channel.tell({ worker: from, incarnation }, { type: "devices", here: newer, gone: [] })
  }

  /** Another worker has a connection of the device. If it is newer, this worker's ends. */
  #takenOver(registration: Registration): void {
    const [deviceId, connectionId, epoch] = registration
    const own = this.#connections.named().get(deviceId)
    const recipient = own?.endpoint?.recipient
    if (own === undefined || recipient === undefined) return
    if (!isNewer(epoch, connectionId, recipient.epoch, recipient.connectionId)) {
      // The keeper does not know this connection yet.
      this.#registrar.again([deviceId, recipient.connectionId, recipient.epoch])
      return
    }
    this.#locationCache.add(registration, this.#options.steadyMs())
    own.close("taken_over")
  }

  /** The keeper has given this worker's connection a larger epoch. */
  #raised([deviceId, connectionId, epoch]: Registration): void {
    const own = this.#connections.named().get(deviceId)
    if (own === undefined || own.id !== connectionId) return
    own.endpoint?.raiseEpoch(epoch)
    this.presence.connected(own)
    this.#registrar.again([deviceId, connectionId, epoch])
  }

  #own(deviceId: string): Found | undefined {
    const connection = this.#connections.named().get(deviceId)
    const registration = connection && registrationOf(connection)
    if (!registration) return undefined
    const { steadyMs, nowMs } = this.#options
    return { registration, atMs: steadyMs() - (nowMs() - registration[2]) }
  }

  *#registrations(): Generator<Registration> {
    for (const connection of this.#connections.named().values()) {
      const registration = registrationOf(connection)
      if (registration !== null) yield registration
    }
  }

  /** Answers which of the devices in a look-up are connected to this worker. */
  #where({ from, incarnation, ask, devices }: Extract<FleetMessage, { type: "where" }>): void {
    const named = this.#connections.named()
    const here = devices.flatMap((deviceId) => {
      const recipient = named.get(deviceId)?.endpoint?.recipient
      if (recipient === undefined) return []
      return [[deviceId, recipient.connectionId, recipient.epoch] as const]
    })
    this.#channel.tell({ worker: from, incarnation }, { type: "there", ask, devices: here })
  }
}

/** Null when the device id is the connection id, which contains the worker. */
function registrationOf(connection: Connection): Registration | null {
  const recipient = connection.endpoint?.recipient
  if (recipient === undefined || recipient.deviceId === recipient.connectionId) return null
  return [recipient.deviceId, recipient.connectionId, recipient.epoch]
}
