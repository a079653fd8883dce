/** Held commands for tests: for the device `lock`, in the order of their making. */

import type { HeldCommand } from "../../../src/commands/hold/held-command.ts"

let made = 0

export function heldCommand(id: string, about: Partial<HeldCommand> = {}): HeldCommand {
  made += 1
  const deviceId = about.deviceId ?? "lock"
  return {
    id,
    deviceId,
    messageId: null,
    supersedeKey: null,
    heldAtMs: 1_750_000_000_000,
    number: made,
    expiresAtMs: 1_750_000_600_000,
    body: Buffer.from("open"),
    properties: { headers: { device_id: deviceId } },
    ...about,
  }
}
