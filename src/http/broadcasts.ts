/**
 * `POST /broadcasts`: one line for all devices that are connected now, or for some of them.
 *
 * The response has the counts once the last line has its outcome, or those so far after
 * `SEND_TIMEOUT_MS`; the broadcast goes on then, and also when the client has closed the
 * connection. Bounds: `MAX_BROADCAST_IDS` ids; those of `broadcasts.ts`.
 */

import { type Context, Hono } from "hono"
import * as v from "valibot"
import { MAX_OPTION_BYTES } from "../commands/command-options.ts"
import { bodyFault } from "../device/command.ts"
import type { LineFormat } from "../device/framing.ts"
import { DEVICE_ID } from "../device/ids.ts"
import {
  type BroadcastCounts,
  type BroadcastRequest,
  type BroadcastResult,
  DEFAULT_PER_S,
  MAX_BROADCAST_IDS,
  MAX_BROADCASTS,
  MAX_PER_S,
  shownCounts,
} from "../fleet/broadcast-request.ts"
import { type AuditAct, audit } from "./audit.ts"
import { NOT_AN_OBJECT, readJson, wellFormed, wholeNumber } from "./body-faults.ts"
import { type HttpEnvironment, refuse } from "./errors.ts"
import type { RouteDescription } from "./route-description.ts"

export interface BroadcastsDependencies extends LineFormat {
  readonly broadcast: (request: BroadcastRequest) => Promise<BroadcastResult>
}

/** An id in quotation marks, with its comma and a space. */
const ID_BYTES = 132

/** In addition to those of a body with a line. */
export const MAX_IDS_BYTES = MAX_BROADCAST_IDS * ID_BYTES

const TOO_MANY = 429
const AUDIENCES = 'must be "all", {"prefix": …} or {"ids": […]}'
const entries = {
  to: v.union(
    [
      v.literal("all"),
      v.strictObject(
        { prefix: v.pipe(v.string(AUDIENCES), v.regex(/^[A-Za-z0-9._:-]{1,128}$/, AUDIENCES)) },
        AUDIENCES,
      ),
      v.strictObject(
        {
          ids: v.pipe(
            // `everyItem` checks the ids: one fault for all, and none when there are too many.
            v.array(v.any(), AUDIENCES),
            v.metadata({ items: { type: "string", pattern: DEVICE_ID.source } }),
            v.maxLength(MAX_BROADCAST_IDS, `must have at most ${MAX_BROADCAST_IDS} ids`),
            v.everyItem(isDeviceId, AUDIENCES),
          ),
        },
        AUDIENCES,
      ),
    ],
    AUDIENCES,
  ),
  line: v.pipe(v.string("must be a string"), wellFormed()),
  per_s: v.optional(wholeNumber(1, MAX_PER_S), DEFAULT_PER_S),
  supersede_key: v.optional(
    v.pipe(
      v.string("must be a string"),
      wellFormed(),
      v.nonEmpty("must not be empty"),
      v.maxBytes(MAX_OPTION_BYTES, `must be at most ${MAX_OPTION_BYTES} bytes`),
    ),
  ),
}
const jsonRequest = v.strictObject(entries, NOT_AN_OBJECT)

const count = v.pipe(v.number(), v.integer(), v.minValue(0))
/** The counts as a caller gets them. */
export const shownCountsSchema = v.object({
  workers: count,
  matched: count,
  outcomes: v.record(v.string(), count),
  unfinished: v.exactOptional(count),
}) satisfies v.GenericSchema<unknown, ReturnType<typeof shownCounts>>

export const BROADCASTS_ROUTES: readonly RouteDescription[] = [
  {
    method: "post",
    path: "/broadcasts",
    name: "broadcast",
    summary: "Writes one line to all connected devices of the fleet, or to some of them",
    body: { "application/json": jsonRequest },
    answers: [
      {
        status: 200,
        text: "The lines by outcome. After SEND_TIMEOUT_MS also `unfinished`: those without one.",
        schema: shownCountsSchema,
      },
    ],
    errors: [{ code: "busy", status: TOO_MANY }, "broker_away"],
  },
]

export function broadcasts(dependencies: BroadcastsDependencies): Hono<HttpEnvironment> {
  const routes = new Hono<HttpEnvironment>()

  routes.post("/broadcasts", async (c) => {
    const body = await readJson(c.req.arrayBuffer(), jsonRequest, entries, { abortPipeEarly: true })
    if (typeof body === "string") return refuse(c, "invalid", body)
    const { to, line, per_s: perS, supersede_key: supersedeKey = null } = body
    const request = {
      ...{ audience: audienceOf(to), line: new TextEncoder().encode(line), perS, supersedeKey },
    }
    const fault = bodyFault(request.line, dependencies)
    if (fault !== null) return refuse(c, fault.outcome, fault.detail)
    const result = await dependencies.broadcast(request)
    if (result.kind === "counts") audit(c, auditAct(request.audience, result))
    return answer(c, result)
  })

  return routes
}

function isDeviceId(id: unknown): boolean {
  return typeof id === "string" && DEVICE_ID.test(id)
}

function audienceOf(to: v.InferOutput<typeof entries.to>): BroadcastRequest["audience"] {
  if (to === "all") return { kind: "all" }
  return "prefix" in to ? { kind: "prefix", ...to } : { kind: "ids", ...to }
}

function auditAct(audience: BroadcastRequest["audience"], result: BroadcastCounts): AuditAct {
  const target = audience.kind === "prefix" ? audience.prefix : null
  const whom = audience.kind === "ids" ? `${audience.ids.length} ids` : audience.kind
  return { action: "broadcast", target, detail: `to ${whom}, matched ${result.matched}` }
}

function answer(c: Context<HttpEnvironment>, result: BroadcastResult): Response {
  switch (result.kind) {
    case "counts":
      return c.json(shownCounts(result))
    case "busy":
      return refuse(
        c,
        "busy",
        `${MAX_BROADCASTS} broadcasts are being written, or this worker is stopping`,
        TOO_MANY,
      )
    case "unreachable":
      return refuse(
        c,
        "broker_away",
        "the broker is not available, and the other workers are reached through it; nothing was written",
      )
    case "invalid":
      return refuse(c, "invalid", result.detail)
  }
}
