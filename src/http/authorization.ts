/**
 * Bearer tokens: whether a request has one of `HTTP_TOKENS`. RFC 6750, section 2.1, defines the header.
 *
 * Every token is compared, each in constant time, so that response times reveal nothing about the tokens.
 */

import { createHash, timingSafeEqual } from "node:crypto"

const BEARER = /^bearer +([A-Za-z0-9._~+/-]+=*) *$/i

/** @param header the value of `Authorization`. */
export type HoldsToken = (header: string | undefined) => boolean

/** @param tokens empty: every request is authorized. */
export function authorization(tokens: readonly string[]): HoldsToken {
  const digests = tokens.map(digest)
  return (header) => {
    if (digests.length === 0) return true
    const token = BEARER.exec(header ?? "")?.[1]
    if (token === undefined) return false
    const shown = digest(token)
    let holds = false
    for (const known of digests) if (timingSafeEqual(shown, known)) holds = true
    return holds
  }
}

/** Digests of equal length, which the comparison needs. */
function digest(token: string): Buffer {
  return createHash("sha256").update(token).digest()
}
