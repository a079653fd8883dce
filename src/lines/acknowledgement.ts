/**
 * `ACK n`: the line that tells a device, with `DEVICE_ACK=seq`, that the broker has its line n.
 *
 * Passes the connection like a command, but has no outcome and no receipt; only as a line and
 * as bytes sent it counts. A device that
 * does not take its acknowledgements is closed as slow, since one left out would be a false silence.
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

/** @param seq the `from_device_seq` that was confirmed. */
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
