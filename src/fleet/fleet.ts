/**
 * A worker's membership in the fleet. The fleet is all workers of all instances on one broker. This
 * class composes the members, the announcer, the locator, the fleet query and presence.
 *
 *   admitted, closed ─► announcer, presence ─► broker
 *   fleet queue ─► channel ─► members, announcer, locator, fleet query
 *
 * No worker stores the location of all devices. Each worker knows its own devices, caches the
 * announced locations of others, and asks the fleet when the cache has no answer. Bounds: those of
 * its parts.
 */

import type { Broker, Delivery } from "../broker/broker.ts"
import type { Counters } from "../counters.ts"
import type { CloseReason } from "../device/close-reason.ts"
import type { Connection } from "../device/connection.ts"
import type { Connections } from "../device/connections.ts"
import type { WorkerProcess } from "../device/ids.ts"
import { AdmissionRules, type AdmissionRulesOptions } from "./admission-rules.ts"
import { Announcer } from "./announcer.ts"
import { Channel } from "./channel.ts"
import { instanceOf } from "./device-view.ts"
import type { FleetKeys } from "./fleet-keys.ts"
import { FleetQuery } from "./fleet-query.ts"
import { LocationCache } from "./location-cache.ts"
import { Locator } from "./locator.ts"
import { ALIVE_EVERY_MS, Members, REJOIN_MS } from "./members.ts"
import type { FleetMessage } from "./messages.ts"
import { Presence } from "./presence.ts"

const TELL_UNVERIFIED_EVERY_MS = 60_000

export interface FleetOptions {
  readonly self: WorkerProcess
  readonly nowMs: () => number
  /** Milliseconds of a monotonic clock. */
  readonly steadyMs: () => number
  readonly counters: Counters
  readonly keys: FleetKeys
  readonly warn: (message: string) => void
  /** Devices that this worker can admit in a second. */
  readonly admitsPerS: () => number
  readonly flapping: AdmissionRulesOptions["flapping"]
  /** The gate or a ban was set. */
  readonly rulesChanged: () => void
}

export class Fleet {
  readonly locator: Locator
  readonly fleetQuery: FleetQuery
  readonly presence: Presence
  readonly rules: AdmissionRules
  readonly #members = new Members()
  readonly #locationCache = new LocationCache()
  readonly #channel: Channel
  readonly #announcer: Announcer
  readonly #connections: Connections
  readonly #options: FleetOptions
  #toldAliveAtMs = 0
  #connectedAtMs = Number.NEGATIVE_INFINITY
  #leaving = false
  /** The value of `fleetMessagesUnverified` at the last warning. */
  #toldUnverified = 0
  #toldUnverifiedAtMs = Number.NEGATIVE_INFINITY

  constructor(broker: Broker, connections: Connections, options: FleetOptions) {
    const { self, nowMs, steadyMs, counters, keys } = options
    this.#options = options
    this.#connections = connections
    const opened = () => this.locator.opened()
    this.#channel = new Channel(broker, opened, { self, steadyMs, nowMs, counters, keys })
    this.#announcer = new Announcer(this.#channel, connections, this.#locationCache)
    this.locator = new Locator(this.#channel, this.#members, this.#locationCache, {
      steadyMs,
      counters,
    })
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
    this.rules = new AdmissionRules({
      ...{ flapping: options.flapping, worker: self.worker, nowMs },
      broadcast: (content) => this.#channel.broadcast(content),
      changed: options.rulesChanged,
    })
    this.presence = new Presence(broker, { workerId: self.worker, nowMs, steadyMs, counters })
  }

  /** Whether messages reach the other workers. */
  get isConnected(): boolean {
    return this.#channel.open
  }

  /** When the broker last confirmed a message to other workers. One is sent every two seconds. */
  get confirmedAtMs(): number {
    return this.#channel.confirmedAtMs
  }

  gauges(): { locationCache: number; lookUps: number; members: number; presence: number } {
    return {
      locationCache: this.#locationCache.count,
      lookUps: this.locator.pendingCount,
      members: this.#members.count,
      presence: this.presence.count,
    }
  }

  /**
   * True when the broker has confirmed all announcements and presence events of this worker, or is
   * not available.
   */
  get settled(): boolean {
    if (!this.#channel.open) return true
    return this.#announcer.pendingCount === 0 && this.presence.count === 0
  }

  /** The epoch of the device's newest connection that other workers have announced. */
  epochElsewhere(deviceId: string): number | undefined {
    return this.#locationCache.epochOf(deviceId)
  }

  /** Devices that the workers of other instances can admit in a second. */
  get othersAdmitPerS(): number {
    const instance = instanceOf(this.#options.self.worker)
    return this.#members.admitPerS((worker) => instanceOf(worker) === instance)
  }

  admitted(connection: Connection): void {
    this.#announcer.come(connection)
    this.presence.connected(connection)
  }

  /** Call this after the connection was removed from `connections`. */
  closed(connection: Connection, reason: CloseReason): void {
    const recipient = connection.endpoint?.recipient
    if (recipient === undefined) return
    const { deviceId, connectionId } = recipient
    const named = deviceId !== connectionId
    if (named && !this.#connections.named().has(deviceId)) {
      this.#announcer.gone(deviceId, connectionId)
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
    this.locator.sweep(steadyMs)
    this.fleetQuery.sweep()
    this.#tellUnverified(steadyMs)
    if (!this.#channel.open || this.#leaving) return
    this.#announcer.sweep(steadyMs)
    if (steadyMs - this.#toldAliveAtMs >= ALIVE_EVERY_MS) this.#tellAlive(steadyMs, false)
  }

  /**
   * The broker accepts and delivers messages again, on both connections. Call it only then: answers
   * that other workers send before are lost, and so were their messages in the meantime.
   */
  connected(): void {
    const steadyMs = this.#options.steadyMs()
    this.#connectedAtMs = steadyMs
    this.#members.resumed(steadyMs)
    this.#tellAlive(steadyMs, true)
    this.#announcer.announceAll(steadyMs)
    // Set while the broker was away, or unknown to the workers that started meanwhile.
    for (const content of this.rules.all()) this.#channel.broadcast(content)
    this.locator.opened()
  }

  /** The worker drains: other workers stop waiting for its answers. */
  leave(): void {
    this.#leaving = true
    this.#channel.broadcast({ type: "leaving" })
  }

  stop(): void {
    this.presence.stop()
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
    this.#channel.broadcast(this.#alive(asks))
  }

  #alive(asks: boolean) {
    return { type: "alive", asks, admits_per_s: this.#options.admitsPerS() } as const
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
        if (message.asks && !this.#leaving) {
          const to = { worker: from, incarnation }
          this.#channel.tell(to, this.#alive(false))
          for (const content of this.rules.all()) this.#channel.tell(to, content)
        }
        break
      case "devices":
        for (const [deviceId, , epoch] of message.here) {
          this.rules.connectedElsewhere(deviceId, epoch)
        }
        this.#announcer.heard(message)
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
      case "listed":
      case "described":
      case "kicked":
        this.fleetQuery.answered(message)
        break
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
