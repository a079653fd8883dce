/**
 * `bun run fuzz [runs] [test file …]`: runs the properties of the core many times with a new seed,
 * which is printed. `FUZZ_SEED=<seed> bun run fuzz` repeats a run. Without files it runs all tests
 * that have a property.
 *
 * The exit status is that of the tests.
 */

import { readFileSync } from "node:fs"
import { join } from "node:path"

const ROOT = join(import.meta.dir, "../..")
const DEFAULT_RUNS = 100_000
/** Many runs of the slowest property may take hours. */
const TIMEOUT_MS = 24 * 3_600_000

const [runs = String(DEFAULT_RUNS), ...named] = process.argv.slice(2)
if (!/^[1-9][0-9]{0,8}$/.test(runs)) {
  console.error(`the number of runs must be a whole number: ${runs}`)
  process.exit(2)
}
const given = process.env["FUZZ_SEED"] ?? ""
const seed = given === "" ? String(Math.floor(Math.random() * 2 ** 31)) : given
const files = named.length > 0 ? named : filesWithProperties()
console.log(`FUZZ_SEED=${seed} FUZZ_RUNS=${runs}: ${files.length} files`)
const tests = Bun.spawn(
  [process.execPath, "test", "--timeout", String(TIMEOUT_MS), ...files.map((file) => `./${file}`)],
  {
    cwd: ROOT,
    env: { ...process.env, FUZZ_SEED: seed, FUZZ_RUNS: runs },
    stdio: ["ignore", "inherit", "inherit"],
  },
)
process.exit(await tests.exited)

/**
 * Test files that get their number of runs from `property.ts`, without those that use real brokers.
 */
function filesWithProperties(): string[] {
  const found = [...new Bun.Glob("test/**/*.test.ts").scanSync(ROOT)].filter((file) =>
    readFileSync(join(ROOT, file), "utf8").includes("support/property.ts"),
  )
  return found.sort()
}
