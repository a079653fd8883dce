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
export type Level = Finding["level"]

const TIMEOUT_ADVICE = "check the load of this machine and of the broker, and run the doctor again"
const ERROR_ADVICE = "correct what the message names, and run the doctor again"

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

export type Finding = {
  readonly check: CheckName
  /** What was found, in one sentence. */
  readonly message: string
} & (
  | { readonly level: "ok"; readonly advice: string | null }
  | { readonly level: "skipped"; readonly advice: null }
  /** The advice says what to do. */
  | { readonly level: "warning" | "failure"; readonly advice: string }
)

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

export const warning = (check: CheckName, message: string, advice: string): Finding => ({
  ...{ check, level: "warning", message, advice },
})

export const failure = (check: CheckName, message: string, advice: string): Finding => ({
  ...{ check, level: "failure", message, advice },
})

/** The findings of one check, within its time-out. Never rejects. */
export async function runCheck({ name, timeoutMs, run }: Check): Promise<readonly Finding[]> {
  const { promise: late, resolve } = Promise.withResolvers<readonly Finding[]>()
  const message = `no result within ${timeoutMs / 1_000} s`
  const timer = setTimeout(() => resolve([failure(name, message, TIMEOUT_ADVICE)]), timeoutMs)
  try {
    return await Promise.race([Promise.resolve().then(run), late])
  } catch (error) {
    return [failure(name, errorText(error), ERROR_ADVICE)]
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
