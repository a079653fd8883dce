/**
 * The admitter: admits or rejects a connection after the authenticator has decided.
 *
 *   accepted ─► epoch ─► open ─► registered under its device id ─► older connection closed (taken_over) ─► `admitted`
 *   rejected ─► `rejected` ─► closed
 *
 * All steps run in one synchronous call, so that no command meets a device between two of them.
 * Holds no state.
 */

import type { Counters } from "../counters.ts"
import type { CloseReason } from "./close-reason.ts"
import type { Connection } from "./connection.ts"
import type { Connections } from "./connections.ts"
import type { PeerInfo } from "./peer.ts"

export interface AdmitterOptions {
  readonly nowMs: () => number
  readonly counters: Counters
  /**
   * The epoch of the device's newest connection on another worker, or undefined when none is known.
   */
  readonly epochElsewhere: (deviceId: string) => number | undefined
  readonly admitted: (connection: Connection) => void
  /**
   * The handshake failed, or the device did not identify itself or was refused. `detail` gives the
   * cause.
   */
  readonly rejected: (connection: Connection, reason: CloseReason, detail: string) => void
}

export class Admitter {
  readonly #connections: Connections
  readonly #options: AdmitterOptions

  constructor(connections: Connections, options: AdmitterOptions) {
    this.#connections = connections
    this.#options = options
  }

  admit(connection: Connection, deviceId: string, peer: PeerInfo): void {
    const { nowMs, counters, epochElsewhere, admitted } = this.#options
    const epoch = this.#connections.nextEpoch(deviceId, nowMs(), epochElsewhere(deviceId))
    connection.admit(deviceId, epoch, peer)
    counters.connectionsAdmitted += 1
    this.#connections.enter(connection)?.close("taken_over")
    admitted(connection)
  }

  reject(connection: Connection, reason: CloseReason, detail: string): void {
    this.#options.rejected(connection, reason, detail)
    connection.close(reason)
  }
}
