/**
 * Watches the broker for a worker: counts and reports the changes of its state, ends messages that
 * one queue does not take, and gives up a connection on which nothing is confirmed.
 *
 *   away ──connected──► ready ◄──alarm──► blocked       ready ──nothing confirmed for CONFIRM_TIMEOUT_MS──► reset
 *
 * Bound: nothing is kept but the last state.
 */

import type { Counters } from "../counters.ts"
import type { EventBus } from "../events.ts"
import type { Broker, BrokerListener, BrokerState } from "./broker.ts"
import type { OutboundMessages } from "./outbound-messages.ts"
import { silentSinceMs } from "./publisher.ts"

export interface BrokerWatchOptions {
  readonly counters: Counters
  readonly events: EventBus
  /** Milliseconds that never jump. */
  readonly steadyMs: () => number
  readonly confirmTimeoutMs: number
  /** All that must be confirmed. */
  readonly publishers: readonly { silentSinceMs(): number | null }[]
  readonly outboundMessages: OutboundMessages
  /** When the broker last confirmed a message of the fleet; `-Infinity` when it never has. */
  readonly fleetConfirmedAtMs: () => number
  /** The broker has become ready. Announcements during an alarm were dropped, so after one too. */
  readonly ready: () => void
}

export class BrokerWatch implements BrokerListener {
  readonly #broker: Broker
  readonly #options: BrokerWatchOptions
  #state: BrokerState = { kind: "away", reason: "" }
  /**
   * Since when the broker takes messages and its answers are read: what waited through an alarm, or
   * a pause of this process, is not overdue at once.
   */
  #readySinceMs = 0

  constructor(broker: Broker, options: BrokerWatchOptions) {
    this.#broker = broker
    this.#options = options
  }

  stateChanged(state: BrokerState): void {
    const { counters, events, steadyMs, ready } = this.#options
    const before = this.#state
    this.#state = state
    const isUp = state.kind === "ready" || state.kind === "blocked"
    if (isUp && before.kind === "away") counters.brokerConnects += 1
    if (state.kind === "away" && before.kind !== "away") counters.brokerLosses += 1
    // A try that fails for the same reason as the last one is not reported again.
    if (!Bun.deepEquals(state, before)) events.emit("broker_state", { state })
    if (state.kind !== "ready" || before.kind === "ready") return
    this.#readySinceMs = steadyMs()
    ready()
  }

  warning(message: string): void {
    this.#options.events.emit("broker_warning", { message })
  }

  /**
   * To be called periodically.
   *
   * @param wasPaused whether this process has not run since the last call.
   */
  sweep(atMs: number, wasPaused: boolean): void {
    const { confirmTimeoutMs, outboundMessages, fleetConfirmedAtMs, publishers, events } =
      this.#options
    if (wasPaused) this.#readySinceMs = atMs
    // While it is away, perhaps only the other connection is lost, and this one confirms nothing
    // either.
    const { kind } = this.#broker.state
    if (kind === "blocked" || kind === "closed") return
    const sentByMs = atMs - confirmTimeoutMs
    if (sentByMs >= this.#readySinceMs) outboundMessages.giveUp(sentByMs, fleetConfirmedAtMs())
    const silentMs = silentSinceMs(publishers)
    const unconfirmedMs = Math.round(atMs - Math.max(silentMs, this.#readySinceMs))
    if (unconfirmedMs < confirmTimeoutMs) return
    events.emit("broker_mute", { unconfirmedMs })
    this.#broker.reset(`nothing confirmed for ${unconfirmedMs} ms`)
  }
}
