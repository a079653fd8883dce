/**
 * `GET /health`: the state of the process. `GET /ready`: whether this worker accepts devices, lines
 * and commands now.
 *
 * Neither route needs a token. When tokens are set, a request without one gets only codes from
 * closed lists, and does not query other workers. Process ids, names, counts and error texts of the
 * broker or the client library need a token, because they may contain addresses and user names.
 */

import { Hono } from "hono"
import type { CloseReason } from "../device/close-reason.ts"
import type { GateState } from "../fleet/gate.ts"
import type { WorkerReport } from "../process/control.ts"
import type { AccessOf } from "./authorization.ts"
import { shownGate } from "./rules.ts"

export interface HealthDependencies {
  readonly gate: () => GateState
  readonly version: string
  readonly startedAtMs: number
  readonly nowMs: () => number
  /** This worker's own report. */
  readonly report: () => WorkerReport
  /** The reports of all workers of the instance that answered in time. */
  readonly reports: () => Promise<readonly WorkerReport[]>
}

/** Why a worker is not ready. */
type ReasonCode =
  | "draining"
  | "broker_unavailable"
  | "broker_blocked"
  | "consuming_paused"
  | CloseReason

interface Unready {
  readonly code: ReasonCode
  /** For requests that have a token or need none. */
  readonly text: string
}

export function health(
  { version, startedAtMs, nowMs, report, reports, gate }: HealthDependencies,
  accessOf: AccessOf,
): Hono {
  const routes = new Hono()

  routes.get("/health", async (c) => {
    const own = report()
    const status = own.state === "serving" ? "ok" : own.state
    if (accessOf(c.req.header("authorization")) === "none") {
      return c.json({ status, broker: own.broker.kind, reason: unready(own)?.code ?? null })
    }
    const workers = await reports()
    return c.json({
      status,
      version,
      uptime_s: Math.floor((nowMs() - startedAtMs) / 1000),
      broker: own.broker.kind,
      connections: sum(workers, ({ connections }) => connections),
      waiting: sum(workers, ({ admission }) => admission.waiting),
      estimated_wait_ms: allInMs(workers),
      gate: shownGate(gate()),
      draining: drainingOf(workers),
      workers,
    })
  })

  routes.get("/ready", (c) => {
    const why = unready(report())
    if (why === null) return c.json({ ready: true })
    const isStranger = accessOf(c.req.header("authorization")) === "none"
    const reason = isStranger ? why.code : why.text
    return c.json({ ready: false, reason }, 503)
  })

  return routes
}

/** Null when the worker takes devices and commands and the broker takes messages. */
function unready(report: WorkerReport): Unready | null {
  const { state, broker, consuming_paused: consumingPaused, refusing } = report
  if (state !== "serving") return { code: state, text: state }
  if (broker.kind !== "ready") {
    const code = broker.kind === "blocked" ? "broker_blocked" : "broker_unavailable"
    const reason = broker.reason === undefined ? "" : `: ${broker.reason}`
    return { code, text: `broker ${broker.kind}${reason}` }
  }
  if (consumingPaused) {
    const text =
      "consuming commands is paused: unacknowledged commands have reached MAX_COMMAND_BYTES"
    return { code: "consuming_paused", text }
  }
  if (refusing !== null) return { code: refusing, text: `devices are refused: ${refusing}` }
  return null
}

/** How far the drain of the instance is; null while there is none. */
function drainingOf(workers: readonly WorkerReport[]) {
  const drains = workers.flatMap(({ drain }) => drain ?? [])
  if (drains.length === 0) return null
  return {
    closed: drains.reduce((sum, { closed }) => sum + closed, 0),
    left: drains.reduce((sum, { left }) => sum + left, 0),
    ends_at: Math.max(...drains.map(({ ends_at }) => ends_at)),
  }
}

function sum(workers: readonly WorkerReport[], of: (worker: WorkerReport) => number): number {
  return workers.reduce((sum, worker) => sum + of(worker), 0)
}

/**
 * Estimated time until the last waiting device has completed its handshake; null when unknown for
 * some worker.
 */
function allInMs(workers: readonly WorkerReport[]): number | null {
  const each = workers.map(({ admission }) => admission.estimated_wait_ms ?? 0)
  const unknown = workers.some(({ admission }) => admission.estimated_wait_ms === null)
  return unknown ? null : Math.max(0, ...each)
}
