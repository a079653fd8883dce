/**
 * Empties a worker: closes its connections gracefully, oldest first, as many at a time as it is
 * asked for. Admission must have stopped before.
 */

import { type CloseReason, TAKES_NO_DEVICES } from "../device/close-reason.ts"
import type { Connection } from "../device/connection.ts"
import type { Connections } from "../device/connections.ts"
import type { GracefulClose } from "../device/graceful-close.ts"

export interface EvacuationOptions {
  readonly reason: CloseReason
  /** Milliseconds since 1970. */
  readonly startedAtMs: number
  readonly steadyMs: () => number
}

export class Evacuation {
  readonly #connections: Connections
  readonly #gracefulClose: GracefulClose
  readonly #reason: CloseReason
  readonly #steadyMs: () => number
  /** Those whose closing was not begun. */
  readonly #rest: Iterator<Connection>
  readonly connectionsAtStart: number
  readonly startedAtMs: number
  #allBegun = false

  constructor(connections: Connections, gracefulClose: GracefulClose, options: EvacuationOptions) {
    const { reason, steadyMs, startedAtMs } = options
    this.#connections = connections
    this.#gracefulClose = gracefulClose
    this.#reason = reason
    this.#steadyMs = steadyMs
    this.startedAtMs = startedAtMs
    this.connectionsAtStart = connections.count
    this.#rest = connections.values()
    for (const connection of connections.values()) {
      // Not admitted yet.
      if (connection.state !== "open") connection.close(reason, { detail: TAKES_NO_DEVICES })
    }
  }

  /** Begins to close up to `max` connections. @returns how many are not closed yet. */
  closeSome(max: number): number {
    let begun = 0
    while (begun < max && !this.#allBegun) {
      const { value: connection, done } = this.#rest.next()
      if (done === true) this.#allBegun = true
      else if (connection.state === "open") {
        this.#gracefulClose.begin(connection, this.#reason, this.#steadyMs())
        begun += 1
      }
    }
    this.#gracefulClose.sweep(this.#steadyMs())
    return this.#allBegun ? this.#gracefulClose.count : this.#connections.count
  }

  /** Closes all connections at once. */
  closeAll(): void {
    for (const connection of this.#connections.values()) connection.close(this.#reason)
  }
}
