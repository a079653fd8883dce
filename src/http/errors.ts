/**
 * The errors of the HTTP API: one closed list of codes, each with its status; the body is always
 * `{error: {code, message}}`.
 */

import type { Context } from "hono"
import type { ContentfulStatusCode } from "hono/utils/http-status"

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

/** The variables that `app.ts` sets in the context of each request. */
export interface HttpEnvironment {
  Variables: { refused: (code: ErrorCode) => void }
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
