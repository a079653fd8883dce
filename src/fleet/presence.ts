/**
 * Presence: publishes an event to the topic exchange `owsla.presence` when a device has connected
 * or disconnected. Each event contains the epoch of the connection. A subscriber that keeps the
 * largest epoch of each device can ignore late events.
 *
 *   event ─► waiting, send schedule ─► publisher (`MAX_IN_FLIGHT`) ─► owsla.presence
 *
 * Presence has its own publish channel with few messages in flight, so that a storm of events waits
 * here and does not delay lines. Subscribers are optional, so events are not published as
 * mandatory. Bound: `MAX_WAITING` events. Beyond it the oldest event is dropped and counted.
 */

import type { Broker, OutgoingMessage } from "../broker/broker.ts"
import { Publisher } from "../broker/publisher.ts"
import { PRESENCE_EXCHANGE } from "../broker/topology.ts"
import type { Counters } from "../counters.ts"
import type { CloseReason } from "../device/close-reason.ts"
import type { Connection } from "../device/connection.ts"
import { Fifo } from "../structures/fifo.ts"
import { instanceOf } from "./device-view.ts"
import type { SendSchedule } from "./send-schedule.ts"

const MAX_WAITING = 100_000
/** The maximum of events that may be published twice after a lost broker connection. */
const MAX_IN_FLIGHT = 200

/** The body of an event. Times are milliseconds since 1970. */
export interface PresenceEvent {
  readonly device_id: string
  readonly connection_id: string
  readonly epoch: number
  readonly instance: string
  readonly worker: string
  readonly remote_address: string
  readonly tls_version: string
  readonly at: number
  readonly reason?: CloseReason
  readonly lines_in?: number
  readonly lines_out?: number
}

interface Entry {
  readonly id: string
  readonly event: PresenceEvent
}

export interface PresenceOptions {
  readonly schedule: Pick<SendSchedule, "soon">
  readonly workerId: string
  readonly nowMs: () => number
  /** Milliseconds of a monotonic clock. */
  readonly steadyMs: () => number
  readonly counters: Counters
}

export class Presence {
  readonly #options: PresenceOptions
  readonly #publisher: Publisher<Entry>
  readonly #instance: string
  readonly #waiting = new Fifo<Entry>()
  #nextId = 0
  #isDue = false
  readonly #run = () => this.#send()

  constructor(broker: Broker, options: PresenceOptions) {
    const { counters, steadyMs, workerId } = options
    this.#options = options
    this.#instance = instanceOf(workerId)
    this.#publisher = new Publisher<Entry>(broker, {
      limits: {
        maxCount: MAX_IN_FLIGHT,
        maxBytes: Number.MAX_SAFE_INTEGER,
        maxInFlight: MAX_IN_FLIGHT,
      },
      steadyMs,
      groupOf: ({ event }) => event.device_id,
      describe: messageOf,
      done: () => {
        counters.presenceSent += 1
        if (!this.#isDue) this.#send()
      },
      whenReturned: () => "final",
    })
  }

  /** Events that the broker has not confirmed yet. */
  get count(): number {
    return this.#waiting.length + this.#publisher.count
  }

  silentSinceMs(): number | null {
    return this.#publisher.silentSinceMs()
  }

  connected(connection: Connection): void {
    this.#tell(connection, null)
  }

  disconnected(connection: Connection, reason: CloseReason): void {
    this.#tell(connection, reason)
  }

  stop(): void {
    this.#publisher.stop()
  }

  #tell(connection: Connection, reason: CloseReason | null): void {
    const { endpoint, peer } = connection
    // A connection that was not admitted has no device id.
    if (endpoint === null) return
    const { workerId, nowMs, counters } = this.#options
    const { deviceId, connectionId, epoch } = endpoint.recipient
    const event: PresenceEvent = {
      device_id: deviceId,
      connection_id: connectionId,
      epoch,
      instance: this.#instance,
      worker: workerId,
      remote_address: connection.remoteAddress,
      tls_version: peer.tlsVersion,
      at: nowMs(),
      ...(reason === null
        ? {}
        : { reason, lines_in: endpoint.linesIn, lines_out: endpoint.linesOut }),
    }
    this.#waiting.push({ id: `${connectionId}:${this.#nextId}`, event })
    this.#nextId += 1
    if (this.#waiting.length > MAX_WAITING) {
      this.#waiting.shift()
      counters.presenceDropped += 1
    }
    this.#sendSoon()
  }

  #sendSoon(): void {
    this.#isDue = true
    this.#options.schedule.soon(this.#run)
  }

  #send(): void {
    this.#isDue = false
    while (this.#publisher.window.hasRoom) {
      const entry = this.#waiting.shift()
      if (entry === undefined) return
      this.#publisher.publish(entry, 0)
    }
  }
}

function messageOf({ id, event }: Entry): OutgoingMessage {
  return {
    id,
    exchange: PRESENCE_EXCHANGE,
    routingKey: event.reason === undefined ? "device.connected" : "device.disconnected",
    mandatory: false,
    // Bounded, because its fields are.
    body: Buffer.from(JSON.stringify(event)),
    properties: {
      contentType: "application/json",
      deliveryMode: 2,
      messageId: id,
      timestamp: new Date(event.at),
      appId: "owsla",
    },
  }
}
