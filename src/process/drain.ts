/**
 * Drain: stops a worker without losing lines or commands that it accepted.
 *
 *   accepting_none ─► closing ─► confirming ─► settling ─┬─ all in time ─────► done
 *         │              │           │                   └─ deadline before ─► cut_short
 *         │              │           └ no more commands consumed
 *         │              └ the devices left are served as before
 *         └ listener stopped
 *
 * closing: closes the connections evenly (`paced-closing.ts`), so that devices do not come back to
 * other instances all at once. confirming: waits for the confirms of lines that were read.
 * settling: waits for the outcomes of commands.
 *
 * It decides the order and waits; the steps are passed in. Bound: `timeoutMs` in all. After that
 * the remaining phases do not wait.
 */

import { PacedClosing } from "./paced-closing.ts"

export type DrainPhase =
  | "accepting_none"
  | "closing"
  | "confirming"
  | "settling"
  | "done"
  | "cut_short"

export interface DrainSteps {
  /** Stops the listener. */
  readonly acceptNone: () => void
  /** Begins to close up to `max` connections; returns how many are not closed yet. */
  readonly closeSome: (max: number) => number
  /** Closes all connections at once. */
  readonly closeAll: () => void
  /** Stops consuming commands and leaves the fleet. */
  readonly stopServing: () => Promise<void>
  /** True when every line that was read is confirmed. */
  readonly confirmed: () => boolean
  /** True when the outcome of every command is stored and every socket is closed. */
  readonly settled: () => boolean
  readonly enter: (phase: DrainPhase) => void
  readonly nowMs: () => number
  readonly sleep: (ms: number) => Promise<void>
}

export const DRAIN_POLL_MS = 10
/** Of the time-out: after that the connections that are left are closed at once. */
const CLOSING_SHARE = 0.85

/** Resolves with the last phase: "done", or "cut_short" after `timeoutMs`. */
export async function drain(steps: DrainSteps, timeoutMs: number): Promise<"done" | "cut_short"> {
  const deadlineMs = steps.nowMs() + timeoutMs
  const until = async (condition: () => boolean, byMs = deadlineMs): Promise<boolean> => {
    while (!condition()) {
      if (steps.nowMs() >= byMs) return false
      await steps.sleep(DRAIN_POLL_MS)
    }
    return true
  }
  steps.enter("accepting_none")
  steps.acceptNone()
  steps.enter("closing")
  const pace = new PacedClosing(steps.closeSome(0), timeoutMs, steps.nowMs())
  const closedByMs = deadlineMs - (1 - CLOSING_SHARE) * timeoutMs
  const closed = await until(() => steps.closeSome(pace.due(steps.nowMs())) === 0, closedByMs)
  // Such as devices that take no bytes. The rest of the time is for the lines of the others.
  if (!closed) steps.closeAll()
  steps.enter("confirming")
  let serving: "waiting" | "stopped" | { failure: unknown } = "waiting"
  void steps.stopServing().then(
    () => {
      serving = "stopped"
    },
    (failure: unknown) => {
      serving = { failure }
    },
  )
  const stopped = await until(() => serving !== "waiting")
  if (typeof serving === "object") throw (serving as { failure: unknown }).failure
  const confirmed = await until(steps.confirmed)
  steps.enter("settling")
  const settled = await until(() => steps.settled() && steps.confirmed())
  const last = stopped && confirmed && settled ? "done" : "cut_short"
  steps.enter(last)
  return last
}
