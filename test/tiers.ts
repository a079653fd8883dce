/**
 * `bun test/tiers.ts <tier …>`: runs the tests of these tiers (unit, integration, faults), prints a
 * line for each process, the whole output of those that failed, and the total counts.
 *
 * The folder of a file says its tier. Unit tests run in one process, every other file in a process
 * of its own, as many processes at a time as the machine has cores, three to four. Files of the
 * integration tier share one RabbitMQ node.
 *
 * Exit status: 0 when every test passed, 1 when one failed, 2 for a tier that does not exist.
 */

import { availableParallelism } from "node:os"
import { join } from "node:path"
import { ownNetwork } from "./support/namespace.ts"
import { type PrivateBroker, startRabbitMq } from "./support/rabbitmq.ts"

const ROOT = join(import.meta.dir, "..")
const TIERS = ["unit", "integration", "faults"] as const
/**
 * Three, since the tests wait more than they compute; no more than four, since each may bring a
 * RabbitMQ node.
 */
const PROCESSES = { min: 3, max: 4 }
/**
 * Limit of a test that sets none. Longer than its waits, so that the failing wait reports its
 * condition; Bun's default is 5 s.
 */
const TEST_TIMEOUT_MS = 60_000

export type Tier = (typeof TIERS)[number]

/** The contract suite is in the broker's folder because it tests the embedded broker too. */
const INTEGRATION = ["test/integration/", "test/examples/", "test/broker/contract/"]
/** Its faults are made in a network namespace. */
const NETWORK_FAULTS = "test/faults/network.test.ts"
/** The slowest files, started first so that the others run beside them. */
const SLOWEST = [
  "test/faults/process.test.ts",
  "test/faults/broker.test.ts",
  "test/integration/bench.test.ts",
  "test/integration/amqp-absent.test.ts",
]

export function tierOf(file: string): Tier {
  if (file.startsWith("test/faults/")) return "faults"
  return INTEGRATION.some((folder) => file.startsWith(folder)) ? "integration" : "unit"
}

export interface TestRun {
  readonly passed: number
  readonly failed: number
  /** 0 when every test passed, else 1. */
  readonly status: number
  readonly output: string
}

/**
 * Runs files with one `bun test`, those that need it in a network of their own.
 *
 * @param show whether to print its output while it runs.
 * @param only runs the tests whose names contain this; files without one count nothing.
 */
export async function runTests(
  files: readonly string[],
  environment: Readonly<Record<string, string>> = {},
  { show = false, only }: { readonly show?: boolean; readonly only?: string | undefined } = {},
): Promise<TestRun> {
  const prefix = files.includes(NETWORK_FAULTS) ? ownNetwork() : []
  const paths = files.map((file) => `./${file}`)
  const named = only === undefined ? [] : ["-t", RegExp.escape(only)]
  const command = [process.execPath, "test", `--timeout=${TEST_TIMEOUT_MS}`, ...named, ...paths]
  const tests = Bun.spawn([...prefix, ...command], {
    cwd: ROOT,
    env: { ...process.env, ...environment },
    stdio: ["ignore", "pipe", "pipe"],
  })
  let output = ""
  const collect = async (stream: ReadableStream<Uint8Array>) => {
    const decoder = new TextDecoder()
    for await (const chunk of stream) {
      const text = decoder.decode(chunk, { stream: true })
      output += text
      if (show) process.stderr.write(text)
    }
  }
  await Promise.all([collect(tests.stdout), collect(tests.stderr)])
  const exitStatus = await tests.exited
  const passed = countOf(output, "pass")
  const told = countOf(output, "fail")
  // It crashed, failed outside of every test, or ended without a summary.
  const noneNamed = only !== undefined && output.includes("matched 0 tests")
  const failedElsewhere = told === 0 && !noneNamed && (exitStatus !== 0 || passed === 0)
  const failed = failedElsewhere ? 1 : told
  return { passed, failed, status: failed === 0 ? 0 : 1, output }
}

/** The last count of this name in the summary of `bun test`. */
function countOf(output: string, name: "pass" | "fail"): number {
  return Number([...output.matchAll(new RegExp(`^ *(\\d+) ${name}$`, "gm"))].at(-1)?.[1] ?? 0)
}

interface Job {
  readonly name: string
  readonly tier: Tier
  readonly files: readonly string[]
}

/** In the order in which they are begun. */
function jobsOf(tiers: readonly Tier[]): Job[] {
  const files = [...new Bun.Glob("test/**/*.test.ts").scanSync(ROOT)].sort()
  const ofTier = (tier: Tier) => files.filter((file) => tierOf(file) === tier)
  const alone = (["faults", "integration"] as const)
    .filter((tier) => tiers.includes(tier))
    .flatMap((tier) => ofTier(tier).map((file): Job => ({ name: file, tier, files: [file] })))
  const slowest = alone.filter(({ name }) => SLOWEST.includes(name))
  const others = alone.filter(({ name }) => !SLOWEST.includes(name))
  const unit = ofTier("unit")
  const units: Job[] = tiers.includes("unit")
    ? [{ name: `${unit.length} files of unit tests`, tier: "unit", files: unit }]
    : []
  return [...slowest, ...others, ...units]
}

async function main(args: readonly string[]): Promise<number> {
  const tiers = TIERS.filter((tier) => args.includes(tier))
  const unknown = args.filter((arg) => !tiers.some((tier) => tier === arg))
  if (unknown.length > 0 || tiers.length === 0) {
    console.error(`no tier ${unknown.join(", ")}; there are ${TIERS.join(", ")}`)
    return 2
  }
  const startedAtMs = performance.now()
  const jobs = jobsOf(tiers)
  let broker: Promise<PrivateBroker> | null = null
  const environmentOf = async ({ tier }: Job): Promise<Record<string, string>> => {
    if (tier !== "integration" || (process.env["TEST_AMQP_URL"] ?? "") !== "") return {}
    broker ??= startRabbitMq()
    return { TEST_AMQP_URL: (await broker).url }
  }
  const failed: string[] = []
  const sum = { passed: 0, failed: 0 }
  let next = 0
  const work = async () => {
    for (let job = jobs[next]; job !== undefined; job = jobs[next]) {
      next += 1
      const jobStartedAtMs = performance.now()
      const run = await runTests(job.files, await environmentOf(job))
      sum.passed += run.passed
      sum.failed += run.failed
      if (run.status !== 0) {
        failed.push(job.name)
        console.error(run.output)
      }
      const verdict = run.status === 0 ? "passed" : "FAILED"
      const seconds = ((performance.now() - jobStartedAtMs) / 1_000).toFixed(1)
      console.error(
        `${verdict} ${job.name}: ${run.passed} passed, ${run.failed} failed, ${seconds} s`,
      )
    }
  }
  const processes = Math.min(Math.max(PROCESSES.min, availableParallelism()), PROCESSES.max)
  try {
    await Promise.all(Array.from({ length: processes }, work))
  } finally {
    await (broker as Promise<PrivateBroker> | null)?.then((node) => node.dispose())
  }
  const seconds = ((performance.now() - startedAtMs) / 1_000).toFixed(1)
  for (const name of failed) console.error(`FAILED ${name}`)
  console.error(
    `\n ${sum.passed} pass\n ${sum.failed} fail\nRan ${tiers.join(", ")} [${seconds} s]`,
  )
  return failed.length === 0 ? 0 : 1
}

if (import.meta.main) process.exit(await main(process.argv.slice(2)))
