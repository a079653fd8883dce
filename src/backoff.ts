/**
 * Exponential backoff with jitter over the whole range above a floor, so that many workers that lost one broker do not return to
 * it in step. "Full jitter" of https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/ has no floor.
 * Pure: the randomness is passed in.
 */

export interface BackoffLimits {
  readonly firstMs: number
  readonly mostMs: number
}

/**
 * How long to wait before try number `attempt`, counted from 0, in milliseconds: anywhere from half of
 * `firstMs` to the bound of this attempt. The floor keeps a lucky draw from becoming a busy loop.
 *
 * @param random in [0, 1).
 */
export function backoffMs(attempt: number, limits: BackoffLimits, random: number): number {
  const bound = Math.min(limits.mostMs, limits.firstMs * 2 ** Math.min(attempt, 30))
  const floor = Math.min(limits.firstMs / 2, bound)
  return Math.round(floor + random * (bound - floor))
}
