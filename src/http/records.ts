/**
 * What the fleet remembers of connections that have ended.
 *
 *   GET /refusals?limit=            connections that did not become devices, the newest first
 *   GET /devices/:id/connections    the latest connections of one device, the newest first
 *
 * Any worker answers for the whole fleet. Bounds: those of `records-query.ts`.
 */

import { type Context, Hono } from "hono"
import * as v from "valibot"
import { DEVICE_ID } from "../device/ids.ts"
import type { QuestionFailure } from "../fleet/questions.ts"
import {
  type ConnectionList,
  connectionViewSchema,
  type RecordsQuery,
  type RefusalList,
  refusalViewSchema,
} from "../fleet/records-query.ts"
import { type HttpEnvironment, refuse } from "./errors.ts"
import { limitOf } from "./query-limit.ts"
import type { DescribedError, RouteDescription } from "./route-description.ts"

export interface RecordsDependencies {
  readonly records: Pick<RecordsQuery, "refusals" | "connections">
}

const query = v.object({ limit: limitOf({ max: 1_000, byDefault: 100 }) })

const count = v.pipe(v.number(), v.integer(), v.minValue(0))
const coverage = { answered: count, workers: count }
const refusalList = v.object({
  refusals: v.array(refusalViewSchema),
  ...coverage,
}) satisfies v.GenericSchema<unknown, RefusalList>
const connectionList = v.object({
  connections: v.array(connectionViewSchema),
  ...coverage,
}) satisfies v.GenericSchema<unknown, ConnectionList>
const FAILURES: readonly DescribedError[] = ["invalid", "broker_away", "timeout", "busy"]

export const RECORDS_ROUTES: readonly RouteDescription[] = [
  {
    method: "get",
    path: "/refusals",
    name: "listRefusals",
    summary: "The latest connections of the fleet that did not become devices, the newest first",
    text: "`reason` is a close reason. `device_id` is the id that the device has proven or claimed. The list is complete when `answered` equals `workers`.",
    query,
    answers: [{ status: 200, text: "The list.", schema: refusalList }],
    errors: FAILURES,
  },
  {
    method: "get",
    path: "/devices/:id/connections",
    name: "listConnections",
    summary: "The latest connections of a device and why they ended, the newest first",
    text: "`disconnected_at` and `reason` are null while a connection is open. The list is complete when `answered` equals `workers`.",
    answers: [{ status: 200, text: "The list.", schema: connectionList }],
    errors: FAILURES,
  },
]

export function records({ records }: RecordsDependencies): Hono<HttpEnvironment> {
  const routes = new Hono<HttpEnvironment>()

  routes.get("/refusals", async (c) => {
    const checked = v.safeParse(query, c.req.query())
    if (!checked.success) return refuse(c, "invalid", `limit: ${checked.issues[0].message}`)
    const listed = await records.refusals(checked.output.limit, c.req.raw.signal)
    return typeof listed === "string" ? fail(c, listed) : c.json(listed)
  })

  routes.get("/devices/:id/connections", async (c) => {
    const id = c.req.param("id")
    if (!DEVICE_ID.test(id)) return refuse(c, "invalid", `the id must match ${DEVICE_ID.source}`)
    const listed = await records.connections(id, c.req.raw.signal)
    return typeof listed === "string" ? fail(c, listed) : c.json(listed)
  })

  return routes
}

function fail(c: Context<HttpEnvironment>, failure: QuestionFailure): Response {
  switch (failure) {
    case "unreachable":
      return refuse(
        c,
        "broker_away",
        "the broker is not available, and the other workers are asked through it",
      )
    case "timeout":
      return refuse(c, "timeout", "the client closed the connection")
    case "busy":
      return refuse(c, "busy", "too many requests wait for other workers")
  }
}
