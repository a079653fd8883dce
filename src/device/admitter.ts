/**
 * The admitter: admits a connection after the authenticator has accepted it.
 *
 *   accepted ─► not refused by the fleet ─► epoch ─► open ─► registered under its device id ─► older connection closed (taken_over) ─► `admitted`
 *
 * All steps run in one synchronous call, so that no command meets a device between two of them.
 * Holds no state.
 */

import type { Counters } from "../counters.ts"
import type { CloseDetails, CloseReason } from "./close-reason.ts"
import type { Connection } from "./connection.ts"
import type { Connections } from "./connections.ts"
import type { PeerInfo } from "./peer.ts"

/** Why a device that has proven its identity is not admitted. */
export interface AdmissionRefusal extends CloseDetails {
  readonly reason: CloseReason
}

export interface AdmitterOptions {
  readonly nowMs: () => number
  readonly counters: Counters
  /** Null when the device is admitted. */
  readonly refusalOf: (deviceId: string, isNamed: boolean) => AdmissionRefusal | null
  /**
   * The epoch of the device's newest connection on another worker, or undefined when none is known.
   */
  readonly epochElsewhere: (deviceId: string) => number | undefined
  readonly admitted: (connection: Connection) => void
}

export class Admitter {
  readonly #connections: Connections
  readonly #options: AdmitterOptions

  constructor(connections: Connections, options: AdmitterOptions) {
    this.#connections = connections
    this.#options = options
  }

  /** @returns false when the fleet refuses the device. */
  admit(connection: Connection, deviceId: string, peer: PeerInfo): boolean {
    const { nowMs, counters, epochElsewhere, admitted, refusalOf } = this.#options
    const refusal = refusalOf(deviceId, deviceId !== connection.id)
    if (refusal !== null) {
      connection.close(refusal.reason, { ...refusal, deviceId })
      return false
    }
    const epoch = this.#connections.nextEpoch(deviceId, nowMs(), epochElsewhere(deviceId))
    connection.admit(deviceId, epoch, peer)
    counters.connectionsAdmitted += 1
    this.#connections.enter(connection)?.close("taken_over")
    admitted(connection)
    return true
  }
}
