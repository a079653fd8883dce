/**
 * Which devices the fleet refuses: the gate and bans.
 *
 *   GET /gate, PUT /gate {open, prefix?, retry_after_ms?}
 *   GET /bans, PUT /bans/:id {for_ms}, DELETE /bans/:id
 *
 * Any worker answers: each knows the gate and all bans. A change reaches the other workers over the
 * broker, so without it a change is refused (`broker_away`).
 */

import { type Context, Hono } from "hono"
import * as v from "valibot"
import { DEVICE_ID, workerOfConnection } from "../device/ids.ts"
import type { AdmissionRules } from "../fleet/admission-rules.ts"
import type { Ban } from "../fleet/bans.ts"
import type { GateState } from "../fleet/gate.ts"
import { audit } from "./audit.ts"
import { NOT_AN_OBJECT, readJson, wholeNumber } from "./body-faults.ts"
import { type HttpEnvironment, refuse } from "./errors.ts"
import type { RouteDescription } from "./route-description.ts"

const MAX_PREFIX_LENGTH = 128
const MAX_RETRY_AFTER_MS = 3_600_000
const MIN_BAN_MS = 1_000
/** Workers refuse longer ones of each other. The denylist is for devices that must not return. */
const MAX_BAN_MS = 86_400_000

export interface RulesDependencies {
  readonly rules: Pick<AdmissionRules, "gate" | "setGate" | "bans" | "deny" | "lift">
  /** Whether a change reaches the other workers. */
  readonly reachesFleet: () => boolean
}

const gateRequest = v.strictObject(
  {
    open: v.boolean("must be true or false"),
    prefix: v.optional(
      v.pipe(
        v.string("must be a string"),
        v.regex(/^[A-Za-z0-9._:-]*$/, "must have characters of device ids only"),
        v.maxLength(MAX_PREFIX_LENGTH, `must have at most ${MAX_PREFIX_LENGTH} characters`),
      ),
      "",
    ),
    retry_after_ms: v.optional(v.nullable(wholeNumber(0, MAX_RETRY_AFTER_MS)), null),
  },
  NOT_AN_OBJECT,
)

const banRequest = v.strictObject({ for_ms: wholeNumber(MIN_BAN_MS, MAX_BAN_MS) }, NOT_AN_OBJECT)

const NO_BAN = "the device has no ban"

/** The gate in the HTTP API. */
export const shownGateSchema = v.object({
  open: v.boolean(),
  prefix: v.string(),
  retry_after_ms: v.nullable(v.number()),
})
const shownBanSchema = v.object({ id: v.string(), until: v.number(), connects: v.number() })

export const RULES_ROUTES: readonly RouteDescription[] = [
  {
    method: "get",
    path: "/gate",
    name: "getGate",
    summary: "The gate of the fleet",
    answers: [{ status: 200, text: "The gate.", schema: shownGateSchema }],
    errors: [],
  },
  {
    method: "put",
    path: "/gate",
    name: "setGate",
    summary: "Opens or closes the gate of the fleet for new devices",
    text: "Replaces the whole gate. With a prefix it refuses the devices whose ids begin with it. Connected devices stay.",
    body: { "application/json": gateRequest },
    answers: [{ status: 200, text: "The new gate.", schema: shownGateSchema }],
    errors: ["broker_away"],
  },
  {
    method: "get",
    path: "/bans",
    name: "listBans",
    summary:
      "The devices that the fleet refuses, because they connected too often or an operator has denied them",
    answers: [
      { status: 200, text: "All bans.", schema: v.object({ bans: v.array(shownBanSchema) }) },
    ],
    errors: [],
  },
  {
    method: "put",
    path: "/bans/:id",
    name: "banDevice",
    summary: "Disconnects a device and refuses it for a while, on the whole fleet",
    text: "The reason is denied.",
    body: { "application/json": banRequest },
    answers: [{ status: 200, text: "The ban.", schema: shownBanSchema }],
    errors: ["invalid", "broker_away"],
  },
  {
    method: "get",
    path: "/bans/:id",
    name: "showBan",
    summary: "The ban of a device",
    answers: [{ status: 200, text: "The ban.", schema: shownBanSchema }],
    errors: ["invalid", "not_found"],
  },
  {
    method: "delete",
    path: "/bans/:id",
    name: "liftBan",
    summary: "Lifts the ban of a device",
    answers: [{ status: 200, text: "The ban that was lifted.", schema: shownBanSchema }],
    errors: ["invalid", "not_found", "broker_away"],
  },
]

export function rules({ rules, reachesFleet }: RulesDependencies): Hono<HttpEnvironment> {
  const routes = new Hono<HttpEnvironment>()
  const away = (c: Context<HttpEnvironment>) =>
    refuse(
      c,
      "broker_away",
      "the broker is not available, so the change cannot reach the other workers; nothing was changed",
    )

  routes.get("/gate", (c) => c.json(shownGate(rules.gate)))

  routes.put("/gate", async (c) => {
    const request = await readJson(c.req.arrayBuffer(), gateRequest, gateRequest.entries)
    if (typeof request === "string") return refuse(c, "invalid", request)
    if (!reachesFleet()) return away(c)
    const gate = rules.setGate(request)
    const detail = gate.open ? "opened" : "closed"
    audit(c, { action: "gate", target: gate.prefix || null, detail })
    return c.json(shownGate(gate))
  })

  routes.get("/bans", (c) => c.json({ bans: rules.bans().map(shownBan) }))

  routes.get("/bans/:id", (c) => {
    const id = c.req.param("id")
    if (!DEVICE_ID.test(id)) return refuse(c, "invalid", `the id must match ${DEVICE_ID.source}`)
    const ban = rules.bans().find(({ device_id }) => device_id === id)
    return ban === undefined ? refuse(c, "not_found", NO_BAN) : c.json(shownBan(ban))
  })

  routes.put("/bans/:id", async (c) => {
    const id = c.req.param("id")
    if (!DEVICE_ID.test(id)) return refuse(c, "invalid", `the id must match ${DEVICE_ID.source}`)
    if (workerOfConnection(id) !== null) {
      return refuse(c, "invalid", "a ban needs a device id: a connection does not return")
    }
    const request = await readJson(c.req.arrayBuffer(), banRequest, banRequest.entries)
    if (typeof request === "string") return refuse(c, "invalid", request)
    if (!reachesFleet()) return away(c)
    const { for_ms: forMs } = request
    const ban = rules.deny(id, forMs)
    audit(c, { action: "deny", target: id, detail: `for ${forMs} ms` })
    return c.json(shownBan(ban))
  })

  routes.delete("/bans/:id", (c) => {
    const id = c.req.param("id")
    if (!DEVICE_ID.test(id)) return refuse(c, "invalid", `the id must match ${DEVICE_ID.source}`)
    if (!reachesFleet()) return away(c)
    const lifted = rules.lift(id)
    if (lifted === null) return refuse(c, "not_found", NO_BAN)
    audit(c, { action: "ban_lifted", target: id, detail: `${lifted.connects} connections` })
    return c.json(shownBan(lifted))
  })

  return routes
}

export function shownGate({
  open,
  prefix,
  retry_after_ms,
}: GateState): v.InferOutput<typeof shownGateSchema> {
  return { open, prefix, retry_after_ms }
}

function shownBan({ device_id: id, until, connects }: Ban): v.InferOutput<typeof shownBanSchema> {
  return { id, until, connects }
}
