/**
 * The events of a gateway process: one table of names and payloads. Modules emit events; the log
 * and other listeners subscribe to them. No module calls the log directly.
 *
 * Events report changes of connections, broker and processes. Single lines emit no event:
 * `counters.ts` counts them. Bound: listeners are added at start only.
 */

import type { BrokerState } from "./broker/broker.ts"
import type { CloseReason } from "./device/close-reason.ts"
import type { Connection } from "./device/connection.ts"
import type { RefusalLine } from "./device/refusal-log.ts"
import type { Refusal } from "./device/refusals.ts"
import type { TapeView } from "./fleet/tape/tapes.ts"
import type { AuditEntry } from "./http/audit.ts"
import type { Addresses } from "./process/addresses.ts"
import type { DrainPhase } from "./process/drain.ts"

export interface Events {
  listening: { devicePort: number; httpPort: number; maxConnections: number }
  connection_admitted: { connection: Connection }
  connection_closed: { connection: Connection; reason: CloseReason }
  /** A connection has ended before it was a device. */
  connection_refused: { refusal: Refusal }
  /** A line about refused connections, of which there are only some a second. */
  refusals: RefusalLine
  /** An operator has done something. */
  audit: { entry: AuditEntry }
  certificate_renewed: Record<never, never>
  reading_suspended: { heldBytes: number }
  reading_resumed: { heldBytes: number }
  broker_state: { state: BrokerState }
  broker_warning: { message: string }
  broker_mute: { unconfirmedMs: number }
  /** A device is recorded from now on, until `until` at the latest. */
  tape_started: { tape: TapeView }
  tape_ended: { tape: TapeView; reason: string }
  drain: { phase: DrainPhase; unconfirmedLines: number; connections: number }
  /** An unexpected exception in the gateway. It was caught and the process continues. */
  fault: { error: Error; where: string }
  /** A condition that an operator should know about. Logged as a warning. */
  notice: { message: string }

  worker_started: { slot: number; pid: number }
  worker_ended: { slot: number; pid: number; status: string; action: string }
  /** The first worker listens. Emitted once for the instance. */
  instance_started: Addresses
  instance_draining: Record<never, never>
  /** SIGHUP: the certificate is read again. */
  reload_started: Record<never, never>
  reload_ended: Record<never, never>
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
