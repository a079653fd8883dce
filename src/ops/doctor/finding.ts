/**
 * The findings of `bun run doctor`, and the checks that make them. Pure, except for the timer of a
 * check's time-out.
 *
 *   check ─► run ─┬─ findings
 *                 ├─ rejected ──────────────► failure, with the reason
 *                 └─ not done in timeoutMs ─► failure; the check is left alone, and the next one runs
 *
 * Bound: each check has a time-out, so all of them end within the sum.
 */

import { errorText } from "../../errors.ts"

/** skipped: the message says why it was not checked. It does not count for the exit status. */
export type Level = "ok" | "skipped" | "warning" | "failure"

export type CheckName =
  | "configuration"
  | "open_files"
  | "somaxconn"
  | "conntrack"
  | "certificate"
  | "client_ca"
  | "token_keys"
  | "handshake"
  | "clock"
  | "broker"
  | "queues"
  | "permissions"
  | "confirms"
  | "unacknowledged"
  | "policies"
  | "alarms"
  | "fleet"
  | "drain"
  | "cost"

export interface Finding {
  readonly check: CheckName
  readonly level: Level
  /** What was found, in one sentence. */
  readonly message: string
  /** What to do; null when there is nothing to do. */
  readonly advice: string | null
}

export interface Check {
  readonly name: CheckName
  readonly timeoutMs: number
  readonly run: () => Promise<readonly Finding[]> | readonly Finding[]
}

export const ok = (check: CheckName, message: string, advice: string | null = null): Finding => ({
  ...{ check, level: "ok", message, advice },
})

export const skipped = (check: CheckName, why: string): Finding => ({
  ...{ check, level: "skipped", message: `not checked: ${why}`, advice: null },
})

export const warning = (check: CheckName, message: string, advice: string | null): Finding => ({
  ...{ check, level: "warning", message, advice },
})

export const failure = (check: CheckName, message: string, advice: string | null): Finding => ({
  ...{ check, level: "failure", message, advice },
})

/** The findings of one check, within its time-out. Never rejects. */
export async function runCheck({ name, timeoutMs, run }: Check): Promise<readonly Finding[]> {
  const { promise: late, resolve } = Promise.withResolvers<readonly Finding[]>()
  const message = `no result within ${timeoutMs / 1_000} s`
  const timer = setTimeout(() => resolve([failure(name, message, null)]), timeoutMs)
  try {
    return await Promise.race([Promise.resolve().then(run), late])
  } catch (error) {
    return [failure(name, errorText(error), null)]
  } finally {
    clearTimeout(timer)
  }
}

/** The exit status: 2 with a failure, 1 with a warning, otherwise 0. */
export function statusOf(findings: readonly Finding[]): 0 | 1 | 2 {
  const has = (level: Level) => findings.some((finding) => finding.level === level)
  if (has("failure")) return 2
  return has("warning") ? 1 : 0
}
