/**
 * The line of a broadcast for one connection. It comes by no delivery, so it is never repeated,
 * replaced or lost, and its outcome is only counted.
 */

import type { Command } from "../device/command.ts"

export class BroadcastCommand implements Command {
  readonly cameBy = "broadcast"
  readonly seq = null
  readonly messageId = null
  readonly expiresAtMs = Number.POSITIVE_INFINITY
  readonly reply = null
  readonly trace = null
  readonly redelivered = false
  readonly bodyHash = null
  readonly forwarded = false
  readonly wasHeld = false
  readonly lost = false
  isOffered = false
  readonly body: Uint8Array
  readonly supersedeKey: string | null
  readonly settle: Command["settle"]

  constructor(body: Uint8Array, supersedeKey: string | null, settle: Command["settle"]) {
    this.body = body
    this.supersedeKey = supersedeKey
    this.settle = settle
  }

  acknowledge(): void {}

  replace(): void {}

  withdraw(): void {}
}
