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
      connections: workers.reduce((sum, worker) => sum + worker.connections, 0),
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
