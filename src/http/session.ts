/**
 * Sessions of the operator page: a token once, then a cookie.
 *
 *   POST /session {token} ─► 204, Set-Cookie: owsla_session=<expires>.<mac>
 *   GET /session          ─► {access, expires_at}
 *   DELETE /session       ─► 204, the cookie is removed
 *
 * A browser cannot send `Authorization` when it opens a page or an event stream, and a token in a
 * URL would be stored in histories and logs. The cookie is not readable by scripts (HttpOnly) and
 * not sent from other sites (SameSite=Strict).
 *
 * Nothing is stored: the MAC is made with a key that is derived from the token. So each worker and
 * instance with this token accepts the cookie, also after a restart, and none accepts it once the
 * token is removed from the settings. A session cannot be ended before it expires in another way;
 * `DELETE` removes the cookie from the browser only. The access is that of the token.
 *
 * Bounds: `SESSION_MS`; `MAX_BODY_BYTES`; a wrong token is answered after `FAILURE_DELAY_MS`, and
 * at most `MAX_DELAYED` such answers wait at a time. A limit by address was rejected: behind a
 * proxy all clients have one address, and the right token must not be refused because of wrong
 * ones.
 */

import { createHmac, timingSafeEqual } from "node:crypto"
import { type Context, Hono } from "hono"
import { bodyLimit } from "hono/body-limit"
import { deleteCookie, getCookie, setCookie } from "hono/cookie"
import * as v from "valibot"
import { type Caller, isReading, knownTokens, type Tokens } from "./authorization.ts"
import { NOT_AN_OBJECT, readJson } from "./body-faults.ts"
import { type HttpEnvironment, refuse } from "./errors.ts"
import type { RouteDescription } from "./route-description.ts"

export const SESSION_COOKIE = "owsla_session"
export const SESSION_MS = 12 * 3_600_000
const MS_PER_S = 1_000
const MAX_BODY_BYTES = 4_096
const FAILURE_DELAY_MS = 500
const MAX_DELAYED = 16
const TOO_MANY = 429
/** `<expires>.<mac>`: milliseconds since 1970, and 32 bytes in base64url. */
const VALUE = /^([0-9]{1,15})\.([A-Za-z0-9_-]{43})$/
const KEY_PURPOSE = "owsla session key 1"

/** The caller that its token makes. */
export interface Session extends Caller {
  readonly expiresAtMs: number
}

export class Sessions {
  readonly #keys: readonly (Caller & { readonly key: Buffer })[]

  constructor(tokens: Tokens) {
    this.#keys = knownTokens(tokens).map(({ token, access, name }) => ({
      ...{ key: keyOf(token), access, name },
    }))
  }

  /** Whether clients need a token at all. */
  get areNeeded(): boolean {
    return this.#keys.length > 0
  }

  /** The value of a new cookie; null when this is not one of the tokens. */
  open(token: string, nowMs: number): string | null {
    const shown = keyOf(token)
    let found: Buffer | null = null
    for (const { key } of this.#keys) if (timingSafeEqual(shown, key)) found = key
    if (found === null) return null
    const expires = String(nowMs + SESSION_MS)
    return `${expires}.${macOf(found, expires).toString("base64url")}`
  }

  /** @param value of the cookie. */
  find(value: string | undefined, nowMs: number): Session | null {
    const [, expires = "", mac = ""] = VALUE.exec(value ?? "") ?? []
    const shown = Buffer.from(mac, "base64url")
    const expiresAtMs = Number(expires)
    if (expires === "" || expiresAtMs <= nowMs || expiresAtMs > nowMs + SESSION_MS) return null
    let found: Session | null = null
    for (const { key, access, name } of this.#keys) {
      if (timingSafeEqual(shown, macOf(key, expires))) found = { access, name, expiresAtMs }
    }
    return found
  }
}

/** The session of a request; null without one. */
export function sessionOf(
  c: Context<HttpEnvironment>,
  sessions: Sessions,
  nowMs: number,
): Session | null {
  return sessions.find(getCookie(c, SESSION_COOKIE), nowMs)
}

/**
 * Why a request that a cookie authorizes is refused, or null. A page of another site cannot set
 * these headers. A proxy may have changed `Host`; then the browser's `Sec-Fetch-Site` decides.
 */
export function crossSiteFault(c: Context<HttpEnvironment>): string | null {
  if (isReading(c.req.method)) return null
  const { host, origin, site } = {
    host: c.req.header("host")?.toLowerCase(),
    origin: c.req.header("origin")?.toLowerCase(),
    site: c.req.header("sec-fetch-site"),
  }
  const isOwn = origin === `http://${host}` || origin === `https://${host}`
  if (site !== undefined && site !== "same-origin") {
    return "a session is accepted from the operator page only: the Sec-Fetch-Site header names another site"
  }
  if (origin !== undefined && (isOwn || site === "same-origin")) return null
  return "a session is accepted from the operator page only: the Origin header is missing or names another site"
}

/** Ends an event stream that a session has authorized when the session expires. */
export function endsAt(c: Context<HttpEnvironment>, leftMs: number): void {
  const { res } = c
  if (res.body === null || !isEventStream(res)) return
  const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>()
  const expired = new AbortController()
  const timer = setTimeout(() => expired.abort(), leftMs)
  // The source learns that the reader has gone, or that the session has expired, by a cancellation.
  res.body
    .pipeTo(writable, { signal: expired.signal, preventAbort: true })
    .catch(() => writable.close())
    .catch(() => undefined)
    .finally(() => clearTimeout(timer))
  c.res = new Response(readable, res)
}

function isEventStream({ headers }: Response): boolean {
  return headers.get("content-type")?.startsWith("text/event-stream") === true
}

const login = v.strictObject(
  { token: v.pipe(v.string("must be a string"), v.maxLength(1_024, "is too long")) },
  NOT_AN_OBJECT,
)

export const SESSION_ROUTES: readonly RouteDescription[] = [
  {
    method: "post",
    path: "/session",
    name: "openSession",
    summary: "Opens a session of the operator page",
    text: "Sets the cookie owsla_session, which all routes accept like the token.",
    isPublic: true,
    body: { "application/json": login },
    answers: [{ status: 204, text: "The cookie is set.", schema: null }],
    errors: ["unauthorized", { code: "busy", status: TOO_MANY }],
  },
  {
    method: "get",
    path: "/session",
    name: "getSession",
    summary: "What this request may do, and until when",
    answers: [
      {
        status: 200,
        text: "`expires_at` is null without a session.",
        schema: v.object({
          access: v.picklist(["read", "act"]),
          expires_at: v.nullable(v.number()),
        }),
      },
    ],
    errors: [],
  },
  {
    method: "delete",
    path: "/session",
    name: "endSession",
    summary: "Removes the cookie of the session",
    isPublic: true,
    answers: [{ status: 204, text: "The cookie is removed.", schema: null }],
    errors: [],
  },
]

export interface SessionDependencies {
  readonly sessions: Sessions
  readonly nowMs: () => number
}

export function session({ sessions, nowMs }: SessionDependencies): Hono<HttpEnvironment> {
  const routes = new Hono<HttpEnvironment>()
  let delayed = 0

  const limit = bodyLimit({
    maxSize: MAX_BODY_BYTES,
    onError: (c) => refuse(c, "too_large", "the request body is too large"),
  })
  routes.post("/session", limit, async (c) => {
    // A form of another site cannot send JSON.
    if (c.req.header("content-type")?.split(";")[0]?.trim() !== "application/json") {
      return refuse(c, "invalid", "the content type must be application/json")
    }
    const request = await readJson(c.req.arrayBuffer(), login, login.entries)
    if (typeof request === "string") return refuse(c, "invalid", request)
    if (!sessions.areNeeded) return c.body(null, 204)
    const value = sessions.open(request.token, nowMs())
    if (value !== null) {
      setCookie(c, SESSION_COOKIE, value, { ...cookieOptions(c), maxAge: SESSION_MS / MS_PER_S })
      return c.body(null, 204)
    }
    if (delayed >= MAX_DELAYED) {
      return refuse(c, "busy", "too many requests with wrong tokens", TOO_MANY)
    }
    delayed += 1
    await new Promise((resolve) => setTimeout(resolve, FAILURE_DELAY_MS))
    delayed -= 1
    const rule = "the token is not one of HTTP_TOKENS or HTTP_READ_TOKENS"
    return refuse(c, "unauthorized", rule)
  })

  routes.get("/session", (c) => {
    const { access } = c.get("caller")
    if (access === "none") {
      return refuse(c, "unauthorized", "there is no session, or it has expired")
    }
    return c.json({ access, expires_at: sessionOf(c, sessions, nowMs())?.expiresAtMs ?? null })
  })

  routes.delete("/session", (c) => {
    deleteCookie(c, SESSION_COOKIE, cookieOptions(c))
    return c.body(null, 204)
  })

  return routes
}

/**
 * The HTTP API has no TLS of its own. A proxy that has says so, and then the browser must not send
 * the cookie without TLS. A client that sends the header itself only restricts its own cookie.
 */
function cookieOptions(c: Context<HttpEnvironment>) {
  const secure = c.req.header("x-forwarded-proto")?.split(",")[0]?.trim() === "https"
  return { path: "/", httpOnly: true, sameSite: "Strict", secure } as const
}

function keyOf(token: string): Buffer {
  return createHmac("sha256", token).update(KEY_PURPOSE).digest()
}

function macOf(key: Buffer, expires: string): Buffer {
  return createHmac("sha256", key).update(expires).digest()
}
