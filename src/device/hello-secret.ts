/**
 * The rule for a secret of `HELLO_SECRETS`: long enough, and not known or easy to guess.
 *
 * A device sees proofs that are made with the secret, and so does everyone who gets hold of a device. Each proof lets
 * them try secrets on their own machine as fast as it computes HMAC-SHA256, without a connection that could be
 * counted or refused. Only the secret's own strength stops that.
 *
 * Pure. No fault repeats any part of the secret. It cannot tell a random secret from a sentence: `openssl rand -hex 32`
 * makes a good one.
 */

export const MIN_SECRET_CHARACTERS = 32
/** A random secret of 32 characters has fewer in one of 10,000 cases when it is hexadecimal, and never in base64. */
export const MIN_DISTINCT_CHARACTERS = 10

/**
 * Every secret and placeholder that the documentation shows or has shown, in small letters. A secret that contains one
 * is refused too: they are short, and what makes them long enough is easy to guess.
 */
export const DOCUMENTED_SECRETS: readonly string[] = ["change-me", "change-me-to-16-or-more"]

const CHARACTERS = /^[A-Za-z0-9._~+/-]+=*$/

export const SECRET_RANGE = `at least ${MIN_SECRET_CHARACTERS} of A-Z a-z 0-9 . _ ~ + / -`

/** The rule that the secret breaks, or null. */
export function secretFault(secret: string): string | null {
  // The padding of base64 adds nothing.
  const characters = secret.replace(/=+$/, "")
  if (characters.length < MIN_SECRET_CHARACTERS || !CHARACTERS.test(secret)) {
    return `must be ${SECRET_RANGE}`
  }
  if (new Set(characters).size < MIN_DISTINCT_CHARACTERS) {
    return `must have at least ${MIN_DISTINCT_CHARACTERS} different characters`
  }
  const lower = secret.toLowerCase()
  if (DOCUMENTED_SECRETS.some((shown) => lower.includes(shown))) {
    return "must not be or contain a secret that the documentation shows"
  }
  return null
}
