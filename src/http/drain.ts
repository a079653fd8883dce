/**
 * `POST /drain`: empties the instance, which goes on running: it takes no more devices and closes
 * those it has, evenly over most of `DRAIN_TIMEOUT_MS`. `DELETE /drain`: it takes devices again.
 * `GET /health` shows how far it is.
 */

import { Hono } from "hono"
import * as v from "valibot"
import { audit } from "./audit.ts"
import type { HttpEnvironment } from "./errors.ts"
import type { RouteDescription } from "./route-description.ts"

export interface DrainDependencies {
  /** Empties all workers of the instance, or lets them take devices again. */
  readonly empty: (on: boolean) => void
}

export const DRAIN_ROUTES: readonly RouteDescription[] = [
  {
    method: "post",
    path: "/drain",
    name: "drain",
    summary: "Empties the instance: it takes no more devices and closes those it has",
    text: "The instance goes on running. /health shows how far it is.",
    answers: [
      {
        status: 202,
        text: "The drain has begun.",
        schema: v.object({ draining: v.literal(true) }),
      },
    ],
    errors: [],
  },
  {
    method: "delete",
    path: "/drain",
    name: "cancelDrain",
    summary: "Lets the instance take devices again",
    answers: [
      {
        status: 200,
        text: "It takes devices.",
        schema: v.object({ draining: v.literal(false) }),
      },
    ],
    errors: [],
  },
]

export function drain({ empty }: DrainDependencies): Hono<HttpEnvironment> {
  const routes = new Hono<HttpEnvironment>()

  routes.post("/drain", (c) => {
    empty(true)
    audit(c, { action: "drain", target: null, detail: "the instance takes no devices" })
    return c.json({ draining: true }, 202)
  })

  routes.delete("/drain", (c) => {
    empty(false)
    audit(c, { action: "drain_cancelled", target: null, detail: "the instance takes devices" })
    return c.json({ draining: false })
  })

  return routes
}
