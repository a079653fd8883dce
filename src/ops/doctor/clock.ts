/**
 * Checks the clock of this machine: whether the kernel considers it synchronised (adjtimex(2)), and
 * how far it differs from other clocks that can be read. Pure: reads through `Machine`.
 *
 * Clocks matter: the newest connection of a device stays, by the time of its admission, and tokens
 * expire by the system's clock. AMQP does not tell the broker's time. So the broker's clock is
 * compared only with `--management` (the `Date` header of its HTTP API, in whole seconds), and the
 * clocks of other instances by their messages (`fleet.ts`).
 */

import { type Finding, ok, skipped, warning } from "./finding.ts"
import type { Machine } from "./machine.ts"

const CHECK = "clock"
/** Between connections that come within two seconds the clocks of the workers decide. */
export const MAX_DIFFERENCE_MS = 2_000
export const CLOCK_ADVICE =
  "run a time service on each machine, such as chrony or systemd-timesyncd"

export function checkKernelClock(machine: Machine): Finding[] {
  const clock = machine.kernelClock()
  if (clock === null) return [skipped(CHECK, "this system does not tell the state of its clock")]
  if (!clock.isSynchronised) {
    return [
      warning(CHECK, "the kernel's clock is not synchronised by a time service", CLOCK_ADVICE),
    ]
  }
  const error = `its maximum error is ${clock.maxErrorMs.toFixed(0)} ms`
  return [ok(CHECK, `the kernel's clock is synchronised; ${error}`)]
}

/** @param differenceMs the other clock minus this one. @param whose for example "the broker's". */
export function clockFinding(whose: string, differenceMs: number, accuracyMs: number): Finding {
  const seconds = (Math.abs(differenceMs) / 1_000).toFixed(1)
  const way = differenceMs < 0 ? "behind" : "ahead of"
  if (Math.abs(differenceMs) > MAX_DIFFERENCE_MS + accuracyMs) {
    return warning(CHECK, `${whose} clock is ${seconds} s ${way} this one`, CLOCK_ADVICE)
  }
  return ok(CHECK, `${whose} clock agrees with this one to ${MAX_DIFFERENCE_MS / 1_000} s`)
}
