/** What drivers share that do something at a rate and time it. */

/** Beyond this a driver is behind, and what it times is its own. */
const LATE_MS = 10

/**
 * Calls `act` with 0 to `count` - 1, so many times a second; resolves with the share of calls that
 * came late.
 */
export async function atRate(
  count: number,
  perSecond: number,
  act: (n: number) => void,
): Promise<number> {
  let late = 0
  const startedAtMs = performance.now()
  for (let n = 0; n < count; ) {
    const nowMs = performance.now()
    const due = Math.min(count, Math.floor(((nowMs - startedAtMs) / 1000) * perSecond))
    for (; n < due; n += 1) {
      if (nowMs - (startedAtMs + (n / perSecond) * 1000) > LATE_MS) late += 1
      act(n)
    }
    await Bun.sleep(1)
  }
  return late / count
}

/** @param share 0.5 is the median, 1 the largest; NaN of no values. */
export function percentile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b)
  return sorted[Math.floor((sorted.length - 1) * share)] ?? Number.NaN
}
