/**
 * The errors of the HTTP API: one closed list of codes, each with its status; the body is always
 * `{error: {code, message}}`.
 */

import type { Context, Hono, MiddlewareHandler } from "hono"
import type { ContentfulStatusCode } from "hono/utils/http-status"
import type { Counters } from "../counters.ts"
import type { AuditAct } from "./audit.ts"
import type { Caller } from "./authorization.ts"

/** The HTTP status of each error code. */
export const ERROR_STATUS = {
  invalid: 400,
  unauthorized: 401,
  forbidden: 403,
  not_found: 404,
  offline: 404,
  closed: 404,
  duplicate: 409,
  late: 409,
  superseded: 409,
  cancelled: 409,
  too_large: 413,
  unsupported_encoding: 415,
  hold_full: 429,
  internal: 500,
  broker_away: 503,
  slow_device: 503,
  busy: 503,
  expired: 504,
  no_reply: 504,
  timeout: 504,
} as const satisfies Record<string, ContentfulStatusCode>

export type ErrorCode = keyof typeof ERROR_STATUS

/** Seconds after which a client may retry a request that got a 503, or was refused as `busy`. */
const RETRY_AFTER_S = "1"

export interface HttpEnvironment {
  /** What `server.ts` passes with a request. */
  Bindings: { readonly remoteAddress?: string }
  /** What `app.ts` sets in the context of each request. */
  Variables: {
    refused: (code: ErrorCode) => void
    /** Who sends it, by a token or by a session. */
    caller: Caller
    audit: (act: AuditAct) => void
  }
}

/**
 * Makes `refuse` count. The first of all routes. All codes are there from the start: Prometheus
 * sees no increase of a series that begins.
 */
export function countErrors({
  httpErrors,
}: Pick<Counters, "httpErrors">): MiddlewareHandler<HttpEnvironment> {
  for (const code of Object.keys(ERROR_STATUS)) httpErrors.set(code, httpErrors.get(code) ?? 0)
  const count = (code: ErrorCode) => httpErrors.set(code, (httpErrors.get(code) ?? 0) + 1)
  return async (c, next) => {
    c.set("refused", count)
    await next()
  }
}

/** Answers requests for no route, and those whose route has thrown. */
export function answerErrors(routes: Hono<HttpEnvironment>, fault: (error: Error) => void): void {
  routes.notFound((c) => refuse(c, "not_found", `no route ${c.req.method} ${c.req.path}`))
  routes.onError((error, c) => {
    fault(error)
    return refuse(c, "internal", "internal server error, see the server log")
  })
}

/**
 * Counts the error and returns its response.
 * @param status instead of the one of its code.
 */
export function refuse(
  c: Context<HttpEnvironment>,
  code: ErrorCode,
  message: string,
  status: ContentfulStatusCode = ERROR_STATUS[code],
): Response {
  if (status === 503 || code === "busy") c.header("Retry-After", RETRY_AFTER_S)
  c.get("refused")(code)
  return c.json({ error: { code, message } }, status)
}
