/**
 * `GET /page/follow?of=/devices/lock:17&of=/bans/lock:17`: the answers of other routes as
 * server-sent events, for the operator page.
 *
 *   for each path: look ─► changed since the last look ─► event `answer` ─► wait ─► look
 *
 * A look is a GET with the headers of the follower, so it may see what the follower may see. All
 * paths of a view share one stream, because a browser opens six connections to a server at most.
 *
 * Bounds: `MAX_PATHS`, one look of each at a time, and those of `event-stream.ts`.
 */

import { setTimeout as pause } from "node:timers/promises"
import { type Context, Hono } from "hono"
import { type HttpEnvironment, refuse } from "../errors.ts"
import { type EventSink, EventStreams } from "../event-stream.ts"

const MAX_PATHS = 8

/** The routes that can be followed, and how often each is looked at. */
const ROUTES: readonly { readonly path: RegExp; readonly everyMs: number }[] = [
  { path: /^\/devices\/[^/]+$/, everyMs: 2_000 },
  { path: /^\/(gate|bans|refusals|tapes|fleet)$/, everyMs: 3_000 },
  // They ask all workers of the fleet.
  { path: /^\/(devices|audit|bans\/[^/]+|devices\/[^/]+\/(held|connections))$/, everyMs: 5_000 },
]

export interface FollowedDependencies {
  /** Answers a request as if it came from outside. */
  readonly ask: (request: Request, c: Context<HttpEnvironment>) => Promise<Response>
  /** Aborted when the server stops. */
  readonly stopping: AbortSignal
}

export function followed({ ask, stopping }: FollowedDependencies): Hono<HttpEnvironment> {
  const routes = new Hono<HttpEnvironment>()
  const streams = new EventStreams("the views of the page", stopping)

  routes.get("/page/follow", (c) => {
    const paths = [...new Set(c.req.queries("of") ?? [])]
    if (paths.length === 0 || paths.length > MAX_PATHS) {
      return refuse(c, "invalid", `of: must be there 1 to ${MAX_PATHS} times`)
    }
    const views = paths.flatMap((of) => viewOf(of, c.req.url) ?? [])
    if (views.length < paths.length) return refuse(c, "invalid", "of: a path cannot be followed")
    return streams.answer(c, (sink) => {
      const leaving = new AbortController()
      const { signal } = leaving
      for (const view of views) {
        const look = () => ask(new Request(view.url, { headers: c.req.raw.headers, signal }), c)
        void follow(view, look, signal, sink)
      }
      return () => leaving.abort()
    })
  })

  return routes
}

interface View {
  readonly of: string
  readonly url: string
  /** Between two looks. */
  readonly everyMs: number
}

/** Null for a path that cannot be followed. */
function viewOf(of: string, base: string): View | null {
  const url = URL.parse(of, base)
  // Otherwise it has dots, or names another server.
  if (url === null || `${url.pathname}${url.search}` !== of) return null
  const route = ROUTES.find(({ path }) => path.test(url.pathname))
  return route === undefined ? null : { of, url: url.href, everyMs: route.everyMs }
}

/** @param signal aborted when the follower has gone. */
async function follow(
  { of, everyMs }: View,
  look: () => Promise<Response>,
  signal: AbortSignal,
  { push }: EventSink,
): Promise<void> {
  let last = ""
  while (!signal.aborted) {
    const response = await look()
    const body = await response.text()
    if (signal.aborted) return
    // Bodies are JSON, also those of errors.
    const data = `{"of":${JSON.stringify(of)},"status":${response.status},"body":${body}}`
    if (data !== last) push({ event: "answer", data })
    last = data
    // Leaves no listener at the signal, which lives as long as the page is open.
    await pause(everyMs, undefined, { signal }).catch(() => undefined)
  }
}
