/**
 * The HTTP app for `request()` without a port. Each request has a loopback `Host`, like those of
 * local programs. Each answer of a route must be what the OpenAPI document says of it.
 */

import type { Hono } from "hono"
import { type AppDependencies, app } from "../../src/http/app.ts"
import type { HttpEnvironment } from "../../src/http/errors.ts"
import { answerFault, operationOf } from "./described-answers.ts"

export interface LocalApp {
  readonly routes: Hono<HttpEnvironment>
  readonly request: (path: string, init?: RequestInit) => Promise<Response>
}

/** An instance that has no history and whose supervisor does not answer. */
export const NO_PAGE: Pick<AppDependencies, "page" | "fleetView"> = {
  page: { instance: "gw1", workers: 1, windowLines: 2_000, gather: async () => null },
  fleetView: () => ({
    ...{ worker: "gw1.0", connected: true, shards: 1, shards_without_keeper: [] },
    ...{ has_foreign: false, members: [] },
  }),
}

type Dependencies = Omit<AppDependencies, keyof typeof NO_PAGE> &
  Partial<Pick<AppDependencies, keyof typeof NO_PAGE>>

export function localApp(dependencies: Dependencies): LocalApp {
  const routes = app({ ...NO_PAGE, ...dependencies })
  return {
    routes,
    request: async (path, init = {}) => {
      const headers = new Headers(init.headers)
      if (!headers.has("host")) headers.set("host", "localhost:8080")
      const response = await routes.request(path, { ...init, headers })
      const { method = "GET" } = init
      const { pathname } = new URL(path, "http://localhost")
      if (operationOf(method, pathname) !== undefined) await checkAnswer(method, pathname, response)
      return response
    },
  }
}

async function checkAnswer(method: string, path: string, response: Response): Promise<void> {
  const { status } = response
  const contentType = response.headers.get("content-type")
  const isStream = contentType?.startsWith("text/event-stream") === true
  const body = isStream ? "" : await response.clone().text()
  const fault = answerFault({ method, path, status, contentType, body })
  if (fault !== null) throw new Error(fault)
}
