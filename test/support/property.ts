/**
 * Properties: the one place that says from which seed and how often fast-check runs, and that tells
 * how to run a failure again. Never decides what is tested.
 *
 * `FUZZ_SEED` replaces the fixed seed, `FUZZ_RUNS` the number of runs of every property. Many runs
 * outlast the five seconds that `bun test` gives a test: add `--timeout`.
 */

import fc from "fast-check"

/** Fixed, so that a commit's tests always do the same; a fuzz run gives its own. */
const DEFAULT_SEED = 20_140_101

/** For properties that take some milliseconds a run. */
export const RUNS = 100
/** For those of the core that take a few microseconds. */
export const CHEAP_RUNS = 1_000

export function check<Ts>(property: fc.IProperty<Ts>, runs = RUNS): void {
  report(fc.check(property, parameters(runs)))
}

export async function checkAsync<Ts>(property: fc.IAsyncProperty<Ts>, runs = RUNS): Promise<void> {
  report(await fc.check(property, parameters(runs)))
}

function parameters(runs: number) {
  return {
    seed: fromEnvironment("FUZZ_SEED") ?? DEFAULT_SEED,
    numRuns: fromEnvironment("FUZZ_RUNS") ?? runs,
    includeErrorInReport: true,
  }
}

function report<Ts>(details: fc.RunDetails<Ts>): void {
  if (!details.failed) return
  const again = `FUZZ_SEED=${details.seed} FUZZ_RUNS=${details.numRuns}`
  const cause = details.errorInstance
  throw new Error(`${fc.defaultReportMessage(details)}\nAgain with: ${again}`, { cause })
}

function fromEnvironment(name: "FUZZ_SEED" | "FUZZ_RUNS"): number | null {
  const value = process.env[name]
  if (value === undefined || value === "") return null
  if (!/^-?[0-9]{1,10}$/.test(value)) throw new Error(`${name} must be a whole number: ${value}`)
  return Number(value)
}
