/**
 * The connections that one worker holds, by connection id and by device id, and the sweep that enforces
 * their deadlines: one timer for all, none per connection.
 *
 * Never decides anything itself. Bound: `MAX_CONNECTIONS`, kept by admission; a connection leaves when
 * its socket is gone, so those that are closing still count.
 */

import type { CloseReason } from "./close-reason.ts"
import type { Connection } from "./connection.ts"
import type { Denylist } from "./denylist.ts"

export const SWEEP_EVERY_MS = 250
/** Of a process that did not sweep for so long the answers of others may wait unread. */
export const PAUSED_MS = 2_000
/** Idle and write time-outs are long; their sweep over all connections runs less often. */
const SWEEP_ALL_EVERY_MS = 1_000

export interface Timeouts {
  readonly handshakeTimeoutMs: number
  readonly identifyTimeoutMs: number
  readonly idleTimeoutMs: number
}

export class Connections {
  readonly #deadlines: Timeouts
  readonly #all = new Map<string, Connection>()
  /** The newest open connection of each device that has a name of its own. */
  readonly #named = new Map<string, Connection>()
  /** Commands wait in their reorder buffers. */
  readonly #waiting = new Set<Connection>()
  #nextSweepOfAllMs = 0

  constructor(deadlines: Timeouts) {
    this.#deadlines = deadlines
  }

  get count(): number {
    return this.#all.size
  }

  add(connection: Connection): void {
    this.#all.set(connection.id, connection)
  }

  remove(connection: Connection): void {
    this.#all.delete(connection.id)
    this.#waiting.delete(connection)
    this.leave(connection)
  }

  /** Enters an admitted connection under its device's name; returns the one that had it, if any. */
  enter(connection: Connection): Connection | undefined {
    const deviceId = nameOf(connection)
    if (deviceId === null) return undefined
    const before = this.#named.get(deviceId)
    this.#named.set(deviceId, connection)
    return before === connection ? undefined : before
  }

  /** The connection has begun to close: its device's name no longer leads to it. */
  leave(connection: Connection): void {
    const deviceId = nameOf(connection)
    if (deviceId === null || this.#named.get(deviceId) !== connection) return
    this.#named.delete(deviceId)
  }

  /** The open connection with this connection or device id. */
  find(id: string): Connection | undefined {
    const connection = this.#all.get(id) ?? this.#named.get(id)
    return connection?.state === "open" ? connection : undefined
  }

  /**
   * An epoch for a new connection of a device: larger than that of the one it has here, and than the one it is known
   * to have elsewhere, by a clock that may be ahead.
   */
  nextEpoch(deviceId: string, nowMs: number, elsewhere: number | undefined): number {
    const here = this.#named.get(deviceId)?.endpoint?.recipient.epoch
    return Math.max(nowMs, (here ?? 0) + 1, (elsewhere ?? 0) + 1)
  }

  /** The open connections of devices that have a name. */
  named(): ReadonlyMap<string, Connection> {
    return this.#named
  }

  commandsWait(connection: Connection): void {
    this.#waiting.add(connection)
  }

  forEach(visit: (connection: Connection) => void): void {
    for (const connection of this.#all.values()) visit(connection)
  }

  /** All in the order in which they came; one that is added later is given too. */
  values(): MapIterator<Connection> {
    return this.#all.values()
  }

  /** Begins to close up to `most` open connections; returns how many are left. */
  closeSome(most: number, reason: CloseReason): number {
    let closed = 0
    let left = 0
    for (const connection of this.#all.values()) {
      if (connection.state !== "open") continue
      if (closed === most) left += 1
      else {
        connection.close(reason)
        closed += 1
      }
    }
    return left
  }

  /** Closes those that were admitted before they were denied. */
  closeDenied(denylist: Denylist): void {
    for (const connection of this.#all.values()) {
      const recipient = connection.endpoint?.recipient
      if (recipient === undefined) continue
      const { fingerprint } = connection.peer
      if (denylist.denies(recipient.deviceId, fingerprint)) connection.close("denied")
    }
  }

  heldCommands(): number {
    let held = 0
    for (const connection of this.#waiting) held += connection.endpoint?.heldCommands ?? 0
    return held
  }

  /**
   * To be called every `SWEEP_EVERY_MS`.
   * @param nowMs since 1970, as commands expire.
   * @param steadyMs never jumps: a clock that is set must not close a device.
   */
  sweep(nowMs: number, steadyMs: number): void {
    for (const connection of this.#waiting) {
      if (!connection.sweepCommands(nowMs)) this.#waiting.delete(connection)
    }
    if (steadyMs < this.#nextSweepOfAllMs) return
    this.#nextSweepOfAllMs = steadyMs + SWEEP_ALL_EVERY_MS
    for (const connection of this.#all.values()) connection.sweep(steadyMs, this.#deadlines)
  }
}

/** The device id of an admitted connection, or null when that is just its connection id. */
function nameOf(connection: Connection): string | null {
  const recipient = connection.endpoint?.recipient
  return recipient === undefined || recipient.deviceId === connection.id ? null : recipient.deviceId
}
