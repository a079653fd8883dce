/**
 * Exponential backoff with jitter, so that workers that lost the same broker do not all reconnect at the same moment.
 *
 * The method is "full jitter" with a floor:
 * https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
 * Pure: the randomness is passed in.
 */

export interface BackoffLimits {
  readonly firstMs: number
  readonly mostMs: number
}

/**
 * Milliseconds to wait before an attempt: from half of `firstMs` up to `firstMs` doubled `attempt` times, at most
 * `mostMs`. The floor prevents a busy loop when `random` is close to 0.
 *
 * @param attempt counted from 0.
 * @param random in [0, 1).
 */
export function backoffMs(attempt: number, limits: BackoffLimits, random: number): number {
  const bound = Math.min(limits.mostMs, limits.firstMs * 2 ** Math.min(attempt, 30))
  const floor = Math.min(limits.firstMs / 2, bound)
  return Math.round(floor + random * (bound - floor))
}
