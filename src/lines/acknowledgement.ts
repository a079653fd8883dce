/**
 * `ACK n`: the line that tells a device, with `DEVICE_ACK=seq`, that the broker has its line n.
 *
 * Passes the connection like a command, but has no outcome and no receipt; only as a line and
 * as bytes sent it counts. A device that
 * does not take its acknowledgements is closed as slow, since one left out would be a false silence.
 */

import type { Command, Outcome } from "../device/command.ts"
import type { Connection } from "../device/connection.ts"

const encoder = new TextEncoder()

export class Acknowledgement implements Command {
  readonly cameBy = "gateway"
  readonly seq = null
  readonly messageId = null
  readonly bodyHash = null
  readonly expiresAtMs = Number.POSITIVE_INFINITY
  readonly redelivered = false
  readonly forwarded = false
  readonly lost = false
  isOffered = false
  readonly body: Uint8Array
  readonly #connection: Connection

  /** @param seq the `from_device_seq` that was confirmed. */
  constructor(connection: Connection, seq: number) {
    this.#connection = connection
    this.body = encoder.encode(`ACK ${seq}`)
  }

  settle(outcome: Outcome): void {
    if (outcome === "slow_device") this.#connection.close("slow_device")
  }

  // It comes by no delivery, so it is never repeated, replaced or lost.
  acknowledge(): void {}

  replace(): void {}

  withdraw(): void {}
}
