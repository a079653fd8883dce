/**
 * A connection of the simulated back-end to the broker, made again after each loss.
 *
 *   down ──start──► connecting ──set up──► up ──lost──► waiting ──backoff──► connecting
 *                        └───────failed────────────────►┘
 *   any ──close──► closed
 *
 * It uses the AMQP client as it is and nothing of the gateway, so that the ledger is a witness of
 * its own. Bounds: `CONNECT_TIMEOUT_MS` for connecting and setting up; waits by `BACKOFF`.
 */

import { type AMQPBaseClient, AMQPClient } from "@cloudamqp/amqp-client"
import { backoffMs } from "../backoff.ts"
import { errorText } from "../errors.ts"

const CONNECT_TIMEOUT_MS = 10_000
const CLOSE_TIMEOUT_MS = 2_000
const HEARTBEAT_S = "10"
/** Short, so that a broker that starts again is found within a second. */
const BACKOFF = { firstMs: 100, maxMs: 700 }

export interface BrokerLinkHooks {
  /** Opens channels on a new connection. A rejection counts as a failed try. */
  readonly setUp: (client: AMQPBaseClient) => Promise<void>
  /** Sends everything that must reach the broker before the connection closes. */
  readonly tearDown: () => Promise<unknown>
  readonly up?: () => void
  /** Called once for each connection that was up, and for each failed try. */
  readonly lost: (reason: string) => void
}

export class BrokerLink {
  readonly #urls: readonly string[]
  readonly #hooks: BrokerLinkHooks
  #client: AMQPClient | null = null
  #state: "down" | "connecting" | "up" | "waiting" | "closed" = "down"
  #tries = 0
  /** Failed tries since the last connection that was up. */
  #failures = 0
  #timer: ReturnType<typeof setTimeout> | null = null

  /**
   * @param urls one or several URLs of nodes of one broker, which are tried in turn.
   * @param name the name of the connection in the broker's tools.
   */
  constructor(urls: readonly string[], name: string, hooks: BrokerLinkHooks) {
    this.#urls = urls.map((url) => {
      const parsed = new URL(url)
      parsed.searchParams.set("name", name)
      if (!parsed.searchParams.has("heartbeat")) parsed.searchParams.set("heartbeat", HEARTBEAT_S)
      return parsed.href
    })
    this.#hooks = hooks
  }

  start(): void {
    if (this.#state === "down" || this.#state === "waiting") void this.#connect()
  }

  /** Drops the current connection and reconnects. */
  reset(reason: string): void {
    if (this.#client !== null) this.#lose(this.#client, reason)
  }

  /** Closes the connection, within `CLOSE_TIMEOUT_MS`. */
  async close(): Promise<void> {
    const client = this.#client
    const wasUp = this.#state === "up"
    this.#client = null
    this.#state = "closed"
    if (this.#timer !== null) clearTimeout(this.#timer)
    if (client === null) return
    const closed = async () => {
      await this.#hooks.tearDown()
      await client.close()
    }
    if (wasUp) await Promise.race([closed().catch(() => undefined), Bun.sleep(CLOSE_TIMEOUT_MS)])
    client.socket?.destroy()
  }

  async #connect(): Promise<void> {
    this.#state = "connecting"
    const client = new AMQPClient(this.#urls[this.#tries % this.#urls.length] ?? "")
    this.#tries += 1
    this.#client = client
    client.onerror = () => undefined
    client.ondisconnect = (error) => this.#lose(client, error?.message ?? "connection lost")
    const timer = setTimeout(() => this.#lose(client, "no answer"), CONNECT_TIMEOUT_MS)
    try {
      await client.connect()
      await this.#hooks.setUp(client)
    } catch (error) {
      this.#lose(client, errorText(error))
    } finally {
      clearTimeout(timer)
    }
    if (this.#client !== client) return
    this.#state = "up"
    this.#failures = 0
    this.#hooks.up?.()
  }

  #lose(client: AMQPClient, reason: string): void {
    if (this.#client !== client) return
    this.#client = null
    this.#state = "waiting"
    client.socket?.destroy()
    this.#hooks.lost(reason)
    const waitMs = backoffMs(this.#failures, BACKOFF, Math.random())
    this.#failures += 1
    this.#timer = setTimeout(() => this.start(), waitMs)
  }
}
