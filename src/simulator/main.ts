/**
 * `bun run simulate`: devices, and optionally a back-end, that use a gateway; `bun run simulate
 * verify`: judges by their ledgers whether every line arrived; `bun run simulate replay`: sends the
 * lines of a recorded tape again.
 *
 * For users and tests; not a part of the gateway. It reads no environment and prints no secret.
 * Exit status: 0 passed, 1 a promise was broken or devices could not do their part, 2 faulty flags.
 */

import { onStopSignals } from "../process/signals.ts"
import { CredentialsError } from "./credentials.ts"
import { usage } from "./flags.ts"
import { LedgerError, readLedger } from "./ledger-reader.ts"
import {
  parseRequest,
  type ReplayOptions,
  type RunOptions,
  UsageError,
  type VerifyOptions,
} from "./options.ts"
import { progress } from "./progress.ts"
import { ReplayError, replay, replayText } from "./replay.ts"
import { runText, verdictText } from "./report.ts"
import { Simulation } from "./simulation.ts"
import { TapeFileError } from "./tape-file.ts"
import { judge } from "./verdict.ts"

if (import.meta.main) process.exit(await main(process.argv.slice(2)))

/** Runs the request of `args`, writes to stdout and stderr, and returns the exit status. */
export async function main(args: readonly string[]): Promise<0 | 1 | 2> {
  try {
    const request = parseRequest(args)
    switch (request.kind) {
      case "help":
        console.log(usage())
        return 0
      case "run":
        return await simulate(request.options)
      case "verify":
        return await verify(request.options)
      case "replay":
        return await sendAgain(request.options)
    }
  } catch (error) {
    if (error instanceof UsageError) {
      console.error(`${error.message}\nbun run simulate --help shows the flags`)
      return 2
    }
    if (
      error instanceof CredentialsError ||
      error instanceof LedgerError ||
      error instanceof TapeFileError
    ) {
      console.error(error.message)
      return 2
    }
    if (error instanceof ReplayError) {
      console.error(error.message)
      return 1
    }
    // An error without a code is a defect of this program, shown with its stack.
    if (!(error instanceof Error && "code" in error)) throw error
    console.error(error.message)
    return 1
  }
}

async function simulate(options: RunOptions): Promise<0 | 1> {
  const simulation = new Simulation(options, progress(process.stderr, options.json))
  const stop = () => simulation.stop()
  onStopSignals(stop, stop)
  const report = await simulation.run()
  console.log(options.json ? JSON.stringify(report) : runText(report))
  return report.faults.length === 0 ? 0 : 1
}

async function sendAgain(options: ReplayOptions): Promise<0> {
  const report = await replay(options)
  console.log(options.json ? JSON.stringify(report) : replayText(report))
  return 0
}

async function verify(options: VerifyOptions): Promise<0 | 1> {
  const verdict = judge(await readLedger(options.ledger), options)
  console.log(options.json ? JSON.stringify(verdict) : verdictText(verdict))
  return verdict.kept ? 0 : 1
}
