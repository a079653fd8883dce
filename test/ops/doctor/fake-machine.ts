/** A machine for the checks of the doctor, made of files, commands and a clock. */

import type { KernelClock, Machine } from "../../../src/ops/doctor/machine.ts"

export interface FakeMachineParts {
  readonly files?: Readonly<Record<string, string>>
  /** The output of each command, whatever its arguments; others fail. */
  readonly outputs?: Readonly<Record<string, string>>
  readonly clock?: KernelClock | null
}

export function fakeMachine({ files = {}, outputs = {}, clock = null }: FakeMachineParts): Machine {
  return {
    read: (path) => files[path] ?? null,
    output: ([program = ""]) => outputs[program] ?? null,
    kernelClock: () => clock,
  }
}
