/**
 * Limits by address, before TLS: connections that are open at once, and handshakes a second. IPv6
 * addresses count by their /64 (`addressGroup`).
 *
 * Devices behind one NAT share an address, so both limits are off by default.
 *
 * Pure: the time is passed in. Bounds: one count for each address with a connection; the rates of
 * the `MAX_RATES` addresses that connected last. An address that is forgotten starts with a full
 * burst: so many addresses are not limited by a rate for each.
 */

import { BoundedMap } from "../structures/bounded-map.ts"
import { Pace } from "../structures/pace.ts"
import { addressGroup } from "./address.ts"

/** Of handshakes, at the full rate. */
const BURST_MS = 1_000
const MAX_RATES = 100_000

export interface AddressLimitOptions {
  /** 0 for no limit. */
  readonly maxConnections: number
  /** 0 for no limit. */
  readonly handshakesPerS: number
}

export class AddressLimits {
  readonly #options: AddressLimitOptions
  readonly #connections = new Map<string, number>()
  readonly #rates = new BoundedMap<string, Pace>(MAX_RATES)

  constructor(options: AddressLimitOptions) {
    this.#options = options
  }

  /**
   * Counts a new connection, unless its address has reached a limit. Call `release` when a counted
   * one has closed.
   * @param address as `normalAddress` returns it.
   */
  take(address: string, steadyMs: number): boolean {
    const { maxConnections, handshakesPerS } = this.#options
    const group = addressGroup(address)
    const open = this.#connections.get(group) ?? 0
    if (maxConnections > 0 && open >= maxConnections) return false
    if (handshakesPerS > 0) {
      const rate = this.#rates.get(group) ?? new Pace(handshakesPerS, BURST_MS)
      if (rate.waitMs(steadyMs) > 0) return false
      rate.spend(1, steadyMs)
      this.#rates.add(group, rate)
    }
    if (maxConnections > 0) this.#connections.set(group, open + 1)
    return true
  }

  release(address: string): void {
    const group = addressGroup(address)
    const open = this.#connections.get(group)
    if (open === undefined) return
    if (open === 1) this.#connections.delete(group)
    else this.#connections.set(group, open - 1)
  }
}
