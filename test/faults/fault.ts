/**
 * How a fault is declared: as a test whose name is the promise that it checks, and as a row of the
 * table in docs/RELIABILITY.md.
 *
 * Quick with the other tests; with `FAULTS=long` (`bun run faults`) for as long and with as many as
 * the table says. With `FAULTS_RESULTS` each fault whose promise was kept adds a line of JSON to
 * that file.
 */

import { test } from "bun:test"
import { appendFileSync } from "node:fs"

export const LONG = process.env["FAULTS"] === "long"

/** The first for the long run, the second for the one beside the other tests. */
export function sized<T>(long: T, quick: T): T {
  return LONG ? long : quick
}

/** Lets a fault last: its length is the load that is put on, and no wait for anything. */
export function last(seconds: number): Promise<void> {
  return Bun.sleep(Math.max(0, seconds * 1_000))
}

export interface Fault {
  readonly fault: string
  /** How it is made. */
  readonly made: string
  readonly promise: string
}

/** What was measured while the promise was checked; the unit is in the name. */
export type Figures = Readonly<Record<string, number | string>>

export interface FaultResult extends Fault {
  readonly figures: Figures
  readonly tookMs: number
}

/** @param limitMs of the whole test, which is no figure: a hang becomes a failure. */
export function fault(described: Fault, act: () => Promise<Figures>, limitMs: number): void {
  test(
    `${described.fault}: ${described.promise}`,
    async () => {
      const startedAtMs = performance.now()
      const figures = await act()
      const result: FaultResult = {
        ...described,
        figures,
        tookMs: Math.round(performance.now() - startedAtMs),
      }
      const file = process.env["FAULTS_RESULTS"] ?? ""
      if (file !== "") appendFileSync(file, `${JSON.stringify(result)}\n`)
    },
    limitMs,
  )
}
