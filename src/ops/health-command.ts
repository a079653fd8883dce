/**
 * `bun run health`, the health check of the container image, which has no curl: requests `GET
 * /health` of the gateway with the same environment. Exit status: 0 when a worker answers, 1 when
 * none does, 2 for a usage error.
 *
 * `/health` and not `/ready`: a container must not be restarted because the broker is away, since
 * its devices would be disconnected.
 */

import { type Config, ConfigurationError, loadConfig } from "../config/config.ts"
import { errorText } from "../errors.ts"

/** Below the time-out of HEALTHCHECK in the Dockerfile, so that the reason is printed. */
const TIMEOUT_MS = 4_000
const USAGE = `usage: bun run health
           requests GET /health of the gateway with the same environment; status 0 when it answers`

export async function runHealthCommand(args: readonly string[]): Promise<0 | 1 | 2> {
  const [argument] = args
  if (argument === "--help" || argument === "-h") {
    console.log(USAGE)
    return 0
  }
  if (argument !== undefined) {
    console.error(`Unexpected argument ${JSON.stringify(argument)}\n${USAGE}`)
    return 2
  }
  let url: string
  try {
    url = healthUrl(loadConfig().http)
  } catch (error) {
    const faults = error instanceof ConfigurationError ? error.faults : [errorText(error)]
    console.error(faults.join("\n"))
    return 1
  }
  try {
    const { status } = await fetch(url, { signal: AbortSignal.timeout(TIMEOUT_MS) })
    if (status === 200) return 0
    console.error(`${url} answers ${status}`)
  } catch (error) {
    console.error(`no gateway answers at ${url}: ${errorText(error)}`)
  }
  return 1
}

/** An address that means all addresses is reached by loopback. */
export function healthUrl({ host, port }: Pick<Config["http"], "host" | "port">): string {
  const address = host === "0.0.0.0" ? "127.0.0.1" : host === "::" ? "::1" : host
  return `http://${address.includes(":") ? `[${address}]` : address}:${port}/health`
}
