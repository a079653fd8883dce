/**
 * Bearer tokens (RFC 6750, section 2.1), their names, and the access that they give.
 *
 *   token of HTTP_TOKENS ───────► act    all routes
 *   token of HTTP_READ_TOKENS ──► read   GET and HEAD only
 *   any other, or none ─────────► none
 *
 * All tokens are compared, each in constant time, so that response times reveal nothing about the
 * tokens.
 */

import { createHash, timingSafeEqual } from "node:crypto"
import { readBearerToken } from "../bearer-token.ts"

const BEARER = /^bearer +([A-Za-z0-9._~+/-]+=*) *$/i
/** Of its SHA-256: enough to tell tokens apart, and useless as a token. */
const DIGEST_DIGITS = 8

export type Access = "none" | "read" | "act"

export interface Caller {
  readonly access: Access
  /**
   * The name of the token in the settings, or `sha256:` and the first digits of its digest. Null
   * without a valid token.
   */
  readonly name: string | null
}

/** @param header the value of `Authorization`. */
export type CallerOf = (header: string | undefined) => Caller

/** Entries as `bearer-token.ts` describes them. */
export interface Tokens {
  readonly tokens: readonly string[]
  readonly readTokens: readonly string[]
}

interface Known extends Caller {
  readonly token: string
  readonly digest: Buffer
}

const NOBODY: Caller = { access: "none", name: null }
const ANYBODY: Caller = { access: "act", name: null }

/** When both lists are empty, each request has the access "act". */
export function authorization({ tokens, readTokens }: Tokens): CallerOf {
  const known = knownTokens({ tokens, readTokens })
  return (header) => {
    if (known.length === 0) return ANYBODY
    const token = BEARER.exec(header ?? "")?.[1]
    if (token === undefined) return NOBODY
    const shown = digestOf(token)
    let found = NOBODY
    for (const caller of known) if (timingSafeEqual(shown, caller.digest)) found = caller
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

/** The tokens of both lists, with the callers that they make. */
export function knownTokens({ tokens, readTokens }: Tokens): readonly Known[] {
  return [
    ...tokens.map((entry) => knownToken(entry, "act")),
    ...readTokens.map((entry) => knownToken(entry, "read")),
  ]
}

function knownToken(entry: string, access: Access): Known {
  const { name, token } = readBearerToken(entry)
  const digest = digestOf(token)
  const unnamed = `sha256:${digest.toString("hex").slice(0, DIGEST_DIGITS)}`
  return { access, name: name ?? unnamed, token, digest }
}

/** Digests have equal length, as `timingSafeEqual` requires. */
function digestOf(token: string): Buffer {
  return createHash("sha256").update(token).digest()
}
