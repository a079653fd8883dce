/**
 * The connections of one worker, by connection id and by device id, and the sweep that enforces
 * their deadlines. One timer serves all connections.
 *
 * Bound: `MAX_CONNECTIONS`, enforced by admission. A connection is removed when its socket has
 * closed, so closing connections count.
 */

import type { Connection } from "./connection.ts"
import type { Denylist } from "./denylist.ts"

export const SWEEP_EVERY_MS = 250
/**
 * A process whose sweep is late by this was stopped. Messages that arrived in the meantime may
 * still be unread.
 */
export const PAUSED_MS = 2_000
/** Idle and write time-outs are long, so the sweep over all connections runs less often. */
const SWEEP_ALL_EVERY_MS = 1_000

export interface Timeouts {
  readonly handshakeTimeoutMs: number
  readonly identifyTimeoutMs: number
  readonly idleTimeoutMs: number
}

export class Connections {
  readonly #deadlines: Timeouts
  readonly #all = new Map<string, Connection>()
  /** The newest open connection of each device whose device id is not its connection id. */
  readonly #named = new Map<string, Connection>()
  /** Connections with commands in their reorder buffers. */
  readonly #waiting = new Set<Connection>()
  /** Connections with written commands that wait for replies. */
  readonly #replying = new Set<Connection>()
  /** Connections that are not read because of their rate. */
  readonly #atRate = new Set<Connection>()
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
    this.#replying.delete(connection)
    this.#atRate.delete(connection)
    this.leave(connection)
  }

  /**
   * Registers an admitted connection under its device id. Returns the device's previous connection,
   * if any.
   */
  enter(connection: Connection): Connection | undefined {
    const deviceId = nameOf(connection)
    if (deviceId === null) return undefined
    const before = this.#named.get(deviceId)
    this.#named.set(deviceId, connection)
    return before === connection ? undefined : before
  }

  /** The connection has begun to close: its device id no longer finds it. */
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
   * The epoch of a device's new connection. It is the time, but larger than the epoch of the
   * device's connection on this worker and than the known one on another worker, whose clock may be
   * ahead.
   */
  nextEpoch(deviceId: string, nowMs: number, elsewhere: number | undefined): number {
    const here = this.#named.get(deviceId)?.endpoint?.recipient.epoch
    return Math.max(nowMs, (here ?? 0) + 1, (elsewhere ?? 0) + 1)
  }

  /** The open connections by device id, without those whose device id is their connection id. */
  named(): ReadonlyMap<string, Connection> {
    return this.#named
  }

  commandsWait(connection: Connection): void {
    this.#waiting.add(connection)
  }

  repliesWait(connection: Connection): void {
    this.#replying.add(connection)
  }

  rateReached(connection: Connection): void {
    this.#atRate.add(connection)
  }

  forEach(visit: (connection: Connection) => void): void {
    for (const connection of this.#all.values()) visit(connection)
  }

  /**
   * All connections in order of arrival. Includes connections that are added during the iteration.
   */
  values(): MapIterator<Connection> {
    return this.#all.values()
  }

  /** Closes connections that were admitted before their device or certificate was denied. */
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
   * Call this every `SWEEP_EVERY_MS`.
   * @param nowMs milliseconds since 1970, for gaps in the numbers of commands and expirations.
   * @param steadyMs milliseconds of a monotonic clock, so that setting the system clock closes no
   * device.
   */
  sweep(nowMs: number, steadyMs: number): void {
    for (const connection of this.#waiting) {
      if (!connection.sweepCommands(nowMs)) this.#waiting.delete(connection)
    }
    for (const connection of this.#replying) {
      if (!connection.sweepReplies(nowMs, steadyMs)) this.#replying.delete(connection)
    }
    for (const connection of this.#atRate) {
      if (!connection.sweepRate(steadyMs)) this.#atRate.delete(connection)
    }
    if (steadyMs < this.#nextSweepOfAllMs) return
    this.#nextSweepOfAllMs = steadyMs + SWEEP_ALL_EVERY_MS
    for (const connection of this.#all.values()) connection.sweep(steadyMs, this.#deadlines)
  }
}

/** The device id of an admitted connection, or null when it is the connection id. */
function nameOf(connection: Connection): string | null {
  const recipient = connection.endpoint?.recipient
  return recipient === undefined || recipient.deviceId === connection.id ? null : recipient.deviceId
}
