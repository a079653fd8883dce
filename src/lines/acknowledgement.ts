/**
 * `ACK n`: with `DEVICE_ACK=seq`, the line that tells a device that the broker has confirmed its line n.
 *
 * The connection writes it like a command. It has no outcome and no receipt, and counts only as a line and as bytes
 * sent. When an acknowledgement cannot be written, the connection is closed as `slow_device`: a device that misses one
 * acknowledgement would wait for it without end.
 */

import type { Command, CommandSource } from "../device/command.ts"
import type { Connection } from "../device/connection.ts"

class AcknowledgementSource implements CommandSource {
  readonly #connection: Connection

  constructor(connection: Connection) {
    this.#connection = connection
  }

  settled(_command: Command, outcome: string): void {
    if (outcome === "slow_device") this.#connection.close("slow_device")
  }

  acknowledge(): void {}
}

const encoder = new TextEncoder()

/** @param seq the `from_device_seq` of the confirmed line. */
export function acknowledgement(connection: Connection, seq: number): Command {
  return {
    body: encoder.encode(`ACK ${seq}`),
    seq: null,
    messageId: null,
    expiresAtMs: Number.POSITIVE_INFINITY,
    redelivered: false,
    forwarded: false,
    source: new AcknowledgementSource(connection),
  }
}
