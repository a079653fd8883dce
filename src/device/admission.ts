/**
 * Admission: whether one more connection may begin its handshake now, must wait its turn, or is refused; all
 * decided before a byte of TLS.
 *
 *   accepted ─┬─ refused: draining, suspended, full, too many wait
 *             ├─ waits, first come first served ──turn──┐
 *             └─ begins at once ────────────────────────┴─► handshake ─► completed or ended: the next one's turn
 *
 * How many handshakes may be under way tunes itself: it grows while they take little longer than the quickest of
 * late, which is the network's time, and shrinks when they wait for each other or the event loop lags. So in a storm
 * devices that are connected keep their latency, and those that wait do so in the order in which they came instead
 * of starving each other. A peer that stalls gives its place back. Pure: the time is passed in. Bounds: `maxConnections`, `maxWaiting`.
 */

import type { CloseReason } from "./close-reason.ts"

export interface AdmissionLimits {
  /** Connections in any state, those that wait included. */
  readonly maxConnections: number
  readonly maxWaiting: number
  /** Handshakes begun in a second; 0 leaves it to the tuning alone. */
  readonly perS: number
}

export interface AdmissionState {
  /** Connections of this worker in any state but closed, without those that wait. */
  readonly connections: number
  /** Connections that wait for their turn. */
  readonly waiting: number
  /** True while held lines fill the worker's memory bound. */
  readonly suspended: boolean
  readonly draining: boolean
}

const LEAST_AT_ONCE = 8
const FIRST_AT_ONCE = 64
const MOST_AT_ONCE = 4_096
/** Beyond twice the quickest: so long may handshakes wait for each other. */
const PATIENCE_MS = 20
/** One more at once for so many handshakes that were quick. */
const QUICK_FOR_ONE_MORE = 8
const SHRINK = 0.8
const LEAST_STALL_MS = 250
/** Of the event loop, between two looks. */
const MOST_LAG_MS = 50
/** The quickest of late: of this time and of that before it. */
const QUICKEST_OF_MS = 10_000
const RATE_OF_MS = 1_000

export class Admission {
  readonly #limits: AdmissionLimits
  #underWay = 0
  #atOnce = FIRST_AT_ONCE
  #quickestMs = Number.POSITIVE_INFINITY
  #quickestBeforeMs = Number.POSITIVE_INFINITY
  #quickestSinceMs = 0
  #shrunkAtMs = Number.NEGATIVE_INFINITY
  #nextBeginMs = 0
  #completed = 0
  #completedSinceMs = 0
  #ratePerS = 0

  constructor(limits: AdmissionLimits) {
    this.#limits = limits
  }

  get underWay(): number {
    return this.#underWay
  }

  /** How many handshakes may be under way. */
  get atOnce(): number {
    return Math.floor(this.#atOnce)
  }

  /** Handshakes completed in the last second that is over. */
  get ratePerS(): number {
    return this.#ratePerS
  }

  /** Why a connection that came now would be refused, or null. */
  refusal({ connections, waiting, suspended, draining }: AdmissionState): CloseReason | null {
    if (draining) return "drained"
    if (suspended || connections + waiting >= this.#limits.maxConnections) return "overloaded"
    if (waiting >= this.#limits.maxWaiting) return "overloaded"
    return null
  }

  /** Milliseconds until one more may begin: 0 for now, Infinity for not before another has ended. */
  beginsInMs(steadyMs: number): number {
    if (this.#underWay >= this.atOnce) return Number.POSITIVE_INFINITY
    return this.#limits.perS === 0 ? 0 : Math.max(0, this.#nextBeginMs - steadyMs)
  }

  began(steadyMs: number): void {
    this.#underWay += 1
    if (this.#limits.perS === 0) return
    this.#nextBeginMs = Math.max(steadyMs, this.#nextBeginMs) + 1_000 / this.#limits.perS
  }

  completed(tookMs: number, steadyMs: number): void {
    this.#underWay -= 1
    this.#completed += 1
    this.#remember(tookMs, steadyMs)
    const quickestMs = Math.min(this.#quickestMs, this.#quickestBeforeMs)
    if (tookMs > quickestMs * 2 + PATIENCE_MS) this.#shrink(tookMs, steadyMs)
    else this.#atOnce = Math.min(MOST_AT_ONCE, this.#atOnce + 1 / QUICK_FOR_ONE_MORE)
  }

  /** A handshake ended without being completed. */
  ended(): void {
    this.#underWay -= 1
  }

  /** How long a handshake may take before its place is given to another: it waits for its peer, and costs nothing. */
  get stalledAfterMs(): number {
    const quickestMs = Math.min(this.#quickestMs, this.#quickestBeforeMs)
    return Math.max(LEAST_STALL_MS, Number.isFinite(quickestMs) ? quickestMs * 4 : 0)
  }

  /**
   * To be told now and then how late the event loop is, and how many handshakes have stalled and given back their
   * places. While the loop is not late they are no sign of load, and as many more as there may be get a chance: peers
   * that say nothing must not keep out those that would.
   */
  look(lagMs: number, stalled: number, steadyMs: number): void {
    this.#underWay -= stalled
    if (lagMs > MOST_LAG_MS && this.#underWay > 0) this.#shrink(lagMs, steadyMs)
    else if (stalled > 0) this.#atOnce = Math.min(MOST_AT_ONCE, this.#atOnce * 2)
    const sinceMs = steadyMs - this.#completedSinceMs
    if (sinceMs < RATE_OF_MS) return
    this.#ratePerS = Math.round((this.#completed / sinceMs) * 1_000)
    this.#completed = 0
    this.#completedSinceMs = steadyMs
  }

  /** When the last of so many that wait will be in, milliseconds; null while nothing is known of it. */
  waitMs(waiting: number): number | null {
    if (waiting === 0) return 0
    return this.#ratePerS === 0 ? null : Math.round((waiting / this.#ratePerS) * 1_000)
  }

  #remember(tookMs: number, steadyMs: number): void {
    if (steadyMs - this.#quickestSinceMs >= QUICKEST_OF_MS) {
      this.#quickestBeforeMs = this.#quickestMs
      this.#quickestMs = Number.POSITIVE_INFINITY
      this.#quickestSinceMs = steadyMs
    }
    this.#quickestMs = Math.min(this.#quickestMs, tookMs)
  }

  /** Once for each such time: what is under way began before, and says nothing of the smaller number. */
  #shrink(overMs: number, steadyMs: number): void {
    if (steadyMs - this.#shrunkAtMs < overMs) return
    this.#shrunkAtMs = steadyMs
    this.#atOnce = Math.max(LEAST_AT_ONCE, this.#atOnce * SHRINK)
  }
}
