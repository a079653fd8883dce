/**
 * The announcer: broadcasts which named devices have connected to this worker and which have
 * disconnected, and handles the announcements of other workers. When a device has two connections,
 * the newer one stays: a worker that learns of a newer connection closes its own (`taken_over`),
 * and a worker that learns of an older one answers with its own.
 *
 *   come, gone ─► latest change of each device ─► one message at a time ─► owsla.fleet
 *
 * Changes are gathered while a message is unconfirmed, and for at least `GATHER_MS`. Each message
 * costs time on each worker of the fleet, so a storm of reconnections needs few messages. A lost
 * message is compensated: all devices are announced again when the broker connection returns, and
 * every `REANNOUNCE_MS`. Bound: one change for each device, `MAX_ROWS` in each message.
 */

import type { Connection } from "../device/connection.ts"
import type { Connections } from "../device/connections.ts"
import type { Channel } from "./channel.ts"
import type { LocationCache } from "./location-cache.ts"
import { type FleetMessage, MAX_ROWS } from "./messages.ts"
import { type Deregistration, isNewer, type Registration } from "./registration.ts"

const REANNOUNCE_MS = 300_000
/**
 * A first change is announced at once. Changes within this time after it are gathered into the next
 * message.
 */
const GATHER_MS = 20

type Devices = Extract<FleetMessage, { type: "devices" }>

export class Announcer {
  readonly #channel: Channel
  readonly #connections: Connections
  readonly #locationCache: LocationCache
  /** The latest change by device id: its connection now, or its connection that has closed. */
  readonly #changes = new Map<string, Registration | Deregistration>()
  #sending: "nothing" | "soon" | "message" = "nothing"
  #announcedAllAtMs = 0

  constructor(channel: Channel, connections: Connections, locationCache: LocationCache) {
    this.#channel = channel
    this.#connections = connections
    this.#locationCache = locationCache
  }

  /** Changes that are not announced yet. */
  get pendingCount(): number {
    return this.#changes.size
  }

  /** A device was admitted. Has no effect for a device whose device id is its connection id. */
  come(connection: Connection): void {
    const registration = registrationOf(connection)
    if (registration === null) return
    this.#changes.set(registration[0], registration)
    this.#sendSoon()
  }

  /**
   * A named device has no connection on this worker any more. Do not call it for a connection that
   * was taken over.
   */
  gone(deviceId: string, connectionId: string): void {
    this.#changes.set(deviceId, [deviceId, connectionId])
    this.#sendSoon()
  }

  /** Announces all devices, because other workers may have missed or lost earlier announcements. */
  announceAll(steadyMs: number): void {
    this.#announcedAllAtMs = steadyMs
    for (const [deviceId, connection] of this.#connections.named()) {
      const registration = registrationOf(connection)
      if (registration !== null) this.#changes.set(deviceId, registration)
    }
    this.#sendSoon()
  }

  sweep(steadyMs: number): void {
    if (steadyMs - this.#announcedAllAtMs >= REANNOUNCE_MS) this.announceAll(steadyMs)
  }

  /** Handles the announcement of another worker. */
  heard({ from, incarnation, here, gone }: Devices): void {
    for (const deregistration of gone) this.#locationCache.gone(deregistration)
    const newer: Registration[] = []
    for (const registration of here) {
      const [deviceId, connectionId, epoch] = registration
      const own = this.#connections.named().get(deviceId)
      const recipient = own?.endpoint?.recipient
      if (own === undefined || recipient === undefined) {
        this.#locationCache.here(registration)
      } else if (isNewer(epoch, connectionId, recipient.epoch, recipient.connectionId)) {
        this.#locationCache.here(registration)
        own.close("taken_over")
      } else newer.push([deviceId, recipient.connectionId, recipient.epoch])
    }
    if (newer.length === 0) return
    this.#channel.tell({ worker: from, incarnation }, { type: "devices", here: newer, gone: [] })
  }

  #sendSoon(): void {
    if (this.#sending !== "nothing" || this.#changes.size === 0) return
    this.#sending = "soon"
    setImmediate(() => this.#send())
  }

  #send(): void {
    this.#sending = "nothing"
    if (!this.#channel.open) {
      // When the channel opens again, all devices of this worker are announced.
      this.#changes.clear()
      return
    }
    const here: Registration[] = []
    const gone: Deregistration[] = []
    for (const [deviceId, change] of this.#changes) {
      if (here.length + gone.length === MAX_ROWS) break
      this.#changes.delete(deviceId)
      if (change.length === 3) here.push(change)
      else gone.push(change)
    }
    if (here.length + gone.length === 0) return
    this.#sending = "message"
    let confirmed = false
    let gathered = false
    const next = () => {
      if (!confirmed || !gathered) return
      this.#sending = "nothing"
      this.#sendSoon()
    }
    this.#channel.broadcast({ type: "devices", here, gone }, () => {
      confirmed = true
      next()
    })
    setTimeout(() => {
      gathered = true
      next()
    }, GATHER_MS)
  }
}

/** Null when the device id is the connection id, which contains the worker. */
function registrationOf(connection: Connection): Registration | null {
  const recipient = connection.endpoint?.recipient
  if (recipient === undefined || recipient.deviceId === recipient.connectionId) return null
  return [recipient.deviceId, recipient.connectionId, recipient.epoch]
}
