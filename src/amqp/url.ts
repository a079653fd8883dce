/**
 * AMQP URLs of the settings: splits several URLs at commas and checks each. Pure.
 *
 * A fault contains no part of the URL, since a password with an unescaped `?` or `/` parses as a
 * path or a query.
 */

const MAX_HEARTBEAT_S = 300
/**
 * The first is an option of the AMQP client that sends the password to any server. The others are
 * from RabbitMQ's URI specification.
 */
const TLS_PARAMETERS: readonly string[] = ["insecure", "verify", "cacertfile"]

/** A comma separates URLs only before another URL. Any other comma may be part of a password. */
export function splitUrls(value: string): string[] {
  const urls = value.split(/,(?=\s*(?:[a-z]+:\/\/|$))/i).map((url) => url.trim())
  return urls.filter((url) => url !== "")
}

/** Why the gateway cannot use this URL, or null. */
export function urlFault(url: string): string | null {
  const parsed = URL.parse(url)
  if (parsed === null) return "must be an amqp: or amqps: URL"
  const { protocol, hostname, pathname, username, password, hash, searchParams } = parsed
  if (protocol !== "amqp:" && protocol !== "amqps:") return "must be an amqp: or amqps: URL"
  if (hostname === "" || hostname.includes(",")) return "must be an amqp: or amqps: URL with a host"
  if (![pathname, username, password].every(isDecodable)) {
    return "must have a % only in the escape of a UTF-8 character; write %25 for % itself"
  }
  if (hash !== "") return "must have no #; write %23 for it in a name or password"
  const names = [...searchParams.keys()]
  if (names.some((name) => TLS_PARAMETERS.includes(name.toLowerCase()))) {
    return "must have no query parameter that changes how the broker's certificate is checked; to trust a private CA, set AMQP_CA_FILE"
  }
  if (names.some((name) => name !== "heartbeat")) {
    return "must have no query parameter except heartbeat; write %3F for a ? in a name or password"
  }
  const heartbeats = searchParams.getAll("heartbeat")
  if (heartbeats.length > 1 || heartbeats.some((seconds) => !isHeartbeat(seconds))) {
    return `must have at most one heartbeat, from 1 to ${MAX_HEARTBEAT_S} seconds`
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
