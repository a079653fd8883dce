/**
 * The routes of `METRICS_PORT`, which need no token:
 *
 *   GET /metrics   the metrics of the instance, as on the main port
 *   GET /live      200 while the worker that answers serves HTTP
 *   GET /ready     whether this worker takes devices, with codes only
 *
 * For scrapers and health checks that cannot send a token. On loopback a browser could reach them
 * too, so the rules of `loopback-requests.ts` apply there. On other addresses the network decides
 * who reaches the port. Nothing here changes anything, names a device or contains an address.
 */

import { Hono } from "hono"
import type { Counters } from "../counters.ts"
import type { WorkerReport } from "../process/control.ts"
import { answerErrors, countErrors, type HttpEnvironment } from "./errors.ts"
import { readiness } from "./health.ts"
import { type MetricsDependencies, metrics } from "./metrics.ts"
import { refuseOtherSources } from "./other-sources.ts"

const ONLY_LOCAL =
  "METRICS_HOST is loopback, so only programs on this machine are served: use a URL with localhost, 127.0.0.1 or [::1], and no page of another site"

export interface MetricsAppDependencies extends MetricsDependencies {
  readonly isLoopback: boolean
  readonly counters: Counters
  /** This worker's own report. */
  readonly report: () => WorkerReport
  /** An exception occurred while a request was handled. */
  readonly fault: (error: Error) => void
}

export function metricsApp(dependencies: MetricsAppDependencies): Hono<HttpEnvironment> {
  const { counters, report, fault, isLoopback } = dependencies
  const routes = new Hono<HttpEnvironment>()
  routes.use(countErrors(counters))
  if (isLoopback) routes.use(refuseOtherSources(ONLY_LOCAL))
  routes.get("/live", (c) => c.json({ live: true }))
  routes.route(
    "/",
    readiness(report, () => "none"),
  )
  routes.route("/", metrics(dependencies))
  answerErrors(routes, fault)
  return routes
}
