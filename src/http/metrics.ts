/**
 * `GET /metrics`: metrics in the Prometheus text format, summed over the processes of the instance.
 *
 * The supervisor sums the counters of the workers. The counters of one worker alone would be lower
 * than the last sum, and Prometheus takes that for a restart. So the response is 503 while the
 * supervisor does not answer.
 */

import { Hono } from "hono"
import * as v from "valibot"
import { type HttpEnvironment, refuse } from "./errors.ts"
import type { RouteDescription } from "./route-description.ts"

export interface MetricsDependencies {
  /** Null when the supervisor does not answer. */
  readonly metricsText: () => Promise<string | null>
}

export const METRICS_ROUTES: readonly RouteDescription[] = [
  {
    method: "get",
    path: "/metrics",
    name: "getMetrics",
    summary: "The metrics of the instance in the Prometheus text format",
    answers: [{ status: 200, text: "All metrics.", mediaType: "text/plain", schema: v.string() }],
    errors: ["busy"],
  },
]

export function metrics({ metricsText }: MetricsDependencies): Hono<HttpEnvironment> {
  const routes = new Hono<HttpEnvironment>()
  routes.get("/metrics", async (c) => {
    const text = await metricsText()
    if (text === null) return refuse(c, "busy", "the supervisor does not answer")
    c.header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
    return c.body(text)
  })
  return routes
}
