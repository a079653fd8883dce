/**
 * `POST /drain`: empties the instance, which goes on running: it takes no more devices and closes
 * those it has, evenly over most of `DRAIN_TIMEOUT_MS`. `DELETE /drain`: it takes devices again.
 * `GET /health` shows how far it is.
 */

import { Hono } from "hono"

export interface DrainDependencies {
  /** Empties all workers of the instance, or lets them take devices again. */
  readonly empty: (on: boolean) => void
}

export function drain({ empty }: DrainDependencies): Hono {
  const routes = new Hono()

  routes.post("/drain", (c) => {
    empty(true)
    return c.json({ draining: true }, 202)
  })

  routes.delete("/drain", (c) => {
    empty(false)
    return c.json({ draining: false })
  })

  return routes
}
