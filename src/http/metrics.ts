/**
 * `GET /metrics`: Prometheus text, summed over the processes of the instance.
 *
 * Without the supervisor there is no sum, and the counters of one worker alone would be lower than the last sum: 503 then.
 */

import { Hono } from "hono"
import { type HttpEnvironment, refuse } from "./errors.ts"

export interface MetricsDependencies {
  /** Null when the other processes cannot be asked. */
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
