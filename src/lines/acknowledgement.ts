/**
 * `ACK n`: with `DEVICE_ACK=seq`, the line that tells a device that the broker has confirmed its
 * line n.
 *
 * The connection writes it like a command. It has no outcome and no receipt, and counts only as a
 * line and as bytes sent. When an acknowledgement cannot be written, the connection is closed as
 * `slow_device`: a device that misses one acknowledgement would wait for it without end.
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
  readonly supersedeKey = null
  readonly reply = null
  readonly trace = null
  readonly redelivered = false
  readonly forwarded = false
  readonly wasHeld = false
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
