/**
 * An entry of `HTTP_TOKENS` or `HTTP_READ_TOKENS`: a bearer token, with or without a name before a
 * colon, such as `grafana:5f2c…`. A token has no colon (RFC 6750, section 2.1), so the first colon
 * ends the name. Pure.
 */

export const TOKEN_ENTRY = /^(?:[A-Za-z0-9._-]{1,32}:)?[A-Za-z0-9._~+/-]{16,}=*$/
export const TOKEN_ENTRY_RANGE =
  "at least 16 of A-Z a-z 0-9 . _ ~ + / -, after a name and a colon if you like; the name has up to 32 of A-Z a-z 0-9 . _ -"

export interface BearerToken {
  /** Null for a token without a name. */
  readonly name: string | null
  readonly token: string
}

/** @param entry that matches `TOKEN_ENTRY`. */
export function readBearerToken(entry: string): BearerToken {
  const colon = entry.indexOf(":")
  if (colon < 0) return { name: null, token: entry }
  return { name: entry.slice(0, colon), token: entry.slice(colon + 1) }
}
