/**
 * Runs properties with fast-check: sets the seed and the number of runs, and reports how to repeat
 * a failure.
 *
 * `FUZZ_SEED` replaces the fixed seed, `FUZZ_RUNS` the number of runs of each property. Many runs
 * take longer than the five seconds that `bun test` allows a test: add `--timeout`.
 */

import fc from "fast-check"

/** Fixed, so that the tests of a commit are deterministic. A fuzz run sets its own seed. */
const DEFAULT_SEED = 20_140_101

/** For properties that take a few milliseconds for each run. */
export const RUNS = 100
/** For properties of the core that take a few microseconds for each run. */
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
