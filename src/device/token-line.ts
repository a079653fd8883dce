/**
 * `TOKEN <JWT>`: with `DEVICE_AUTH=token`, the first line by which a device identifies itself. Only
 * the form of the line; `token-verifier.ts` verifies the JWT.
 *
 * Bound: a first line of `MAX_TOKEN_LINE_BYTES` bytes without its LF or length.
 */

/** A JWT that is signed with RSA and has a dozen claims has about 1,000 bytes. */
export const MAX_TOKEN_LINE_BYTES = 4_096

/** Only the characters are checked, so that a malformed JWT is `refused`, not `not_identified`. */
const TOKEN = /^TOKEN ([A-Za-z0-9_.-]+)$/

/** The JWT, or null when the line does not have the form of a TOKEN line. */
export function tokenOf(line: string): string | null {
  return TOKEN.exec(line)?.[1] ?? null
}
