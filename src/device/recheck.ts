/**
 * The recheck: after a reload, checks whether the current CAs still trust the certificates of
 * connected devices.
 *
 *   reload ──start──► some connections in each sweep, in order of arrival ─┬─ trusted ─────► stays
 *      └── another reload starts over                                     └─ not trusted ─► refused
 *
 * Each chain is read from its socket when it is checked, so no memory is used for a connection.
 * Decides only; the listener closes. Connections that arrive during a recheck are included. A
 * connection whose handshake started before the reload is checked by the listener when the
 * handshake completes.
 *
 * Bound: `CHECKS_A_SWEEP` chains in each sweep, about half a millisecond each (two P-256
 * signatures). This also limits the devices that reconnect at the same time: 200 per second and
 * worker, 20,000 devices in 100 seconds.
 */

import type { X509Certificate } from "node:crypto"
import type { ClientAuthorities } from "./client-authorities.ts"

export const CHECKS_A_SWEEP = 50

/** The fields of a connection that the recheck uses. */
interface Checked {
  readonly state: string
  readonly peer: { readonly fingerprint: string | null }
}

export interface RecheckHooks<C extends Checked> {
  readonly nowMs: () => number
  /**
   * The chain that the device presented, its own certificate first; null when it cannot be read.
   */
  readonly chainOf: (connection: C) => readonly X509Certificate[] | null
  readonly refused: (connection: C, detail: string) => void
}

export class Recheck<C extends Checked> {
  readonly #hooks: RecheckHooks<C>
  #authorities: ClientAuthorities | null = null
  #left: Iterator<C> | null = null

  constructor(hooks: RecheckHooks<C>) {
    this.#hooks = hooks
  }

  get isRunning(): boolean {
    return this.#left !== null
  }

  /**
   * @param connections all connections of the worker, including those added during the iteration
   * (as a Map iterates).
   */
  start(authorities: ClientAuthorities, connections: Iterator<C>): void {
    this.#authorities = authorities
    this.#left = connections
  }

  /** Checks the next `CHECKS_A_SWEEP` connections. Call this periodically. */
  sweep(): void {
    const authorities = this.#authorities
    if (authorities === null) return
    for (let checks = 0; checks < CHECKS_A_SWEEP; ) {
      const next = this.#left?.next()
      if (next === undefined || next.done === true) {
        this.#authorities = null
        this.#left = null
        return
      }
      const connection = next.value
      // Without a fingerprint the device has presented no certificate.
      if (connection.state !== "open" || connection.peer.fingerprint === null) continue
      checks += 1
      const fault = authorities.faultOf(this.#hooks.chainOf(connection), this.#hooks.nowMs())
      if (fault !== null) this.#hooks.refused(connection, fault)
    }
  }
}
