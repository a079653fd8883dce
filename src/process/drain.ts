/**
 * Drain: stops a worker without losing lines or commands that it accepted.
 *
 *   accepting_none ─► confirming ─► closing ─► settling ─┬─ all in time ─────► done
 *         │                                              └─ deadline before ─► cut_short
 *         └ listener stopped, reading paused, no more commands consumed
 *
 * confirming: waits for the confirms of lines that were read. closing: closes the connections, a
 * few at a time, so that the devices do not reconnect to another instance all at once. settling:
 * waits for the outcomes of commands.
 *
 * It decides the order and waits; the steps are passed in. Bound: `timeoutMs` in all. After that
 * the remaining phases do not wait.
 */

export type DrainPhase =
  | "accepting_none"
  | "confirming"
  | "closing"
  | "settling"
  | "done"
  | "cut_short"

export interface DrainSteps {
  /** Stops the listener, reading and consuming. */
  readonly acceptNone: () => Promise<void>
  /** True when every line that was read is confirmed. */
  readonly confirmed: () => boolean
  /** Begins to close up to `max` connections; returns how many are left open. */
  readonly closeSome: (max: number) => number
  /** True when the outcome of every command is stored and every socket is closed. */
  readonly settled: () => boolean
  readonly enter: (phase: DrainPhase) => void
  readonly nowMs: () => number
  readonly sleep: (ms: number) => Promise<void>
}

const POLL_MS = 10
/** With a poll every 10 ms, 20,000 connections are closed within two seconds. */
const CLOSE_AT_ONCE = 100

/** Resolves with the last phase: "done", or "cut_short" after `timeoutMs`. */
export async function drain(steps: DrainSteps, timeoutMs: number): Promise<"done" | "cut_short"> {
  const deadlineMs = steps.nowMs() + timeoutMs
  const until = async (condition: () => boolean): Promise<boolean> => {
    while (!condition()) {
      if (steps.nowMs() >= deadlineMs) return false
      await steps.sleep(POLL_MS)
    }
    return true
  }
  steps.enter("accepting_none")
  let accepted: "waiting" | "none" | { failure: unknown } = "waiting"
  void steps.acceptNone().then(
    () => {
      accepted = "none"
    },
    (failure: unknown) => {
      accepted = { failure }
    },
  )
  const acceptedNone = await until(() => accepted !== "waiting")
  if (typeof accepted === "object") throw (accepted as { failure: unknown }).failure
  steps.enter("confirming")
  const confirmed = await until(steps.confirmed)
  steps.enter("closing")
  const closed = await until(() => steps.closeSome(CLOSE_AT_ONCE) === 0)
  // After the time-out the remaining connections are closed all at once.
  if (!closed) steps.closeSome(Number.POSITIVE_INFINITY)
  steps.enter("settling")
  const settled = await until(() => steps.settled() && steps.confirmed())
  const last = acceptedNone && confirmed && closed && settled ? "done" : "cut_short"
  steps.enter(last)
  return last
}
