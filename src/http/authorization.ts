/**
 * Bearer tokens (RFC 6750, section 2.1) and the access that they give.
 *
 *   token of HTTP_TOKENS ───────► act    all routes
 *   token of HTTP_READ_TOKENS ──► read   GET and HEAD only
 *   any other, or none ─────────► none
 *
 * All tokens are compared, each in constant time, so that response times reveal nothing about the
 * tokens.
 */

import { createHash, timingSafeEqual } from "node:crypto"

const BEARER = /^bearer +([A-Za-z0-9._~+/-]+=*) *$/i

export type Access = "none" | "read" | "act"

/** @param header the value of `Authorization`. */
export type AccessOf = (header: string | undefined) => Access

export interface Tokens {
  readonly tokens: readonly string[]
  readonly readTokens: readonly string[]
}

/** When both lists are empty, each request has the access "act". */
export function authorization({ tokens, readTokens }: Tokens): AccessOf {
  const known = [
    ...tokens.map((token) => ({ digest: digestOf(token), access: "act" as const })),
    ...readTokens.map((token) => ({ digest: digestOf(token), access: "read" as const })),
  ]
  return (header) => {
    if (known.length === 0) return "act"
    const token = BEARER.exec(header ?? "")?.[1]
    if (token === undefined) return "none"
    const shown = digestOf(token)
    let found: Access = "none"
    for (const { digest, access } of known) if (timingSafeEqual(shown, digest)) found = access
    return found
  }
}

/** Whether this access is sufficient for the method. */
export function suffices(access: Access, method: string): boolean {
  return access === "act" || (access === "read" && isReading(method))
}

/** Whether requests with this method change nothing and send no command. */
export function isReading(method: string): boolean {
  return method === "GET" || method === "HEAD"
}

/** Digests have equal length, as `timingSafeEqual` requires. */
function digestOf(token: string): Buffer {
  return createHash("sha256").update(token).digest()
}
