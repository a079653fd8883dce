/**
 * One connection of the doctor to a broker node. Each question has a channel of its own, since a
 * refusal closes its channel. The connection makes temporary exclusive queues only.
 *
 * Bounds: `OPEN_MS` for connecting; the caller bounds the rest.
 */

import type { AMQPChannel } from "@cloudamqp/amqp-client"
import { BatchingClient, PUBLISH_FRAME_MAX } from "../../amqp/client.ts"
import { type BrokerError, NotReached, readBrokerError } from "../../amqp/errors.ts"
import type { BrokerServer } from "../../amqp/server-properties.ts"
import { errorText } from "../../errors.ts"

export const OPEN_MS = 5_000
const REACH_MS = 2_000

/** Why the broker refused something. */
export interface Refusal {
  readonly error: BrokerError
  readonly text: string
}

export class BrokerSession {
  readonly #client: BatchingClient
  /** The reason of an alarm, once the broker has reported one. */
  blocked: string | null = null
  /** Called when the broker reports an alarm. */
  onBlocked: () => void = () => undefined

  private constructor(client: BatchingClient) {
    this.#client = client
    client.onblocked = (reason) => {
      this.blocked = reason
      this.onBlocked()
    }
    client.onunblocked = () => {
      this.blocked = null
    }
  }

  /** @param ca PEM; null for the CAs of the system. Rejects with the reason. */
  static async open(url: string, ca: string | null): Promise<BrokerSession> {
    const named = new URL(url)
    named.searchParams.set("name", "owsla doctor")
    named.searchParams.set("frameMax", String(PUBLISH_FRAME_MAX))
    const client = new BatchingClient(named.href, ca)
    const { promise: late, reject } = Promise.withResolvers<never>()
    // Also for a connection that is lost later: its questions are rejected.
    client.onerror = reject
    const reaching = setTimeout(() => {
      if (client.socket?.connecting === true) reject(new NotReached(REACH_MS))
    }, REACH_MS)
    const opening = setTimeout(() => reject(new Error(`no answer within ${OPEN_MS} ms`)), OPEN_MS)
    try {
      await Promise.race([client.connect(), late])
      return new BrokerSession(client)
    } catch (error) {
      client.socket?.destroy()
      throw error
    } finally {
      clearTimeout(reaching)
      clearTimeout(opening)
      late.catch(() => undefined)
    }
  }

  get server(): BrokerServer {
    return this.#client.server
  }

  async channel(): Promise<AMQPChannel> {
    const channel = await this.#client.channel()
    channel.onerror = () => undefined
    return channel
  }

  /** Null when the broker accepts it. Rejects when the connection is lost. */
  async attempt(act: (channel: AMQPChannel) => Promise<unknown>): Promise<Refusal | null> {
    const channel = await this.channel()
    try {
      await act(channel)
    } catch (error) {
      if (this.#client.closed) throw error
      const text = errorText(error)
      return { error: readBrokerError(text), text }
    }
    await channel.close()
    return null
  }

  /**
   * A queue that only this connection uses and that is deleted with it. Its name is one that each
   * instance may declare.
   */
  async temporaryQueue(channel: AMQPChannel): Promise<string> {
    const name = `owsla.fleet.doctor.${crypto.randomUUID()}`
    const params = { durable: false, exclusive: true, autoDelete: true, passive: false }
    await channel.queueDeclare(name, params, { "x-queue-type": "classic" })
    return name
  }

  close(): void {
    this.#client.socket?.destroy()
  }
}
