/**
 * The operator page: for a person who has a browser and must find out which part fails, and why.
 *
 *   GET /                        overview: devices, gateway and broker, charts, workers, events
 *   GET /page/devices            the devices of the fleet
 *   GET /page/devices/:id        one device
 *   GET /page/refusals, /page/access, /page/tapes, /page/fleet, /page/audit
 *   GET /page/live               the state of the instance as server-sent events (`live.ts`)
 *   GET /page/follow             answers of the JSON API as server-sent events (`followed.ts`)
 *   GET /page/assets/:name       modules, styles
 *
 * The server renders each view without its data, and the view's module fills it through the JSON
 * API and the event streams, with the session cookie. Without a session each view is the login,
 * with status 401, and is itself after the login. Modules and styles need no session, since the
 * login uses them and they contain no data.
 *
 * The page loads nothing from other sites and works without access to the internet; its Content
 * Security Policy allows nothing else. Views and assets are loaded into memory with the first
 * request.
 */

import { type Context, Hono } from "hono"
import { html, raw } from "hono/html"
import type { AdmissionRules } from "../../fleet/admission-rules.ts"
import type { GateState } from "../../fleet/gate.ts"
import type { Gathered } from "../../process/control.ts"
import { type HttpEnvironment, refuse } from "../errors.ts"
import type { Sessions } from "../session.ts"
import { live } from "./live.ts"

export interface PageDependencies {
  readonly instance: string
  /** How many workers the instance should have. */
  readonly workers: number
  /** PUBLISH_WINDOW_LINES, of one worker. */
  readonly windowLines: number
  /** Null when the supervisor does not answer. */
  readonly gather: (wantsHistory: boolean) => Promise<Gathered | null>
}

export interface PageParts extends PageDependencies {
  readonly version: string
  readonly startedAtMs: number
  readonly nowMs: () => number
  readonly gate: () => GateState
  readonly rules: Pick<AdmissionRules, "bans">
  /** Null without the embedded broker. */
  readonly messages: unknown
  readonly sessions: Sessions
  /** Aborted when the server stops. */
  readonly stopping: AbortSignal
}

/** uPlot sets styles by CSSOM, which `style-src` allows. */
const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self'",
  "connect-src 'self'",
  "form-action 'self'",
  "base-uri 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types 'none'",
].join("; ")

const HEADERS: Readonly<Record<string, string>> = {
  "Content-Security-Policy": POLICY,
  "X-Frame-Options": "DENY",
  "X-Content-Type-Options": "nosniff",
  // URLs contain device ids.
  "Referrer-Policy": "no-referrer",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
}

export function page(parts: PageParts): Hono<HttpEnvironment> {
  const { instance, version } = parts
  const routes = new Hono<HttpEnvironment>()

  const view = (path: string, name: ViewName) => {
    routes.get(path, async (c) => {
      const { document } = await import("./views.tsx")
      setHeaders(c)
      const { access } = c.get("caller")
      const shown = access === "none" ? "login" : name
      const text = document({
        ...{ view: shown, instance, version, access },
        deviceId: c.req.param("id") ?? null,
        hasSession: parts.sessions.areNeeded,
        hasMessages: parts.messages !== null,
      })
      c.header("Cache-Control", "no-store")
      return c.html(html`<!doctype html>${raw(text)}`, access === "none" ? 401 : 200)
    })
  }
  for (const [name, path] of Object.entries(VIEWS)) view(path, name as ViewName)

  routes.get("/page/assets/:name", async (c) => {
    const { ASSETS } = await import("./assets.ts")
    const asset = ASSETS.get(c.req.param("name"))
    if (asset === undefined) return refuse(c, "not_found", "there is no such file")
    setHeaders(c)
    const isZipped = /\bgzip\b/.test(c.req.header("accept-encoding") ?? "")
    const tag = `"${asset.tag}${isZipped ? "-gzip" : ""}"`
    c.header("Cache-Control", "no-cache")
    c.header("Vary", "Accept-Encoding")
    c.header("ETag", tag)
    if (c.req.header("if-none-match") === tag) return c.body(null, 304)
    c.header("Content-Type", asset.type)
    if (!isZipped) return c.body(asset.text)
    c.header("Content-Encoding", "gzip")
    return c.body(asset.zipped)
  })

  return routes
}

/** The route of the page that needs a session or a token as those of the JSON API do. */
export function pageLive(parts: PageParts): Hono<HttpEnvironment> {
  const { workers, windowLines, startedAtMs, nowMs, gate, rules, gather, stopping } = parts
  const facts = () => ({
    ...{ atMs: nowMs(), startedAtMs, workers, windowLines },
    ...{ gate: gate(), bans: rules.bans().length },
  })
  return live({ gather, facts, stopping })
}

/** The views and their paths. */
export const VIEWS = {
  overview: "/",
  devices: "/page/devices",
  device: "/page/devices/:id",
  refusals: "/page/refusals",
  access: "/page/access",
  tapes: "/page/tapes",
  fleet: "/page/fleet",
  audit: "/page/audit",
} as const

export type ViewName = keyof typeof VIEWS

function setHeaders(c: Context<HttpEnvironment>): void {
  for (const [name, value] of Object.entries(HEADERS)) c.header(name, value)
}
