/**
 * The HTTP app for `request()` without a port. Each request has a loopback `Host`, like those of
 * local programs.
 */

import type { Hono } from "hono"
import { type AppDependencies, app } from "../../src/http/app.ts"
import type { HttpEnvironment } from "../../src/http/errors.ts"

export interface LocalApp {
  readonly routes: Hono<HttpEnvironment>
  readonly request: (path: string, init?: RequestInit) => Promise<Response>
}

export function localApp(dependencies: AppDependencies): LocalApp {
  const routes = app(dependencies)
  return {
    routes,
    request: async (path, init = {}) => {
      const headers = new Headers(init.headers)
      if (!headers.has("host")) headers.set("host", "localhost:8080")
      return routes.request(path, { ...init, headers })
    },
  }
}
