/**
 * Admission: whether one more connection may begin its handshake now, must wait its turn, or is refused; all
 * decided before a byte of TLS.
 *
 *   accepted ─┬─ refused: draining, suspended, full, too many wait
 *             ├─ full, and one that has begun is overdue: that one ends (overloaded), this one goes on below
 *             ├─ waits, first come first served ──turn──┐
 *             └─ begins at once ────────────────────────┴─► handshake ─► completed or ended: the next one's turn
 *
 * How many handshakes may be under way tunes itself: it grows while they take little longer than the quickest of
 * late, which is the network's time, and shrinks when they wait for each other or the event loop lags. So in a storm
 * devices that are connected keep their latency, and those that wait do so in the order in which they came instead
 * of starving each other. A peer that stalls gives its place back. Pure: the time is passed in. Bounds: `maxConnections`, `maxWaiting`.
 *
 * Connections that say nothing cost a peer nothing, and as many as `maxConnections` of them would keep every device out
 * until their handshakes time out. So a newcomer to a full worker ends the oldest connection that is not a device yet,
 * once it is overdue: begun longer ago than `stalledAfterMs`. Those that wait for their turn are never ended: it is we
 * who do not read them. A storm of honest devices does not go round in circles:
 *
 * - A newcomer ends one connection at most, and none that has not had four times the time of the quickest handshake of
 *   late for itself, while admission keeps those that are under way to twice that time.
 * - A handshake that completes is a device that stays, and there is one less to come.
 * - When as many connections as the worker holds were ended and not one handshake was completed meanwhile, the limit is
 *   too short for any handshake on their network. It doubles each time, up to `MAX_STALL_MS`, until one completes;
 *   from then on `stalledAfterMs` knows how long a handshake takes.
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
  /** When the oldest connection not admitted yet began; null when there is none. */
  readonly oldestBeganAtMs: number | null
  readonly steadyMs: number
}

const MIN_AT_ONCE = 8
const FIRST_AT_ONCE = 64
const MAX_AT_ONCE = 4_096
/** Beyond twice the quickest: so long may handshakes wait for each other. */
const PATIENCE_MS = 20
/** One more at once for so many handshakes that were quick. */
const QUICK_FOR_ONE_MORE = 8
const SHRINK = 0.8
const MIN_STALL_MS = 250
/** Longer than a handshake takes on any network that devices are served over; a peer could make it any length. */
const MAX_STALL_MS = 4_000
/** Of the event loop, between two looks. */
const MAX_LAG_MS = 50
/** The quickest of late: of this time and of that before it. */
const QUICKEST_OF_MS = 10_000
const RATE_OF_MS = 1_000

export type AdmissionDecision =
  /** It begins, or waits for its turn. */
  | { readonly kind: "accept" }
  /** The oldest connection not admitted yet is closed first. */
  | { readonly kind: "replace_oldest" }
  | { readonly kind: "refuse"; readonly reason: CloseReason }

const ACCEPT: AdmissionDecision = { kind: "accept" }
const REPLACE_OLDEST: AdmissionDecision = { kind: "replace_oldest" }
const OVERLOADED: AdmissionDecision = { kind: "refuse", reason: "overloaded" }

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
  /** Ended for newcomers since the last handshake was completed, or since the limit was doubled. */
  #replaced = 0
  #doublings = 0

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

  /** What becomes of a connection that comes now. */
  decide(state: AdmissionState): AdmissionDecision {
    const { connections, waiting, suspended, draining, oldestBeganAtMs, steadyMs } = state
    if (draining) return { kind: "refuse", reason: "drained" }
    if (suspended || waiting >= this.#limits.maxWaiting) return OVERLOADED
    if (connections + waiting < this.#limits.maxConnections) return ACCEPT
    if (oldestBeganAtMs === null || steadyMs - oldestBeganAtMs <= this.overdueAfterMs) {
      return OVERLOADED
    }
    return REPLACE_OLDEST
  }

  /** How long a connection not admitted yet is kept before a newcomer may replace it. */
  get overdueAfterMs(): number {
    return Math.min(MAX_STALL_MS, this.stalledAfterMs * 2 ** this.#doublings)
  }

  /** To be told when one ended for a newcomer. */
  replaced(): void {
    this.#replaced += 1
    if (this.#replaced < this.#limits.maxConnections) return
    this.#replaced = 0
    if (this.overdueAfterMs < MAX_STALL_MS) this.#doublings += 1
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
    this.completedLate(tookMs, steadyMs)
    const quickestMs = Math.min(this.#quickestMs, this.#quickestBeforeMs)
    if (tookMs > quickestMs * 2 + PATIENCE_MS) this.#shrink(tookMs, steadyMs)
    else this.#atOnce = Math.min(MAX_AT_ONCE, this.#atOnce + 1 / QUICK_FOR_ONE_MORE)
  }

  /** One that had stalled, and had given its place back, was completed after all. */
  completedLate(tookMs: number, steadyMs: number): void {
    this.#completed += 1
    this.#replaced = 0
    this.#doublings = 0
    this.#remember(tookMs, steadyMs)
  }

  /** A handshake ended without being completed. */
  ended(): void {
    this.#underWay -= 1
  }

  /** How long a handshake may take before its place is given to another: it waits for its peer, and costs nothing. */
  get stalledAfterMs(): number {
    const quickestMs = Math.min(this.#quickestMs, this.#quickestBeforeMs)
    const slowMs = Number.isFinite(quickestMs) ? quickestMs * 4 : 0
    return Math.min(MAX_STALL_MS, Math.max(MIN_STALL_MS, slowMs))
  }

  /**
   * To be told now and then how late the event loop is, and how many handshakes have stalled and given back their
   * places. While the loop is not late they are no sign of load, and as many more as there may be get a chance: peers
   * that say nothing must not keep out those that would.
   */
  look(lagMs: number, stalled: number, steadyMs: number): void {
    this.#underWay -= stalled
    if (lagMs > MAX_LAG_MS && this.#underWay > 0) this.#shrink(lagMs, steadyMs)
    else if (stalled > 0) this.#atOnce = Math.min(MAX_AT_ONCE, this.#atOnce * 2)
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
    this.#atOnce = Math.max(MIN_AT_ONCE, this.#atOnce * SHRINK)
  }
}
