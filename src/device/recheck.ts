/**
 * The recheck: after a reload, whether the CAs that are trusted now still vouch for the devices that are connected.
 *
 *   reload ──start──► some connections a sweep, in the order in which they came ─┬─ trusted ─────► stays
 *      └── another reload starts over                                           └─ not any more ► refused
 *
 * A chain is asked of its socket when its turn comes, so nothing is kept for a connection. Decides; the listener closes.
 * Connections that come during a recheck are seen too; those whose handshake began before the reload are looked at by
 * the listener when it ends.
 *
 * Bound: `CHECKS_A_SWEEP` chains in a sweep, each about half a millisecond (two signatures, P-256). That bounds the
 * devices that come back at once as well: 200 a second for a worker, 20,000 devices in 100 seconds.
 */

import type { X509Certificate } from "node:crypto"
import type { ClientAuthorities } from "./client-authorities.ts"

export const CHECKS_A_SWEEP = 50

/** What it needs of a connection. */
interface Checked {
  readonly state: string
  readonly peer: { readonly fingerprint: string | null }
}

export interface RecheckHooks<C extends Checked> {
  readonly nowMs: () => number
  /** The chain that the device has shown, its own certificate first; null when it cannot be read. */
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

  /** @param connections all of the worker; one that is added later is given too, as a Map's iterator does. */
  start(authorities: ClientAuthorities, connections: Iterator<C>): void {
    this.#authorities = authorities
    this.#left = connections
  }

  /** Looks at some more. To be called regularly. */
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
      // Without a fingerprint it has shown no certificate.
      if (connection.state !== "open" || connection.peer.fingerprint === null) continue
      checks += 1
      const fault = authorities.faultOf(this.#hooks.chainOf(connection), this.#hooks.nowMs())
      if (fault !== null) this.#hooks.refused(connection, fault)
    }
  }
}
