/**
 * AMQP URLs as settings give them: several, separated by commas, and what a URL may hold. Pure.
 *
 * Nothing that is said of a URL repeats any part of it: a password with an unescaped `?` or `/` reads as a path or a query.
 */

const MAX_HEARTBEAT_S = 300

/** A comma separates where another URL begins; any other may stand in a password. */
export function splitUrls(value: string): string[] {
  const urls = value.split(/,(?=\s*(?:[a-z]+:\/\/|$))/i).map((url) => url.trim())
  return urls.filter((url) => url !== "")
}

/** Why this is no URL for the gateway, or null. */
export function urlFault(url: string): string | null {
  const parsed = URL.parse(url)
  if (parsed === null) return "must be an amqp: or amqps: URL"
  const { protocol, hostname, pathname, username, password, hash, searchParams } = parsed
  if (protocol !== "amqp:" && protocol !== "amqps:") return "must be an amqp: or amqps: URL"
  if (hostname === "" || hostname.includes(",")) return "must be an amqp: or amqps: URL with a host"
  if (![pathname, username, password].every(isDecodable)) {
    return "must have a % only where it escapes a character; % itself is %25"
  }
  if (hash !== "") return "must have no #; within a name or password it is %23"
  if ([...searchParams.keys()].some((name) => name !== "heartbeat")) {
    return "must have no query parameter but heartbeat; a ? within a name or password is %3F"
  }
  const heartbeats = searchParams.getAll("heartbeat")
  if (heartbeats.length > 1 || heartbeats.some((seconds) => !isHeartbeat(seconds))) {
    return `must have one heartbeat, from 1 to ${MAX_HEARTBEAT_S} seconds`
  }
  return null
}

function isDecodable(part: string): boolean {
  try {
    decodeURIComponent(part)
    return true
  } catch {
    return false
  }
}

function isHeartbeat(seconds: string): boolean {
  return /^[1-9][0-9]{0,2}$/.test(seconds) && Number(seconds) <= MAX_HEARTBEAT_S
}
