/**
 * Admission: decides whether an accepted connection starts its handshake now, waits in the
 * handshake queue or is refused. It decides before a byte of TLS is read.
 *
 *   accepted ─┬─ refused: the worker is draining, suspended or full, or too many connections wait
 *             ├─ the worker is full and an unadmitted connection is overdue: close it (overloaded), continue below
 *             ├─ waits in the handshake queue, first in first out ──┐
 *             └─ starts at once ────────────────────────────────────┴─► handshake ─► completed or ended: start the next
 *
 * The limit of concurrent handshakes adapts. It grows while handshakes take little longer than the
 * fastest recent one, or while the event loop has time left. It shrinks when handshakes delay each
 * other or the event loop lags. So in a storm the connected devices keep their latency, and waiting
 * connections start in order of arrival and do not starve each other. A stalled handshake no longer
 * counts against the limit.
 *
 * A slow handshake alone does not shrink it: the fastest one may be that of a near device, or of a
 * health check in the same building, and the network of all others slower.
 *
 * Connections that send nothing cost a peer nothing. `maxConnections` of them could keep all
 * devices out until their handshakes time out. So when the worker is full, a new connection
 * replaces the oldest connection that is not admitted yet, if that one is overdue: its handshake
 * started longer ago than `overdueAfterMs`. Connections in the handshake queue are never replaced,
 * because the gateway does not read them. A storm of honest devices still makes progress:
 *
 * - A new connection replaces at most one other. A connection is replaced only after four times the
 *   duration of the fastest recent handshake, and the limit keeps handshakes within about twice
 *   that duration.
 * - Each completed handshake adds a device that stays connected, so one fewer device has to
 *   connect.
 * - When `maxConnections` connections were replaced and no handshake completed in between, the time
 *   allowed is too short for the devices' network. It doubles each time, up to `MAX_STALL_MS`,
 *   until a handshake completes. From then on `stalledAfterMs` follows the measured duration.
 *
 * Pure: the time is passed in. Bounds: `maxConnections`, `maxWaiting`.
 */

import { type CloseReason, TAKES_NO_DEVICES } from "./close-reason.ts"

export interface AdmissionLimits {
  /** Connections in any state, including those in the handshake queue. */
  readonly maxConnections: number
  readonly maxWaiting: number
  /** Handshakes started per second; 0 for no fixed rate. */
  readonly perS: number
}

export interface AdmissionState {
  /** Connections of this worker that are not closed, without those in the handshake queue. */
  readonly connections: number
  /** Connections in the handshake queue. */
  readonly waiting: number
  /** True while reading is suspended because held lines have reached `MAX_HELD_BYTES`. */
  readonly suspended: boolean
  readonly draining: boolean
  /** When the handshake of the oldest unadmitted connection started; null when there is none. */
  readonly oldestBeganAtMs: number | null
  readonly steadyMs: number
}

const MIN_HANDSHAKE_LIMIT = 8
const FIRST_HANDSHAKE_LIMIT = 64
const MAX_HANDSHAKE_LIMIT = 4_096
/**
 * A handshake that takes longer than twice the fastest recent one plus this is slow. It shrinks the
 * limit while the event loop is busy.
 */
const PATIENCE_MS = 6
/** The limit grows by one for this many fast handshakes. */
const QUICK_FOR_ONE_MORE = 8
const SHRINK = 0.8
const MIN_STALL_MS = 250
/**
 * Longer than a handshake takes on any expected network. Without it a slow peer could raise the
 * time without limit.
 */
const MAX_STALL_MS = 4_000
/** The limit shrinks when a sweep is later than this. */
const MAX_LAG_MS = 50
/** The fastest recent handshake is that of the current and the previous period of this length. */
const QUICKEST_OF_MS = 10_000
const RATE_OF_MS = 1_000

export type AdmissionDecision =
  /** The handshake starts now or waits in the queue. */
  | { readonly kind: "accept" }
  /** As "accept", after the oldest unadmitted connection was closed. */
  | { readonly kind: "replace_oldest" }
  | { readonly kind: "refuse"; readonly reason: CloseReason; readonly detail: string }

const ACCEPT: AdmissionDecision = { kind: "accept" }
const REPLACE_OLDEST: AdmissionDecision = { kind: "replace_oldest" }
const DRAINED = refusal("drained", TAKES_NO_DEVICES)
const SUSPENDED = refusal("overloaded", "MAX_HELD_BYTES is reached")
const QUEUE_FULL = refusal("overloaded", "MAX_WAITING is reached")
const FULL = refusal("overloaded", "MAX_CONNECTIONS is reached")

export class Admission {
  readonly #limits: AdmissionLimits
  #inProgress = 0
  #handshakeLimit = FIRST_HANDSHAKE_LIMIT
  #quickestMs = Number.POSITIVE_INFINITY
  #quickestBeforeMs = Number.POSITIVE_INFINITY
  #quickestSinceMs = 0
  #shrunkAtMs = Number.NEGATIVE_INFINITY
  #nextBeginMs = 0
  #completed = 0
  #completedSinceMs = 0
  #ratePerS = 0
  #bestRatePerS = 0
  /** Connections replaced since the last handshake completed or the last doubling. */
  #replaced = 0
  #doublings = 0

  constructor(limits: AdmissionLimits) {
    this.#limits = limits
  }

  get inProgress(): number {
    return this.#inProgress
  }

  /** The limit of concurrent handshakes. */
  get handshakeLimit(): number {
    return Math.floor(this.#handshakeLimit)
  }

  /** The most handshakes completed in a second since the start. */
  get bestRatePerS(): number {
    return this.#bestRatePerS
  }

  /** Handshakes completed per second, measured over the last full second. */
  get ratePerS(): number {
    return this.#ratePerS
  }

  /** Decides about a connection that is accepted now. */
  decide(state: AdmissionState): AdmissionDecision {
    const { connections, waiting, suspended, draining, oldestBeganAtMs, steadyMs } = state
    if (draining) return DRAINED
    if (suspended) return SUSPENDED
    if (waiting >= this.#limits.maxWaiting) return QUEUE_FULL
    if (connections + waiting < this.#limits.maxConnections) return ACCEPT
    if (oldestBeganAtMs === null || steadyMs - oldestBeganAtMs <= this.overdueAfterMs) {
      return FULL
    }
    return REPLACE_OLDEST
  }

  /** Milliseconds after which a new connection may replace an unadmitted one. */
  get overdueAfterMs(): number {
    return Math.min(MAX_STALL_MS, this.stalledAfterMs * 2 ** this.#doublings)
  }

  /** Call this when a connection was replaced. */
  replaced(): void {
    this.#replaced += 1
    if (this.#replaced < this.#limits.maxConnections) return
    this.#replaced = 0
    if (this.overdueAfterMs < MAX_STALL_MS) this.#doublings += 1
  }

  /**
   * Milliseconds until the next handshake may start: 0 for now, `Infinity` when another must end
   * first.
   */
  beginsInMs(steadyMs: number): number {
    if (this.#inProgress >= this.handshakeLimit) return Number.POSITIVE_INFINITY
    return this.#limits.perS === 0 ? 0 : Math.max(0, this.#nextBeginMs - steadyMs)
  }

  began(steadyMs: number): void {
    this.#inProgress += 1
    if (this.#limits.perS === 0) return
    this.#nextBeginMs = Math.max(steadyMs, this.#nextBeginMs) + 1_000 / this.#limits.perS
  }

  /** @param isBusy whether the event loop needs more than half of a core. */
  completed(tookMs: number, isBusy: boolean, steadyMs: number): void {
    this.#inProgress -= 1
    this.completedLate(tookMs, steadyMs)
    const quickestMs = Math.min(this.#quickestMs, this.#quickestBeforeMs)
    const isSlow = tookMs > quickestMs * 2 + PATIENCE_MS
    if (isSlow && isBusy) this.#shrink(tookMs, steadyMs)
    else
      this.#handshakeLimit = Math.min(
        MAX_HANDSHAKE_LIMIT,
        this.#handshakeLimit + 1 / QUICK_FOR_ONE_MORE,
      )
  }

  /** A handshake completed that had stalled and no longer counted against the limit. */
  completedLate(tookMs: number, steadyMs: number): void {
    this.#completed += 1
    this.#replaced = 0
    this.#doublings = 0
    this.#remember(tookMs, steadyMs)
  }

  /** A handshake ended and was not completed. */
  ended(): void {
    this.#inProgress -= 1
  }

  /**
   * Milliseconds after which a handshake has stalled and no longer counts against the limit. It
   * waits for its peer and costs no CPU time.
   */
  get stalledAfterMs(): number {
    const quickestMs = Math.min(this.#quickestMs, this.#quickestBeforeMs)
    const slowMs = Number.isFinite(quickestMs) ? quickestMs * 4 : 0
    return Math.min(MAX_STALL_MS, Math.max(MIN_STALL_MS, slowMs))
  }

  /**
   * Adapts the limit to the load. Call this periodically.
   *
   * Stalled handshakes are no sign of load while the event loop is on time. They double the limit,
   * so that silent peers do not keep out devices that would complete their handshakes.
   *
   * @param lagMs how late this call is.
   * @param stalled handshakes that have stalled since the last call.
   */
  look(lagMs: number, stalled: number, steadyMs: number): void {
    this.#inProgress -= stalled
    if (lagMs > MAX_LAG_MS && this.#inProgress > 0) this.#shrink(lagMs, steadyMs)
    else if (stalled > 0)
      this.#handshakeLimit = Math.min(MAX_HANDSHAKE_LIMIT, this.#handshakeLimit * 2)
    const sinceMs = steadyMs - this.#completedSinceMs
    if (sinceMs < RATE_OF_MS) return
    this.#ratePerS = Math.round((this.#completed / sinceMs) * 1_000)
    this.#bestRatePerS = Math.max(this.#bestRatePerS, this.#ratePerS)
    this.#completed = 0
    this.#completedSinceMs = steadyMs
  }

  /**
   * Estimated milliseconds until the last of the waiting handshakes completes; null while the rate
   * is unknown.
   */
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

  /**
   * At most once in `overMs`: handshakes that started before the last change do not show the effect
   * of the new limit.
   */
  #shrink(overMs: number, steadyMs: number): void {
    if (steadyMs - this.#shrunkAtMs < overMs) return
    this.#shrunkAtMs = steadyMs
    this.#handshakeLimit = Math.max(MIN_HANDSHAKE_LIMIT, this.#handshakeLimit * SHRINK)
  }
}

function refusal(reason: CloseReason, detail: string): AdmissionDecision {
  return { kind: "refuse", reason, detail }
}
