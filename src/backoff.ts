/**
 * Exponential backoff with jitter, so that workers that lost the same broker do not all reconnect
 * at the same moment.
 *
 * The method is "full jitter" with a floor:
 * https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
 * Pure: the randomness is passed in.
 */

export interface BackoffLimits {
  readonly firstMs: number
  readonly maxMs: number
}

/** Waits between tries at the broker: connections, and messages that it did not take. */
export const BROKER_BACKOFF: BackoffLimits = { firstMs: 100, maxMs: 5_000 }

/**
 * Milliseconds to wait before an attempt: from half of `firstMs` up to `firstMs` doubled `attempt`
 * times, at most `maxMs`. The floor prevents a busy loop when `random` is close to 0.
 *
 * @param attempt counted from 0.
 * @param random in [0, 1).
 */
export function backoffMs(attempt: number, limits: BackoffLimits, random: number): number {
  const bound = Math.min(limits.maxMs, limits.firstMs * 2 ** Math.min(attempt, 30))
  const floor = Math.min(limits.firstMs / 2, bound)
  return Math.round(floor + random * (bound - floor))
}
