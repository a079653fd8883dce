/**
 * `bun run fuzz [runs] [test file …]`: the properties of the core with many runs and a seed of its own, which is
 * printed: `FUZZ_SEED=<seed> bun run fuzz` does the same again. Without files: every test that has a property.
 *
 * Exit status: that of the tests.
 */

import { readFileSync } from "node:fs"
import { join } from "node:path"

const ROOT = join(import.meta.dir, "../..")
const DEFAULT_RUNS = 100_000
/** So many runs of the slowest property may take hours. */
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

/** Those that take their number of runs from `property.ts`; not the ones with real brokers. */
function filesWithProperties(): string[] {
  const found = [...new Bun.Glob("test/**/*.test.ts").scanSync(ROOT)].filter((file) =>
    readFileSync(join(ROOT, file), "utf8").includes("support/property.ts"),
  )
  return found.sort()
}
