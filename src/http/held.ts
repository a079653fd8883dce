/**
 * Held commands of a device.
 *
 *   GET /devices/:id/held[?body=1]             {held: [...]}, in the order in which they are written
 *   DELETE /devices/:id/held                   {cancelled: n}
 *   DELETE /devices/:id/held/:message_id       {cancelled: n}
 *
 * Any worker answers: it asks the keeper of the device's shard. Bound: those of the held query.
 */

import { type Context, Hono } from "hono"
import * as v from "valibot"
import { DEVICE_ID } from "../device/ids.ts"
import { type HeldQuery, type HeldQueryFailure, heldRowSchema } from "../fleet/held-query.ts"
import { bodyFaults } from "./body-faults.ts"
import { type HttpEnvironment, refuse } from "./errors.ts"
import type { DescribedError, RouteDescription } from "./route-description.ts"

export interface HeldDependencies {
  readonly heldQuery: Pick<HeldQuery, "list" | "cancel">
}

const query = v.object({ body: v.optional(v.picklist(["0", "1"], "must be 0 or 1"), "0") })
const listed = v.object({ held: v.array(heldRowSchema) })
const cancelled = v.object({ cancelled: v.pipe(v.number(), v.integer(), v.minValue(0)) })
const ERRORS: readonly DescribedError[] = ["invalid", "broker_away", "busy", "timeout"]

export const HELD_ROUTES: readonly RouteDescription[] = [
  {
    method: "get",
    path: "/devices/:id/held",
    name: "listHeldCommands",
    summary: "The held commands of a device, in the order in which they are written",
    text: "With body=1 also their lines, in base64 when they are not UTF-8.",
    query,
    answers: [{ status: 200, text: "The held commands.", schema: listed }],
    errors: ERRORS,
  },
  {
    method: "delete",
    path: "/devices/:id/held",
    name: "cancelHeldCommands",
    summary: "Cancels all held commands of a device",
    answers: [{ status: 200, text: "How many were cancelled.", schema: cancelled }],
    errors: ERRORS,
  },
  {
    method: "delete",
    path: "/devices/:id/held/:message_id",
    name: "cancelHeldCommand",
    summary: "Cancels one held command of a device",
    answers: [{ status: 200, text: "How many were cancelled: 0 or 1.", schema: cancelled }],
    errors: ERRORS,
  },
]

export function held({ heldQuery }: HeldDependencies): Hono<HttpEnvironment> {
  const routes = new Hono<HttpEnvironment>()

  routes.get("/devices/:id/held", async (c) => {
    const id = c.req.param("id")
    if (!DEVICE_ID.test(id)) return refuseId(c)
    const checked = v.safeParse(query, c.req.query())
    if (!checked.success) {
      return refuse(c, "invalid", bodyFaults(checked.issues, query.entries))
    }
    const listed = await heldQuery.list(id, checked.output.body === "1", c.req.raw.signal)
    return typeof listed === "string" ? fail(c, listed) : c.json({ held: listed })
  })

  const cancel = async (c: Context<HttpEnvironment>, messageId: string | null) => {
    const id = c.req.param("id") ?? ""
    if (!DEVICE_ID.test(id)) return refuseId(c)
    const cancelled = await heldQuery.cancel(id, messageId, c.req.raw.signal)
    return typeof cancelled === "string" ? fail(c, cancelled) : c.json({ cancelled })
  }
  routes.delete("/devices/:id/held", (c) => cancel(c, null))
  routes.delete("/devices/:id/held/:message_id", (c) => cancel(c, c.req.param("message_id")))

  return routes
}

function refuseId(c: Context<HttpEnvironment>): Response {
  return refuse(c, "invalid", `the id must match ${DEVICE_ID.source}`)
}

function fail(c: Context<HttpEnvironment>, failure: HeldQueryFailure): Response {
  switch (failure) {
    case "unreachable":
      return refuse(
        c,
        "broker_away",
        "the broker is not available, and held commands are stored there",
      )
    case "timeout":
      return refuse(c, "timeout", "the worker that keeps the held commands did not answer in time")
    case "busy":
      return refuse(c, "busy", "too many requests wait for other workers")
    case "reading":
      return refuse(c, "busy", "the held commands of this device are being read from the broker")
  }
}
