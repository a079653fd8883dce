/**
 * The settings of the gateway's systemd unit, from `systemctl show`. Pure: runs the command through
 * `Machine`.
 */

import type { Machine } from "./machine.ts"

export const DEFAULT_UNIT = "owsla.service"

export interface SystemdUnit {
  readonly name: string
  /** Null when the output does not contain it; infinite without a limit. */
  readonly openFiles: number | null
  /** How long systemd waits after SIGTERM; infinite without a limit. */
  readonly stopTimeoutMs: number | null
  /** Whether SIGTERM goes to the main process only. */
  readonly signalsMainOnly: boolean
}

const UNITS_MS: Readonly<Record<string, number>> = {
  ms: 1,
  s: 1_000,
  min: 60_000,
  h: 3_600_000,
  d: 86_400_000,
}

/** Null when this machine has no such unit, or no systemd. */
export function readSystemdUnit(machine: Machine, name: string): SystemdUnit | null {
  const properties = "--property=LoadState,LimitNOFILESoft,TimeoutStopUSec,KillMode"
  const output = machine.output(["systemctl", "show", properties, "--", name])
  if (output === null) return null
  const values = new Map(
    output.split("\n").map((line) => {
      const at = line.indexOf("=")
      return [line.slice(0, at), line.slice(at + 1)] as const
    }),
  )
  if (values.get("LoadState") !== "loaded") return null
  return {
    name,
    openFiles: countIn(values.get("LimitNOFILESoft")),
    stopTimeoutMs: durationMs(values.get("TimeoutStopUSec")),
    signalsMainOnly: ["mixed", "process"].includes(values.get("KillMode") ?? ""),
  }
}

function countIn(text: string | undefined): number | null {
  if (text === "infinity") return Number.POSITIVE_INFINITY
  return text !== undefined && /^\d+$/.test(text) ? Number(text) : null
}

/** As in `1min 30s` (systemd.time(7)). */
export function durationMs(text: string | undefined): number | null {
  if (text === undefined || text === "") return null
  if (text === "infinity") return Number.POSITIVE_INFINITY
  let sum = 0
  for (const part of text.split(" ")) {
    const [, digits = "", unit = ""] = /^(\d+)([a-z]+)$/.exec(part) ?? []
    const unitMs = UNITS_MS[unit]
    if (digits === "" || unitMs === undefined) return null
    sum += Number(digits) * unitMs
  }
  return sum
}
