/**
 * `GET /fleet`: the fleet as the worker that answers sees it. Asks no other worker.
 */

import { Hono } from "hono"
import * as v from "valibot"
import type { FleetView } from "../fleet/fleet-view.ts"
import type { RouteDescription } from "./route-description.ts"

export interface FleetDependencies {
  readonly fleetView: () => FleetView
}

const count = v.pipe(v.number(), v.integer(), v.minValue(0))
const fleetSchema = v.object({
  worker: v.string(),
  connected: v.boolean(),
  shards: count,
  shards_without_keeper: v.array(count),
  has_foreign: v.boolean(),
  members: v.array(
    v.object({
      worker: v.string(),
      instance: v.string(),
      state: v.picklist(["self", "heard_of", "silent", "left"]),
      held: count,
      admits_per_s: v.number(),
      shards: v.array(count),
    }),
  ),
}) satisfies v.GenericSchema<unknown, FleetView>

export const FLEET_ROUTES: readonly RouteDescription[] = [
  {
    method: "get",
    path: "/fleet",
    name: "getFleet",
    summary: "The fleet as the worker that answers sees it",
    answers: [
      { status: 200, text: "Its members, and who keeps which shards.", schema: fleetSchema },
    ],
    errors: [],
  },
]

export function fleet({ fleetView }: FleetDependencies): Hono {
  const routes = new Hono()
  routes.get("/fleet", (c) => c.json(fleetView()))
  return routes
}
