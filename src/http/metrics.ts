/** `GET /metrics`: Prometheus text, summed over the processes of the instance. */

import { Hono } from "hono"

export interface MetricsDependencies {
  readonly metricsText: () => Promise<string>
}

export function metrics({ metricsText }: MetricsDependencies): Hono {
  const routes = new Hono()
  routes.get("/metrics", async (c) => {
    c.header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
    return c.body(await metricsText())
  })
  return routes
}
