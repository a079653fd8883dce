/**
 * Refuses requests that come from no program on this machine, where no token is asked for; see
 * `loopback-requests.ts` for the rules.
 */

import type { MiddlewareHandler } from "hono"
import { type HttpEnvironment, refuse } from "./errors.ts"
import { sourceFault } from "./loopback-requests.ts"

/** @param message of the response; by default it names the rule and HTTP_TOKENS. */
export function refuseOtherSources(message?: string): MiddlewareHandler<HttpEnvironment> {
  return async (c, next) => {
    const fault = sourceFault({
      host: c.req.header("host"),
      origin: c.req.header("origin"),
      site: c.req.header("sec-fetch-site"),
    })
    return fault === null ? next() : refuse(c, "forbidden", message ?? fault)
  }
}
