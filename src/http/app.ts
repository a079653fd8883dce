/**
 * The HTTP API: health, metrics, the devices of the fleet, commands and broadcasts. Combines the
 * groups of routes with the rules that they share, in this order:
 *
 * - without tokens, only requests of programs on this machine are served
 * - bearer tokens, and sessions of the operator page
 * - request bodies without content encoding
 * - a bound on request bodies
 *
 * All errors are JSON and contain no secret and no stack. Holds no state. Bound: `maxBodyBytes` for
 * each request, and room for the ids of a broadcast.
 */

import { type Context, Hono } from "hono"
import { bodyLimit } from "hono/body-limit"
import { MAX_OPTION_BYTES } from "../commands/command-options.ts"
import type { Counters } from "../counters.ts"
import { normalAddress } from "../device/address.ts"
import { type AuditDependencies, type AuditEntry, audits } from "./audit.ts"
import { authorization, isReading, suffices } from "./authorization.ts"
import { type BroadcastsDependencies, broadcasts, MAX_IDS_BYTES } from "./broadcasts.ts"
import {
  type DevicesDependencies,
  devices,
  INCOMPLETE_BODY,
  MAX_MESSAGE_ID_BYTES,
} from "./devices.ts"
import { type DrainDependencies, drain } from "./drain.ts"
import { answerErrors, countErrors, type HttpEnvironment, refuse } from "./errors.ts"
import { type EventsDependencies, events } from "./events.ts"
import { type FleetDependencies, fleet } from "./fleet.ts"
import { type HealthDependencies, health } from "./health.ts"
import { type HeldDependencies, held } from "./held.ts"
import { type MessagesDependencies, messages } from "./messages.ts"
import { type MetricsDependencies, metrics } from "./metrics.ts"
import { openApi } from "./openapi.ts"
import { refuseOtherSources } from "./other-sources.ts"
import { followed } from "./page/followed.ts"
import { type PageDependencies, page, pageLive } from "./page/page.ts"
import { type RecordsDependencies, records } from "./records.ts"
import { type RulesDependencies, rules } from "./rules.ts"
import { crossSiteFault, endsAt, Sessions, session, sessionOf } from "./session.ts"
import { type TapesDependencies, tapes } from "./tapes.ts"

export interface AppDependencies
  extends AuditDependencies,
    BroadcastsDependencies,
    DevicesDependencies,
    DrainDependencies,
    EventsDependencies,
    FleetDependencies,
    HeldDependencies,
    Omit<HealthDependencies, "gate">,
    MetricsDependencies,
    RecordsDependencies,
    RulesDependencies,
    TapesDependencies {
  /**
   * Entries of `bearer-token.ts`. Each of them gives access to all routes and to the details of
   * `/health` and `/ready`. When both lists are empty, all routes are open to programs on this
   * machine.
   */
  readonly tokens: readonly string[]
  /** Each of them gives access to GET and HEAD on all routes, and to the same details. */
  readonly readTokens: readonly string[]
  /** Null unless the embedded broker is used. */
  readonly messages: MessagesDependencies | null
  readonly page: PageDependencies
  readonly counters: Counters
  /** An operator has done something. */
  readonly audited: (entry: AuditEntry) => void
  /** An exception occurred while a request was handled. */
  readonly fault: (error: Error) => void
}

/**
 * JSON may escape one byte as six characters, and the body also contains a message id, a supersede
 * key, a reply condition and field names.
 */
export function maxBodyBytes(maxLineBytes: number): number {
  return (maxLineBytes + MAX_MESSAGE_ID_BYTES + 2 * MAX_OPTION_BYTES) * 6 + 1_024
}

export function app(dependencies: AppDependencies): Hono<HttpEnvironment> {
  const { tokens, readTokens, counters, audited, fault, nowMs } = dependencies
  const routes = new Hono<HttpEnvironment>()

  routes.use(countErrors(counters))
  if (tokens.length + readTokens.length === 0) routes.use(refuseOtherSources())
  const callerOf = authorization(dependencies)
  const sessions = new Sessions(dependencies)
  routes.use(async (c, next) => {
    const header = c.req.header("authorization")
    const session = header === undefined ? sessionOf(c, sessions, nowMs()) : null
    c.set("caller", session ?? callerOf(header))
    if (session === null) return next()
    const fault = crossSiteFault(c)
    if (fault !== null) return refuse(c, "forbidden", fault)
    await next()
    endsAt(c, session.expiresAtMs - nowMs())
    return undefined
  })
  const gate = () => dependencies.rules.gate
  routes.route(
    "/",
    health({ ...dependencies, gate }, (c) => c.get("caller").access),
  )
  routes.route("/", session({ sessions, nowMs }))
  const pageParts = { ...dependencies.page, ...dependencies, gate, sessions }
  routes.route("/", page(pageParts))
  routes.use(async (c, next) => {
    const { access, name } = c.get("caller")
    c.set("audit", (act) => {
      const address = c.env?.remoteAddress ?? ""
      audited({ ...act, by: name, address: normalAddress(address) ?? address })
    })
    if (suffices(access, c.req.method)) return next()
    if (access === "read") {
      return refuse(
        c,
        "forbidden",
        "a token of HTTP_READ_TOKENS allows GET only: use one of HTTP_TOKENS",
      )
    }
    c.header("WWW-Authenticate", "Bearer")
    const which = isReading(c.req.method) ? "HTTP_TOKENS or HTTP_READ_TOKENS" : "HTTP_TOKENS"
    return refuse(c, "unauthorized", `send Authorization: Bearer <one of ${which}>`)
  })
  routes.use(async (c, next) => {
    if (isEncoded(c.req.header("content-encoding"))) {
      c.header("Accept-Encoding", "identity")
      const rule = "send the body without Content-Encoding"
      return refuse(c, "unsupported_encoding", `compressed bodies are not supported: ${rule}`)
    }
    return next()
  })
  const limitOf = (maxSize: number) =>
    bodyLimit({
      maxSize,
      onError: (c) => refuse(c, "too_large", "the request body is too large"),
    })
  const limit = limitOf(maxBodyBytes(dependencies.maxLineBytes))
  const broadcastLimit = limitOf(maxBodyBytes(dependencies.maxLineBytes) + MAX_IDS_BYTES)
  routes.use(async (c, next) => {
    try {
      return await (c.req.path === "/broadcasts" ? broadcastLimit : limit)(c, next)
    } catch {
      // The client closed the connection while its body was read. Errors of routes are handled by
      // `onError`.
      return refuse(c, "invalid", INCOMPLETE_BODY)
    }
  })
  routes.route("/", metrics(dependencies))
  routes.route("/", devices(dependencies))
  routes.route("/", broadcasts(dependencies))
  routes.route("/", held(dependencies))
  routes.route("/", fleet(dependencies))
  routes.route("/", pageLive(pageParts))
  const ask = async (request: Request, c: Context<HttpEnvironment>) => routes.fetch(request, c.env)
  routes.route("/", followed({ ask, stopping: dependencies.stopping }))
  routes.route("/", drain(dependencies))
  routes.route("/", rules(dependencies))
  routes.route("/", openApi(dependencies))
  routes.route("/", tapes(dependencies))
  routes.route("/", records(dependencies))
  routes.route("/", events(dependencies))
  routes.route("/", audits(dependencies))
  routes.route("/", messages(dependencies.messages, dependencies.stopping))

  answerErrors(routes, fault)
  return routes
}

/** Whether the body has a content coding other than `identity` (RFC 9110, section 8.4). */
function isEncoded(contentEncoding: string | undefined): boolean {
  const codings = (contentEncoding ?? "").split(",").map((coding) => coding.trim().toLowerCase())
  return codings.some((coding) => coding !== "" && coding !== "identity")
}
