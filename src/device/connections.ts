/**
 * The connections that one worker holds, by connection id, and the sweep that enforces their
 * deadlines: one timer for all, none per connection.
 *
 * Never decides anything itself. Bound: `MAX_CONNECTIONS`, kept by admission; a connection leaves when
 * its socket is gone, so those that are closing still count.
 */

import type { Connection } from "./connection.ts"

export const SWEEP_EVERY_MS = 250
/** Idle and write time-outs are long; their sweep over all connections runs less often. */
const SWEEP_ALL_EVERY_MS = 1_000

export interface Deadlines {
  readonly handshakeTimeoutMs: number
  readonly idleTimeoutMs: number
}

export class Connections {
  readonly #deadlines: Deadlines
  readonly #all = new Map<string, Connection>()
  /** Commands wait in their reorder buffers. */
  readonly #waiting = new Set<Connection>()
  #nextSweepOfAllMs = 0

  constructor(deadlines: Deadlines) {
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
  }

  /** The open connection with this id. */
  find(connectionId: string): Connection | undefined {
    const connection = this.#all.get(connectionId)
    return connection?.state === "open" ? connection : undefined
  }

  commandsWait(connection: Connection): void {
    this.#waiting.add(connection)
  }

  forEach(visit: (connection: Connection) => void): void {
    for (const connection of this.#all.values()) visit(connection)
  }

  heldCommands(): number {
    let held = 0
    for (const connection of this.#waiting) held += connection.endpoint?.heldCommands ?? 0
    return held
  }

  /** To be called every `SWEEP_EVERY_MS`. */
  sweep(nowMs: number): void {
    for (const connection of this.#waiting) {
      if (!connection.sweepCommands(nowMs)) this.#waiting.delete(connection)
    }
    // Further away than one period, the clock was set back.
    const leftMs = this.#nextSweepOfAllMs - nowMs
    if (leftMs > 0 && leftMs <= SWEEP_ALL_EVERY_MS) return
    this.#nextSweepOfAllMs = nowMs + SWEEP_ALL_EVERY_MS
    const { handshakeTimeoutMs, idleTimeoutMs } = this.#deadlines
    for (const connection of this.#all.values()) {
      connection.sweep(nowMs, handshakeTimeoutMs, idleTimeoutMs)
    }
  }
}
