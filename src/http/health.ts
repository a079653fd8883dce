/**
 * `GET /health` and `GET /ready`: whether the process serves, and whether devices and messages would
 * be taken right now. Never guarded by a token, so they say nothing that needs one.
 */

import { Hono } from "hono"
import type { WorkerReport } from "../control.ts"

export interface HealthDependencies {
  readonly version: string
  readonly startedAtMs: number
  readonly nowMs: () => number
  /** This worker's own report. */
  readonly report: () => WorkerReport
  /** The reports of all workers of the instance that answered in time. */
  readonly reports: () => Promise<readonly WorkerReport[]>
}

export function health({ version, startedAtMs, nowMs, report, reports }: HealthDependencies): Hono {
  const routes = new Hono()

  routes.get("/health", async (c) => {
    const workers = await reports()
    const own = report()
    return c.json({
      status: own.state === "serving" ? "ok" : own.state,
      version,
      uptime_s: Math.floor((nowMs() - startedAtMs) / 1000),
      broker: own.broker.is,
      connections: sum(workers, ({ connections }) => connections),
      waiting: sum(workers, ({ admission }) => admission?.waiting ?? 0),
      all_in_ms: allInMs(workers),
      workers,
    })
  })

  routes.get("/ready", (c) => {
    const { state, broker, refusing = null } = report()
    if (state !== "serving") return c.json({ ready: false, reason: state }, 503)
    if (broker.is !== "ready") {
      const reason = `broker ${broker.is}${broker.reason === undefined ? "" : `: ${broker.reason}`}`
      return c.json({ ready: false, reason }, 503)
    }
    if (refusing !== null) {
      return c.json({ ready: false, reason: `devices are refused: ${refusing}` }, 503)
    }
    return c.json({ ready: true })
  })

  return routes
}

function sum(workers: readonly WorkerReport[], of: (worker: WorkerReport) => number): number {
  return workers.reduce((sum, worker) => sum + of(worker), 0)
}

/** When the last device that waits will be in, as far as is known. */
function allInMs(workers: readonly WorkerReport[]): number | null {
  const each = workers.map(({ admission }) => admission?.all_in_ms ?? 0)
  const unknown = workers.some(({ admission }) => admission?.all_in_ms === null)
  return unknown ? null : Math.max(0, ...each)
}
