/**
 * Connections from acceptance to admission: refuses them, starts their handshakes, detects stalled
 * ones, and replaces the oldest one when the worker is full.
 *
 *   accept ─┬─ refused, also by the limits of its address
 *           ├─ waiting ──next──┐
 *           └──────────────────┴─► handshake ─┬─ completed ─► admitted, or ended
 *                                             └─ stalled: no longer counted, may still complete
 *
 * `admission.ts` and `address-limits.ts` decide, `handshake-queue.ts` keeps the order, and the
 * hooks close sockets. Bounds: those of `admission.ts` and `address-limits.ts`.
 */

import { ByAge } from "../structures/by-age.ts"
import type { AddressLimits } from "./address-limits.ts"
import { Admission, type AdmissionDecision, type AdmissionLimits } from "./admission.ts"
import type { CloseReason } from "./close-reason.ts"
import type { Connection } from "./connection.ts"
import { HandshakeQueue, type PausableSocket, type QueuedHandshake } from "./handshake-queue.ts"

const AT_LIMIT = "MAX_CONNECTIONS_PER_ADDRESS or MAX_HANDSHAKES_PER_ADDRESS_PER_S is reached"

/** Handshake queue status, as reported by `/health`. */
export interface AdmissionReport {
  readonly waiting: number
  readonly handshakes_in_progress: number
  readonly handshake_limit: number
  readonly handshakes_per_s: number
  /**
   * Until the last waiting connection has completed its handshake; null while the rate is unknown.
   */
  readonly estimated_wait_ms: number | null
}

export interface HandshakesOptions<S extends PausableSocket> {
  readonly limits: AdmissionLimits
  /** Null when addresses are not limited. */
  readonly addressLimits: AddressLimits | null
  readonly steadyMs: () => number
  /** All connections of the worker, including closing ones. */
  readonly connectionCount: () => number
  /** Whether the event loop needs more than half of a core. */
  readonly isBusy: () => boolean
  /** Whether the gate is closed for all devices, and refused devices are not told so. */
  readonly isShut: () => boolean
  /** While false, handshakes wait. */
  readonly mayBegin: () => boolean
  /** Whether reading from all devices is suspended because `MAX_HELD_BYTES` is reached. */
  readonly suspended: () => boolean
  /** Creates the connection of a socket whose handshake starts. */
  readonly begin: (socket: S, address: string) => Connection
  /** The socket enters the handshake queue. Its handshake may start in the same call. */
  readonly waits: (socket: S, queued: QueuedHandshake<S>) => void
  readonly refuse: (socket: S, reason: CloseReason, address: string, detail: string) => void
  /** The worker is full: closes a connection that was not admitted within `ageMs`. */
  readonly replace: (socket: S, ageMs: number) => void
}

export class Handshakes<S extends PausableSocket> {
  readonly #options: HandshakesOptions<S>
  readonly #admission: Admission
  readonly #queue: HandshakeQueue<S>
  /** Handshakes in progress that have not stalled, in the order in which they started. */
  readonly #inProgress = new Set<Connection>()
  /**
   * Connections whose handshake has started and that are not admitted yet, including closing ones.
   */
  readonly #unadmitted = new ByAge<S>()
  #draining = false

  constructor(options: HandshakesOptions<S>) {
    this.#options = options
    this.#admission = new Admission(options.limits)
    this.#queue = new HandshakeQueue(this.#admission, {
      steadyMs: options.steadyMs,
      open: () => options.mayBegin() && !options.suspended(),
      begin: (socket, address) => this.#begin(socket, address),
    })
  }

  /** While true, all new connections are refused. */
  get draining(): boolean {
    return this.#draining
  }

  /** The most handshakes completed in a second since the start. */
  get bestRatePerS(): number {
    return this.#admission.bestRatePerS
  }

  /** Why a connection would be refused now, or null. */
  get refusing(): CloseReason | null {
    const decision = this.#decide()
    return decision.kind === "refuse" ? decision.reason : null
  }

  /** Whether MAX_CONNECTIONS is reached, so that a new connection must replace another one. */
  get isFull(): boolean {
    return this.#decide().kind !== "accept"
  }

  get report(): AdmissionReport {
    const { waiting } = this.#queue
    return {
      waiting,
      handshakes_in_progress: this.#admission.inProgress,
      handshake_limit: this.#admission.handshakeLimit,
      handshakes_per_s: this.#admission.ratePerS,
      estimated_wait_ms: this.#admission.waitMs(waiting),
    }
  }

  /** Takes an accepted socket. @param address of the device, as `normalAddress` returns it. */
  accept(socket: S, address: string): void {
    const decision = this.#decide()
    if (decision.kind === "refuse") {
      this.#options.refuse(socket, decision.reason, address, decision.detail)
      return
    }
    if (this.#options.isShut()) {
      this.#options.refuse(socket, "gated", address, "the gate is closed")
      return
    }
    const { addressLimits, steadyMs } = this.#options
    if (addressLimits?.take(address, steadyMs()) === false) {
      this.#options.refuse(socket, "overloaded_address", address, AT_LIMIT)
      return
    }
    if (decision.kind === "replace_oldest") this.#replaceOldest()
    const now = this.#options.mayBegin() && this.#admission.beginsInMs(steadyMs()) === 0
    if (now && this.#queue.waiting === 0) {
      this.#begin(socket, address)
      return
    }
    this.#options.waits(socket, this.#queue.wait(socket, address))
    this.#queue.next()
  }

  /** @returns how long the handshake took, milliseconds. */
  completed(connection: Connection): number {
    const steadyMs = this.#options.steadyMs()
    const tookMs = steadyMs - connection.acceptedAtMs
    if (this.#inProgress.delete(connection)) {
      this.#admission.completed(tookMs, this.#options.isBusy(), steadyMs)
      this.#queue.next()
    } else this.#admission.completedLate(tookMs, steadyMs)
    return tookMs
  }

  /** The connection of the socket was admitted. */
  admitted(socket: S): void {
    this.#unadmitted.delete(socket)
  }

  /** The socket closed while it was in the queue. */
  left(queued: QueuedHandshake<S>): void {
    this.#queue.leave(queued)
    this.#options.addressLimits?.release(queued.address)
  }

  /** The socket of a connection has closed. */
  closed(socket: S, connection: Connection): void {
    this.#unadmitted.delete(socket)
    this.#options.addressLimits?.release(connection.remoteAddress)
    if (!this.#inProgress.delete(connection)) return
    this.#admission.ended()
    this.#queue.next()
  }

  /** Call this periodically. @param lagMs how late the call is. */
  sweep(lagMs: number): void {
    const steadyMs = this.#options.steadyMs()
    const sinceMs = steadyMs - this.#admission.stalledAfterMs
    let stalled = 0
    for (const connection of this.#inProgress) {
      if (connection.acceptedAtMs > sinceMs) break
      this.#inProgress.delete(connection)
      stalled += 1
    }
    this.#admission.look(lagMs, stalled, steadyMs)
    this.#queue.next()
  }

  /** Accepts new connections again after `stop`. */
  resume(): void {
    this.#draining = false
  }

  /** Refuses all new connections from now on. @returns the waiting ones. */
  stop(): QueuedHandshake<S>[] {
    this.#draining = true
    const entries = this.#queue.clear()
    for (const { address } of entries) this.#options.addressLimits?.release(address)
    return entries
  }

  #decide(): AdmissionDecision {
    const { connectionCount, suspended, steadyMs } = this.#options
    return this.#admission.decide({
      connections: connectionCount(),
      waiting: this.#queue.waiting,
      suspended: suspended(),
      draining: this.#draining,
      oldestBeganAtMs: this.#unadmitted.oldest?.atMs ?? null,
      steadyMs: steadyMs(),
    })
  }

  #begin(socket: S, address: string): void {
    const connection = this.#options.begin(socket, address)
    this.#inProgress.add(connection)
    this.#unadmitted.add(socket, connection.acceptedAtMs)
    this.#admission.began(connection.acceptedAtMs)
  }

  #replaceOldest(): void {
    const { oldest } = this.#unadmitted
    if (oldest === null) return
    const { item: socket, atMs } = oldest
    // Remove it now and not when the socket has closed: the next new connection must replace
    // another one.
    this.#unadmitted.delete(socket)
    this.#admission.replaced()
    this.#options.replace(socket, Math.round(this.#options.steadyMs() - atMs))
  }
}
