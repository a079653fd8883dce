/**
 * One AMQP connection that is made again after each loss, with a new client for each try.
 *
 *   down ──start──► connecting ──set up──► up ──lost──► waiting ──other URL, or backoff──► connecting
 *                        └──failed──────────────────────►┘
 *   any ──close──► closed
 *
 * After a failure the next URL is tried at once. When all URLs have failed, there is a wait. The
 * URL of a connection that was up for less than `STABLE_MS` counts as failed, so that nodes that
 * accept and then close are not tried in a loop. The connection neither publishes nor consumes:
 * `setUp` opens the channels. Bounds: `CONNECT_TIMEOUT_MS` for connecting and setting up, of which
 * `REACH_TIMEOUT_MS` for TCP; waits between tries of up to 5 s, or 0.7 s while the broker refuses
 * connections or cannot be reached, with jitter (`backoff.ts`).
 */

import { BROKER_BACKOFF, backoffMs } from "../backoff.ts"
import { asError } from "../errors.ts"
import { BatchingClient } from "./client.ts"
import { NotReached, readBrokerError } from "./errors.ts"
import { UrlRotation } from "./url-rotation.ts"

const CONNECT_TIMEOUT_MS = 10_000
/**
 * The limit for TCP. The kernel would retry for minutes, ever more rarely, and miss that a network
 * is back.
 */
const REACH_TIMEOUT_MS = 2_000
const CLOSE_TIMEOUT_MS = 2_000
const HEARTBEAT_S = 10
const STABLE_MS = 5_000
/**
 * While the broker refuses TCP connections or cannot be reached, a try costs one or two packets.
 * With short waits a broker that starts again is found within a second. A broker that accepts
 * connections and then fails gets longer waits.
 */
const ABSENT_BACKOFF = { firstMs: 100, maxMs: 700 }

export interface AmqpConnectionHooks {
  /** Opens channels on the new connection. A rejection counts as a failed try. */
  readonly setUp: (client: BatchingClient) => Promise<void>
  /** Sends everything that must reach the broker before the connection closes. */
  readonly tearDown: () => Promise<unknown>
  readonly up: () => void
  /** Called once for each connection that was up, and for each failed try. */
  readonly lost: (reason: string) => void
  readonly blocked: (reason: string) => void
  readonly unblocked: () => void
}

export interface AmqpConnectionOptions {
  /** One or several `amqp:` or `amqps:` URLs of nodes of one broker. */
  readonly urls: readonly string[]
  /** The name of the connection in the broker's tools. */
  readonly name: string
  /** Bytes; larger for connections that may receive large header frames. */
  readonly frameMax: number
  /** PEM; the only trusted CAs for `amqps:`. Null: the CAs of the system. */
  readonly ca: string | null
  /** The longest time for which a published message waits for later ones. */
  readonly gatherMs: number
}

export class AmqpConnection {
  readonly #options: AmqpConnectionOptions
  readonly #urls: UrlRotation
  readonly #hooks: AmqpConnectionHooks
  #state: "down" | "connecting" | "up" | "waiting" | "closed" = "down"
  #client: BatchingClient | null = null
  #attempt = 0
  #upSinceMs = 0
  /**
   * Whether all URLs that were tried since the last wait refused the connection or could not be
   * reached.
   */
  #allAbsent = true
  #timer: ReturnType<typeof setTimeout> | null = null

  constructor(options: AmqpConnectionOptions, hooks: AmqpConnectionHooks) {
    const { urls, name, frameMax } = options
    const withOptions = urls.map((url) => {
      const parsed = new URL(url)
      parsed.searchParams.set("name", name)
      parsed.searchParams.set("frameMax", String(frameMax))
      if (!parsed.searchParams.has("heartbeat")) {
        parsed.searchParams.set("heartbeat", String(HEARTBEAT_S))
      }
      return parsed.href
    })
    this.#options = options
    this.#urls = new UrlRotation(withOptions, Math.random)
    this.#hooks = hooks
  }

  get up(): boolean {
    return this.#state === "up"
  }

  start(): void {
    if (this.#state === "down" || this.#state === "waiting") void this.#connect()
  }

  /** Drops the current connection and reconnects. */
  reset(reason: string): void {
    if (this.#state === "up" || this.#state === "connecting")
      this.#lose(this.#client, new Error(reason))
  }

  /**
   * Stops reading from the broker. The broker closes such a connection after some 20 s without
   * heartbeats, and a new one is made.
   */
  pause(): void {
    this.#client?.socket?.pause()
  }

  resume(): void {
    this.#client?.socket?.resume()
  }

  /** Sends queued bytes and closes the connection, within `CLOSE_TIMEOUT_MS`. */
  async close(): Promise<void> {
    const client = this.#client
    const wasUp = this.#state === "up"
    this.#client = null
    this.#state = "closed"
    if (this.#timer !== null) clearTimeout(this.#timer)
    if (client === null) return
    client.socket?.resume()
    const goodbye = () => this.#hooks.tearDown().then(() => client.close())
    if (wasUp) await within(goodbye(), CLOSE_TIMEOUT_MS, "no answer").catch(() => undefined)
    abandon(client, "closed by us")
  }

  async #connect(): Promise<void> {
    this.#state = "connecting"
    let client: BatchingClient
    try {
      client = this.#newClient()
    } catch (error) {
      // The client cannot parse the URL. The configuration refuses the known kinds of such URLs.
      this.#retry(asError(error))
      return
    }
    this.#client = client
    const { promise: notReached, reject } = Promise.withResolvers<never>()
    const reaching = setTimeout(() => {
      if (client.socket?.connecting === true) reject(new NotReached(REACH_TIMEOUT_MS))
    }, REACH_TIMEOUT_MS)
    try {
      const setUp = client.connect().then(() => this.#hooks.setUp(client))
      const either = Promise.race([setUp, notReached])
      await within(either, CONNECT_TIMEOUT_MS, `no answer within ${CONNECT_TIMEOUT_MS / 1_000} s`)
    } catch (error) {
      this.#lose(client, asError(error))
      return
    } finally {
      clearTimeout(reaching)
    }
    if (this.#client !== client || this.#state !== "connecting") return
    this.#state = "up"
    this.#upSinceMs = performance.now()
    this.#hooks.up()
  }

  #newClient(): BatchingClient {
    const { ca, gatherMs } = this.#options
    const client = new BatchingClient(this.#urls.take(), ca, gatherMs)
    let cause = new Error("connection lost")
    client.onerror = (error) => {
      cause = error
    }
    client.ondisconnect = (error) => this.#lose(client, error ?? cause)
    client.onblocked = (reason) => {
      if (this.#client === client) this.#hooks.blocked(reason)
    }
    client.onunblocked = () => {
      if (this.#client === client) this.#hooks.unblocked()
    }
    return client
  }

  #lose(client: BatchingClient | null, cause: Error): void {
    if (client === null || this.#client !== client || this.#state === "closed") return
    this.#client = null
    if (this.#state === "up" && performance.now() - this.#upSinceMs >= STABLE_MS) {
      this.#attempt = 0
      this.#urls.avoidTaken()
    }
    // RST, not FIN: the kernel could still send messages that are about to be published again.
    client.socket?.resetAndDestroy()
    abandon(client, cause.message)
    this.#retry(cause)
  }

  #retry(cause: Error): void {
    this.#state = "waiting"
    this.#hooks.lost(cause.message)
    const isAbsent =
      cause instanceof NotReached || readBrokerError(cause.message).kind === "connection_refused"
    this.#allAbsent = this.#allAbsent && isAbsent
    let delayMs = 0
    if (this.#urls.exhausted) {
      const backoff = this.#allAbsent ? ABSENT_BACKOFF : BROKER_BACKOFF
      delayMs = backoffMs(this.#attempt, backoff, Math.random())
      this.#attempt += 1
      this.#allAbsent = true
    }
    this.#timer = setTimeout(() => this.start(), delayMs)
  }
}

/** Closes the channels too, which the client does only when it detects the loss itself. */
function abandon(client: BatchingClient, reason: string): void {
  client.socket?.destroy()
  for (const channel of client.channels) channel?.setClosed(new Error(reason))
}

function within<T>(promise: Promise<T>, timeoutMs: number, message: string): Promise<T> {
  const { promise: timeout, reject } = Promise.withResolvers<never>()
  const timer = setTimeout(() => reject(new Error(message)), timeoutMs)
  return Promise.race([promise, timeout]).finally(() => clearTimeout(timer))
}
