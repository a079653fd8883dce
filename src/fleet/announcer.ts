/**
 * The announcer: tells the fleet which named devices have come to this worker and which have gone, and
 * hears the same of others. Of two connections of one device the newer stays: whoever hears of a newer
 * one closes its own (`taken_over`), whoever hears of an older one answers with its own.
 *
 *   come, gone ─► changes, the latest of each device ─► one message at a time ─► owsla.fleet
 *
 * While a message is on its way, and for `GATHER_MS` at least, the next one fills: what each costs every worker
 * of the fleet is shared by the devices in it, and a storm of reconnections costs few of them.
 * Lost messages are made good: every device is announced again when the broker is back, and every
 * `REANNOUNCE_MS`. Bound: one change for each device, `MAX_ROWS` a message.
 */

import type { Connection } from "../device/connection.ts"
import type { Connections } from "../device/connections.ts"
import type { Channel } from "./channel.ts"
import type { LocationCache } from "./location-cache.ts"
import { type FleetMessage, MAX_ROWS } from "./messages.ts"
import { type Deregistration, isNewer, type Registration } from "./registration.ts"

const REANNOUNCE_MS = 300_000
/** A first change is announced at once; those within this time after it wait for its end. */
const GATHER_MS = 20

type Devices = Extract<FleetMessage, { type: "devices" }>

export class Announcer {
  readonly #channel: Channel
  readonly #connections: Connections
  readonly #locationCache: LocationCache
  /** By device id: the connection it has now, or null with the one that has closed. */
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

  /** A named device has been admitted. */
  come(connection: Connection): void {
    const registration = registrationOf(connection)
    if (registration === null) return
    this.#changes.set(registration[0], registration)
    this.#sendSoon()
  }

  /** A connection of a named device has closed; not for one that a newer one here has replaced. */
  gone(deviceId: string, connectionId: string): void {
    this.#changes.set(deviceId, [deviceId, connectionId])
    this.#sendSoon()
  }

  /** Announces every device: others may have missed, or lost, what was said before. */
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

  /** Takes what another worker announces. */
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
      // When it opens again all that are here then are announced.
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

/** Null for a device without a name, whose connection id leads to its worker by itself. */
function registrationOf(connection: Connection): Registration | null {
  const recipient = connection.endpoint?.recipient
  if (recipient === undefined || recipient.deviceId === recipient.connectionId) return null
  return [recipient.deviceId, recipient.connectionId, recipient.epoch]
}
