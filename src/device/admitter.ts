/**
 * The admitter: makes a device of a connection whose peer has proven who it is.
 *
 *   accepted ─► epoch ─► open ─► entered under its id ─► the older connection closed (taken_over) ─► told
 *   rejected ─► told ─► closed
 *
 * All in one call, so that no command finds a device between two of these steps. Bound: none of its own.
 */

import type { Counters } from "../counters.ts"
import type { CloseReason } from "./close-reason.ts"
import type { Connection } from "./connection.ts"
import type { Connections } from "./connections.ts"
import type { PeerInfo } from "./peer.ts"

export interface AdmitterOptions {
  readonly nowMs: () => number
  readonly counters: Counters
  /** The epoch of the newest connection of a device on other workers, as far as it is known. */
  readonly epochElsewhere: (deviceId: string) => number | undefined
  readonly admitted: (connection: Connection) => void
  /** The handshake failed, or the device did not identify itself or was refused. `detail` says why. */
  readonly rejected: (
    connection: Connection,
    reason: CloseReason,
    detail: string,
    remoteAddress: string,
  ) => void
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

  reject(connection: Connection, reason: CloseReason, detail: string, remoteAddress: string): void {
    this.#options.rejected(connection, reason, detail, remoteAddress)
    connection.close(reason)
  }
}
