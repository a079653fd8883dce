/**
 * The events of a gateway process: one table of names and payloads. Modules emit, the log and whoever
 * else wants to know subscribes; no module calls the log.
 *
 * For what happens to connections, broker and processes, not for single lines: those are counted in
 * `counters.ts`. Bound: as many listeners as are added at start.
 */

import type { BrokerState } from "./broker/broker.ts"
import type { CloseReason } from "./device/close-reason.ts"
import type { Connection } from "./device/connection.ts"
import type { DrainPhase } from "./process/drain.ts"

export interface Events {
  listening: { devicePort: number; httpPort: number; maxConnections: number }
  connection_admitted: { connection: Connection }
  connection_closed: { connection: Connection; reason: CloseReason }
  /** `detail` says what was wrong, and never holds a secret. */
  connection_unidentified: { connection: Connection; detail: string }
  connection_refused: { reason: CloseReason }
  certificate_renewed: Record<never, never>
  reading_suspended: { heldBytes: number }
  reading_resumed: { heldBytes: number }
  broker_state: { state: BrokerState }
  broker_warning: { message: string }
  broker_mute: { unconfirmedMs: number }
  drain: { phase: DrainPhase; unconfirmedLines: number; connections: number }
  /** A defect of the gateway that was caught; the process goes on. */
  fault: { error: Error; where: string }
  /** Something an operator should know of. */
  notice: { message: string }

  worker_started: { slot: number; pid: number }
  worker_ended: { slot: number; pid: number; status: string; action: string }
  instance_ended: { status: number; reason: string }
}

type Listener<K extends keyof Events> = (payload: Events[K]) => void

export class EventBus {
  readonly #listeners = new Map<keyof Events, Listener<never>[]>()

  on<K extends keyof Events>(name: K, listener: Listener<K>): void {
    const listeners = this.#listeners.get(name) ?? []
    this.#listeners.set(name, [...listeners, listener as Listener<never>])
  }

  emit<K extends keyof Events>(name: K, payload: Events[K]): void {
    const listeners = this.#listeners.get(name) as Listener<K>[] | undefined
    if (listeners === undefined) return
    for (const listener of listeners) listener(payload)
  }
}
