/**
 * `GET /devices`, `GET /devices/:id` and `DELETE /devices/:id/connection`: the fleet's connections, asked
 * of every worker of every instance, or of the one that holds the device.
 *
 * A request ends when its client hangs up; what was not done by then is not done. Bound: `MAX_LIMIT` devices a
 * page.
 */

import { type Context, Hono } from "hono"
import * as v from "valibot"
import { DEVICE_ID } from "../device/ids.ts"
import type { DeviceView } from "../fleet/device-view.ts"
import type { FleetQuery, FleetQueryFailure } from "../fleet/fleet-query.ts"
import { type HttpEnvironment, refuse } from "./errors.ts"

const MAX_LIMIT = 1_000
const DEFAULT_LIMIT = 100

export interface FleetDependencies {
  readonly fleetQuery: Pick<FleetQuery, "list" | "describe" | "kick">
}

const LIMIT_RULE = `must be a whole number from 1 to ${MAX_LIMIT}`
/** The beginning of a device id, or all of one. */
const partOfId = v.optional(
  v.pipe(v.string(), v.regex(/^[A-Za-z0-9._:-]{0,128}$/, "must be characters of a device id")),
  "",
)
const query = v.object({
  limit: v.optional(
    v.pipe(
      v.string(),
      v.regex(/^[0-9]{1,4}$/, LIMIT_RULE),
      v.transform(Number),
      v.minValue(1, LIMIT_RULE),
      v.maxValue(MAX_LIMIT, LIMIT_RULE),
    ),
    String(DEFAULT_LIMIT),
  ),
  prefix: partOfId,
  after: partOfId,
})

export function fleet({ fleetQuery }: FleetDependencies): Hono<HttpEnvironment> {
  const routes = new Hono<HttpEnvironment>()

  routes.get("/devices", async (c) => {
    const checked = v.safeParse(query, c.req.query())
    if (!checked.success) {
      const faults = checked.issues.map((issue) => `${v.getDotPath(issue)}: ${issue.message}`)
      return refuse(c, "invalid", faults.join("; "))
    }
    const listed = await fleetQuery.list(checked.output, c.req.raw.signal)
    return typeof listed === "string" ? fail(c, listed) : c.json(listed)
  })
  routes.get("/devices/:id", (c) => one(c, (id, caller) => fleetQuery.describe(id, caller)))
  routes.delete("/devices/:id/connection", (c) =>
    one(c, (id, caller) => fleetQuery.kick(id, caller)),
  )

  return routes
}

async function one(
  c: Context<HttpEnvironment>,
  act: (id: string, caller: AbortSignal) => Promise<DeviceView | null | FleetQueryFailure>,
): Promise<Response> {
  const id = c.req.param("id") ?? ""
  if (!DEVICE_ID.test(id)) return refuse(c, "invalid", `the id must match ${DEVICE_ID.source}`)
  const device = await act(id, c.req.raw.signal)
  if (device === null)
    return refuse(c, "not_found", "no worker that answered holds this device or connection")
  return typeof device === "string" ? fail(c, device) : c.json(device)
}

function fail(c: Context<HttpEnvironment>, failure: FleetQueryFailure): Response {
  switch (failure) {
    case "unreachable":
      return refuse(
        c,
        "broker_away",
        "the broker is not available, and requests for other workers go through it",
      )
    case "timeout":
      return refuse(c, "timeout", "the worker that holds it did not answer in time")
    case "busy":
      return refuse(c, "busy", "too many questions wait for answers")
  }
}
