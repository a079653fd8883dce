/**
 * The rule for a secret of `HELLO_SECRETS`: it must be long enough, and not published or easy to
 * guess.
 *
 * A device stores a proof that is made with the secret, so anyone who obtains a device obtains a
 * proof. With a proof, an attacker can test candidate secrets offline, as fast as a machine
 * computes HMAC-SHA256. The gateway cannot count or refuse such attempts. Only the strength of the
 * secret prevents them.
 *
 * Pure. No message contains any part of the secret. The rule does not detect a guessable sentence;
 * `openssl rand -hex 32` makes a good secret.
 */

export const MIN_SECRET_CHARACTERS = 32
/**
 * One in 10,000 random hexadecimal secrets of 32 characters has fewer; a random base64 secret never
 * has.
 */
export const MIN_DISTINCT_CHARACTERS = 10

/**
 * Secrets and placeholders from the documentation, including former ones, in lower case. A secret
 * that contains one is refused too: they are short, and text added to reach the length is easy to
 * guess.
 */
export const DOCUMENTED_SECRETS: readonly string[] = ["change-me", "change-me-to-16-or-more"]

const CHARACTERS = /^[A-Za-z0-9._~+/-]+=*$/

export const SECRET_RANGE = `at least ${MIN_SECRET_CHARACTERS} of A-Z a-z 0-9 . _ ~ + / -`

/** The rule that the secret violates, or null. */
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
