/**
 * The HTTP sidecar: health, metrics and commands for an operator. Puts the groups of routes together
 * with what holds for all of them: bearer tokens, a bound on bodies, errors as JSON.
 *
 * Never holds state of its own and never repeats a secret or a stack. Bound: `maxBodyBytes` a request.
 */

import { Hono } from "hono"
import { bearerAuth } from "hono/bearer-auth"
import { bodyLimit } from "hono/body-limit"
import { HTTPException } from "hono/http-exception"
import type { Counters } from "../counters.ts"
import { type DevicesDependencies, devices } from "./devices.ts"
import { type ErrorCode, type HttpEnvironment, refuse } from "./errors.ts"
import { type HealthDependencies, health } from "./health.ts"
import { type MessagesDependencies, messages } from "./messages.ts"
import { type MetricsDependencies, metrics } from "./metrics.ts"

export interface AppDependencies
  extends DevicesDependencies,
    HealthDependencies,
    MetricsDependencies {
  /** Any of them opens all routes but `/health` and `/ready`; none: all are open. */
  readonly tokens: readonly string[]
  /** Only with the embedded broker. */
  readonly messages: MessagesDependencies | null
  readonly counters: Counters
  /** A defect of ours that met a request. */
  readonly fault: (error: Error) => void
}

/** JSON may write one byte as six characters, and has fields beside the line. */
export function maxBodyBytes(maxLineBytes: number): number {
  return maxLineBytes * 6 + 1_024
}

export function app(dependencies: AppDependencies): Hono<HttpEnvironment> {
  const { tokens, counters, fault } = dependencies
  const routes = new Hono<HttpEnvironment>()

  const count = (code: ErrorCode) =>
    counters.httpErrors.set(code, (counters.httpErrors.get(code) ?? 0) + 1)

  routes.use(async (c, next) => {
    c.set("refused", count)
    await next()
  })
  routes.route("/", health(dependencies))
  if (tokens.length > 0) {
    const denied = (message: string) => ({ error: { code: "unauthorized" as ErrorCode, message } })
    routes.use(
      bearerAuth({
        token: [...tokens],
        noAuthenticationHeader: { message: denied("send Authorization: Bearer <token>") },
        invalidAuthenticationHeader: { message: denied("send Authorization: Bearer <token>") },
        invalidToken: { message: denied("the token is not one of HTTP_TOKENS") },
      }),
    )
  }
  routes.use(
    bodyLimit({
      maxSize: maxBodyBytes(dependencies.maxLineBytes),
      onError: (c) => refuse(c, "too_large", "the request's body is too large"),
    }),
  )
  routes.route("/", metrics(dependencies))
  routes.route("/", devices(dependencies))
  if (dependencies.messages !== null) routes.route("/", messages(dependencies.messages))

  routes.notFound((c) => refuse(c, "not_found", `no route ${c.req.method} ${c.req.path}`))
  routes.onError((error, c) => {
    if (error instanceof HTTPException) {
      // Only `bearerAuth` throws these.
      count("unauthorized")
      return error.getResponse()
    }
    fault(error)
    return refuse(c, "internal", "a defect; the log has more")
  })
  return routes
}
