/**
 * SIGTERM and SIGINT: the first signal drains the process, a later one ends it at once.
 *
 * A second signal within `SAME_SIGNAL_MS` counts as the first one: a terminal and an init system
 * signal the whole process group, and `bun run` passes its signals on to its child too.
 */

const SAME_SIGNAL_MS = 1_000

/** @param end called for each signal more than `SAME_SIGNAL_MS` after the first. */
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
