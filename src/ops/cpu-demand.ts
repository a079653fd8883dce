/**
 * Whether the event loop needs more than half of a core: the share of the last `LOOK_EVERY_MS` in
 * which its thread ran or waited for a core. So a thread that gets little time because others use
 * the cores counts as one that needs it.
 *
 * Read from /proc/self/schedstat, about 15 us each time. Without that file (other systems than
 * Linux), waiting for a core is not seen.
 */

import { readFileSync } from "node:fs"

const LOOK_EVERY_MS = 100
const HIGH = 0.5

export class CpuDemand {
  readonly #neededMs: () => number
  #lookedAtMs: number
  #neededBeforeMs: number
  #isHigh = false

  /** @param neededMs how long the thread has run or waited for a core since its start. */
  constructor(steadyMs: number, neededMs = neededByThisThreadMs) {
    this.#neededMs = neededMs
    this.#lookedAtMs = steadyMs
    this.#neededBeforeMs = neededMs()
  }

  /** @returns the demand between the last two looks; false before the second. */
  isHigh(steadyMs: number): boolean {
    const sinceMs = steadyMs - this.#lookedAtMs
    if (sinceMs < LOOK_EVERY_MS) return this.#isHigh
    const neededMs = this.#neededMs()
    this.#isHigh = (neededMs - this.#neededBeforeMs) / sinceMs > HIGH
    this.#lookedAtMs = steadyMs
    this.#neededBeforeMs = neededMs
    return this.#isHigh
  }
}

function neededByThisThreadMs(): number {
  try {
    // Of the first thread, which runs the event loop: nanoseconds on a core, nanoseconds waiting.
    const [ranNs, waitedNs] = readFileSync("/proc/self/schedstat", "utf8").split(" ")
    const neededNs = Number(ranNs) + Number(waitedNs)
    if (Number.isFinite(neededNs)) return neededNs / 1e6
  } catch {
    // Not there.
  }
  const { user, system } = process.cpuUsage()
  return (user + system) / 1e3
}
