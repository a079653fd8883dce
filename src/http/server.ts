/** The HTTP server of one worker, on the port that all workers share. */

import type { Server } from "bun"

export interface HttpOptions {
  readonly host: string
  readonly sendTimeoutMs: number
}

/** @throws when the port can't be had. */
export function serve(
  routes: { readonly fetch: (request: Request) => Response | Promise<Response> },
  { host, sendTimeoutMs }: HttpOptions,
  port: number,
): Server<undefined> {
  return Bun.serve({
    hostname: host,
    port,
    reusePort: true,
    // Longer than a send may take and than the keep-alives of event streams are apart.
    idleTimeout: Math.ceil(sendTimeoutMs / 1000) + 10,
    // The routes have their own, lower bound and answer with an error that says so.
    maxRequestBodySize: Number.MAX_SAFE_INTEGER,
    fetch: routes.fetch,
  })
}
