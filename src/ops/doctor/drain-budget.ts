/**
 * Checks the time that the platform gives a stopping process against `DRAIN_TIMEOUT_MS`: systemd's
 * `TimeoutStopSec`, Fly.io's `kill_timeout`, the grace period of Kubernetes, Docker and Podman.
 * Pure: reads through `Machine`.
 *
 * A process cannot read the last three from within, so their defaults are named.
 */

import type { Config, Platform } from "../../config/config.ts"
import { type Finding, failure, ok, skipped, warning } from "./finding.ts"
import type { Machine } from "./machine.ts"
import { durationMs, type SystemdUnit } from "./systemd-unit.ts"

const CHECK = "drain"
/** After a drain the supervisor waits for the broker connections to close, then ends. */
const GRACE_MS = 10_000
const FLY_DEFAULT_MS = 5_000
const FLY_MAX_MS = 300_000
const KUBERNETES_DEFAULT_MS = 30_000
/** Docker and Podman have the same default. */
const CONTAINER_DEFAULT_MS = 10_000
/** A file that the engine puts into each container. */
const CONTAINER_FILES = [
  ["Docker", "/.dockerenv"],
  ["Podman", "/run/.containerenv"],
] as const
const FLY_FILE = "fly.toml"

export interface DrainBudgetOptions {
  readonly config: Config
  readonly platform: Platform
  readonly machine: Machine
  readonly unit: SystemdUnit | null
}

export function checkDrainBudget({
  config,
  platform,
  machine,
  unit,
}: DrainBudgetOptions): Finding[] {
  const neededMs = config.drainTimeoutMs + GRACE_MS
  const needs = `DRAIN_TIMEOUT_MS=${config.drainTimeoutMs} needs ${neededMs / 1_000} s`
  if (unit !== null) return systemd(unit, neededMs, needs)
  if (platform.isFly) return fly(machine, neededMs, needs)
  if (platform.isKubernetes) {
    return hidden("Kubernetes", "terminationGracePeriodSeconds", KUBERNETES_DEFAULT_MS, neededMs)
  }
  for (const [engine, file] of CONTAINER_FILES) {
    if (machine.read(file) === null) continue
    return hidden(
      engine,
      `the time of ${engine.toLowerCase()} stop`,
      CONTAINER_DEFAULT_MS,
      neededMs,
    )
  }
  return [skipped(CHECK, `the platform is not known; ${needs} between SIGTERM and SIGKILL`)]
}

function systemd(unit: SystemdUnit, neededMs: number, needs: string): Finding[] {
  const { name, stopTimeoutMs, signalsMainOnly } = unit
  const findings: Finding[] = []
  if (stopTimeoutMs === null) findings.push(skipped(CHECK, `${name} shows no TimeoutStopSec`))
  else if (stopTimeoutMs < neededMs) {
    findings.push(
      failure(
        CHECK,
        `TimeoutStopSec of ${name} is ${stopTimeoutMs / 1_000} s: systemd kills the gateway while it drains; ${needs}`,
        `set TimeoutStopSec=${Math.ceil(neededMs / 1_000)} in the unit, or lower DRAIN_TIMEOUT_MS`,
      ),
    )
  } else {
    findings.push(ok(CHECK, `TimeoutStopSec of ${name} is ${stopTimeoutMs / 1_000} s; ${needs}`))
  }
  if (!signalsMainOnly) {
    const message = `KillMode of ${name} signals the workers too, not only their supervisor`
    findings.push(warning(CHECK, message, "set KillMode=mixed in the unit"))
  }
  return findings
}

function fly(machine: Machine, neededMs: number, needs: string): Finding[] {
  const text = machine.read(FLY_FILE)
  if (text === null) return hidden("Fly.io", "kill_timeout in fly.toml", FLY_DEFAULT_MS, neededMs)
  const { kill_timeout: given = FLY_DEFAULT_MS / 1_000 } = Bun.TOML.parse(text) as {
    kill_timeout?: string | number
  }
  const givenMs = typeof given === "number" ? given * 1_000 : (durationMs(given) ?? 0)
  const shown = `kill_timeout in ${FLY_FILE} is ${givenMs / 1_000} s`
  if (Math.min(givenMs, FLY_MAX_MS) >= neededMs) return [ok(CHECK, `${shown}; ${needs}`)]
  const advice = `set kill_timeout = "${Math.ceil(neededMs / 1_000)}s" (300 at most), or lower DRAIN_TIMEOUT_MS`
  return [failure(CHECK, `${shown}: Fly.io kills the gateway while it drains; ${needs}`, advice)]
}

/** The platform's time cannot be read from within. */
function hidden(platform: string, what: string, defaultMs: number, neededMs: number): Finding[] {
  const needs = `${Math.ceil(neededMs / 1_000)} s are needed`
  const byDefault = `by default ${what} is ${defaultMs / 1_000} s`
  const message = `${platform} does not tell a process its grace period: ${byDefault}, and ${needs}`
  if (defaultMs >= neededMs) return [ok(CHECK, message)]
  return [warning(CHECK, message, `make sure that it is at least ${Math.ceil(neededMs / 1_000)} s`)]
}
