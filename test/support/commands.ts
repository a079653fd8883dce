/**
 * Commands for tests, with what is not given as a command without number, id or expiration has it.
 */

import type { Command } from "../../src/device/command.ts"

export type TestCommand = { -readonly [K in keyof Command]: Command[K] }

export function testCommand(about: Partial<Command> = {}): TestCommand {
  return {
    body: Buffer.from("x"),
    seq: null,
    messageId: null,
    expiresAtMs: Number.POSITIVE_INFINITY,
    supersedeKey: null,
    reply: null,
    trace: null,
    cameBy: "delivery",
    redelivered: false,
    bodyHash: null,
    forwarded: false,
    wasHeld: false,
    lost: false,
    isOffered: false,
    settle: () => undefined,
    acknowledge: () => undefined,
    replace: () => undefined,
    withdraw: () => undefined,
    ...about,
  }
}
