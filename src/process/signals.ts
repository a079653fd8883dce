/**
 * SIGTERM and SIGINT of a process: the first drains, a later one ends at once.
 *
 * A second within `SAME_SIGNAL_MS` is the same one: a terminal and an init system signal the whole
 * process group, and `bun run` passes on to its child what it got itself.
 */

const SAME_SIGNAL_MS = 1_000

/** @param end called for each signal that comes later than the first by `SAME_SIGNAL_MS`. */
export function onStopSignals(drain: () => void, end: () => void): void {
  let firstAtMs: number | null = null
  const stop = () => {
    if (firstAtMs === null) {
      firstAtMs = performance.now()
      drain()
    } else if (performance.now() - firstAtMs >= SAME_SIGNAL_MS) end()
  }
  process.on("SIGTERM", stop)
  process.on("SIGINT", stop)
}
