/** Commands for an endpoint, and its decisions in short. */

import type { Command } from "../../src/device/command.ts"
import { type Decision, Endpoint } from "../../src/device/endpoint.ts"
import { WrittenIds } from "../../src/device/remembered-ids.ts"
import { testCommand } from "../support/commands.ts"

/** One for all, as a queue's consumer is. */

export const RECIPIENT = { deviceId: "d", connectionId: "c", epoch: 1 }
export const GAP_TIMEOUT_MS = 10

export interface About {
  readonly seq?: number | null
  readonly messageId?: string | null
  readonly redelivered?: boolean
  readonly forwarded?: boolean
  readonly supersedeKey?: string | null
}

export function command(about: About = {}): Command {
  return testCommand(about)
}

export function endpointOf(windowCommands = 100): Endpoint {
  const limits = { windowCommands, gapTimeoutMs: GAP_TIMEOUT_MS }
  return new Endpoint(RECIPIENT, limits, new WrittenIds())
}

/** The decisions in short: what is done to whom, as `expect` shows them best. */
export function brief(decisions: readonly Decision[]): unknown[] {
  return decisions.map((decision) => {
    if (decision.kind === "settle") return [decision.outcome, decision.command]
    return [decision.kind, decision.command]
  })
}
