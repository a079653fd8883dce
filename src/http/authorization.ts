/**
 * Bearer tokens: whether a request holds one of `HTTP_TOKENS`. The form of the header is that of RFC 6750,
 * section 2.1.
 *
 * Every token is compared, each in constant time, so that the time of an answer tells nothing of them.
 */

import { createHash, timingSafeEqual } from "node:crypto"

const BEARER = /^bearer +([A-Za-z0-9._~+/-]+=*) *$/i

/** @param header the value of `Authorization`. */
export type HoldsToken = (header: string | undefined) => boolean

/** @param tokens none: every request may do everything. */
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

/** Of one length, as the comparison needs them. */
function digest(token: string): Buffer {
  return createHash("sha256").update(token).digest()
}
