/**
 * Reads queues, nodes and the time of a broker from the HTTP API of RabbitMQ's management plugin,
 * which LavinMQ has too. AMQP does not show policies. Only GET requests. Bound: `REQUEST_MS` for
 * each.
 */

import * as v from "valibot"

export const REQUEST_MS = 3_000

const table = v.record(v.string(), v.unknown())
/** Without a policy RabbitMQ's API has an empty list or null in place of an object. */
const emptyOrTable = v.fallback(v.nullable(table), null)

const queue = v.object({
  name: v.string(),
  type: v.optional(v.string(), "classic"),
  arguments: v.optional(emptyOrTable),
  policy: v.nullish(v.string()),
  /** Missing until RabbitMQ has collected statistics of the queue, every 5 s. */
  effective_policy_definition: v.optional(emptyOrTable),
})

const node = v.object({
  name: v.string(),
  running: v.optional(v.boolean(), true),
  mem_alarm: v.optional(v.boolean(), false),
  disk_free_alarm: v.optional(v.boolean(), false),
})

export type ManagedQueue = v.InferOutput<typeof queue>
export type ManagedNode = v.InferOutput<typeof node>

/** The API answered with another status than 200. */
export class ManagementError extends Error {
  override readonly name = "ManagementError"
  readonly status: number

  constructor(status: number) {
    super(`the management API answers with status ${status}`)
    this.status = status
  }
}

export class Management {
  readonly #url: string
  readonly #authorization: string
  readonly #vhost: string

  /**
   * @param url with user and password, or else those of `amqpUrl` are used.
   * @param amqpUrl also has the virtual host.
   */
  constructor(url: URL, amqpUrl: URL) {
    const { username, password } = url.username === "" ? amqpUrl : url
    const user = username === "" ? "guest:guest" : decodeURIComponent(`${username}:${password}`)
    this.#authorization = `Basic ${Buffer.from(user).toString("base64")}`
    this.#url = `${url.origin}${url.pathname.replace(/\/$/, "")}`
    const path = decodeURIComponent(amqpUrl.pathname.slice(1))
    this.#vhost = encodeURIComponent(path === "" ? "/" : path)
  }

  /** Null when the queue does not exist. */
  async queue(name: string): Promise<ManagedQueue | null> {
    try {
      const { body } = await this.#get(`queues/${this.#vhost}/${encodeURIComponent(name)}`)
      return v.parse(queue, body)
    } catch (error) {
      if (error instanceof ManagementError && error.status === 404) return null
      throw error
    }
  }

  /** Null when the user may not see the nodes. */
  async nodes(): Promise<readonly ManagedNode[] | null> {
    try {
      return v.parse(v.array(node), (await this.#get("nodes")).body)
    } catch (error) {
      if (error instanceof ManagementError && [401, 403].includes(error.status)) return null
      throw error
    }
  }

  /** The broker's clock minus this one, milliseconds; accurate to a second. */
  async clockDifferenceMs(): Promise<number | null> {
    const { date } = await this.#get("whoami")
    const atMs = Date.parse(date ?? "")
    return Number.isNaN(atMs) ? null : atMs - Date.now()
  }

  async #get(path: string): Promise<{ body: unknown; date: string | null }> {
    const response = await fetch(`${this.#url}/api/${path}`, {
      headers: { authorization: this.#authorization },
      redirect: "error",
      signal: AbortSignal.timeout(REQUEST_MS),
    })
    if (response.status !== 200) throw new ManagementError(response.status)
    return { body: await response.json(), date: response.headers.get("date") }
  }
}
