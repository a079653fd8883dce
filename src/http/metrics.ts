/**
 * `GET /metrics`: metrics in the Prometheus text format, summed over the processes of the instance.
 *
 * The supervisor sums the counters of the workers. The counters of one worker alone would be lower
 * than the last sum, and Prometheus takes that for a restart. So the response is 503 while the
 * supervisor does not answer.
 */

import { Hono } from "hono"
import { type HttpEnvironment, refuse } from "./errors.ts"

export interface MetricsDependencies {
  /** Null when the supervisor does not answer. */
  readonly metricsText: () => Promise<string | null>
}

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
