/** An example that a scenario runs: its program, and the faults that the scenario has found. */

import { until } from "../support/wait.ts"
import type { Built } from "./finding.ts"
import { type Example, Program } from "./programs.ts"

/** Of a wait. A virtual machine may start slowly beside others. */
export const STEP_MS = 45_000

export class Subject {
  readonly example: Example
  readonly program: Program
  readonly faults: string[] = []

  constructor({ example, directory }: Built, settings: Readonly<Record<string, string>>) {
    this.example = example
    this.program = new Program(example, directory, settings)
  }

  /**
   * A condition that does not come becomes a fault of this example. After a fault no wait follows,
   * so that the other examples do not wait for this one.
   */
  async reaches(what: string, condition: () => unknown): Promise<void> {
    if (this.faults.length > 0) return
    await until(async () => condition(), { what, timeoutMs: STEP_MS }).catch(() =>
      this.fault(`no ${what}; it printed ${JSON.stringify(this.program.lines.slice(-5))}`),
    )
  }

  fault(what: string): void {
    this.faults.push(what)
  }
}
