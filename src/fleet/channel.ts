/**
 * The channel between workers: sends messages to all workers (`owsla.fleet`) or to one (its fleet
 * queue), and reads received ones. No message is stored: while the broker is not available,
 * messages are dropped, and the sender is notified.
 *
 *   message ─► JSON ─► owsla-mac ─► broker ─► size ─► owsla-mac verified ─► parsed ─► each row checked
 *
 * A received message that does not verify is dropped and counted: each user that may publish to the
 * default exchange can send one. Messages are never delayed and never repeated. Bounds:
 * `MAX_IN_FLIGHT` unconfirmed messages, beyond which a message is dropped and counted;
 * `MAX_MESSAGE_BYTES` for a received message.
 */

import type { Broker, Delivery, PublishChannel, PublishResult } from "../broker/broker.ts"
import { FLEET_MESSAGE_TYPE } from "../broker/setup.ts"
import { FLEET_EXCHANGE, fleetQueue } from "../broker/topology.ts"
import type { Counters } from "../counters.ts"
import type { WorkerProcess } from "../device/ids.ts"
import { type FleetKeys, MAC_HEADER } from "./fleet-keys.ts"
import { type FleetContent, type FleetMessage, parseFleetMessage } from "./messages.ts"

/** The maximum of unconfirmed messages. */
const MAX_IN_FLIGHT = 1_000
/**
 * More than the size of a message with `MAX_ROWS` of the largest rows, and of a broadcast of the
 * longest line to `MAX_BROADCAST_IDS` of the longest ids.
 */
const MAX_MESSAGE_BYTES = 3_145_728

interface Publish {
  readonly id: string
  readonly settled: (result: PublishResult) => void
}

export interface ChannelOptions {
  readonly self: WorkerProcess
  /** Milliseconds of a monotonic clock. */
  readonly steadyMs: () => number
  readonly nowMs: () => number
  readonly counters: Counters
  readonly keys: FleetKeys
}

export class Channel {
  readonly #options: ChannelOptions
  readonly #publishChannel: PublishChannel<Publish>
  readonly #ownQueue: string
  #inFlight = 0
  #confirmedAtMs = Number.NEGATIVE_INFINITY
  #nextId = 0

  /** @param opened called each time that messages can be sent again. */
  constructor(broker: Broker, opened: () => void, options: ChannelOptions) {
    this.#options = options
    this.#ownQueue = fleetQueue(options.self)
    this.#publishChannel = broker.publishChannel<Publish>({
      opened,
      settled: ({ settled }, result) => {
        this.#inFlight -= 1
        if (result === "confirmed") this.#confirmedAtMs = options.steadyMs()
        settled(result)
      },
      idOf: ({ id }) => id,
    })
  }

  get open(): boolean {
    return this.#publishChannel.state === "open"
  }

  /** False while messages wait for a moment only, behind a large one or an alarm of the broker. */
  get closed(): boolean {
    return this.#publishChannel.state === "closed"
  }

  /** When the broker last confirmed a message; `-Infinity` before the first confirm. */
  get confirmedAtMs(): number {
    return this.#confirmedAtMs
  }

  /** False when the next message would be dropped. */
  get hasRoom(): boolean {
    return this.#inFlight < MAX_IN_FLIGHT
  }

  broadcast(content: FleetContent, settled?: (result: PublishResult) => void): void {
    this.#publish(FLEET_EXCHANGE, "", content, settled)
  }

  /**
   * Sends to one worker process. `settled` gets "returned" when that process does not exist any
   * more.
   */
  tell(to: WorkerProcess, content: FleetContent, settled?: (result: PublishResult) => void): void {
    this.#publish("", fleetQueue(to), content, settled)
  }

  /**
   * The message in a delivery. Null when this worker has sent it, its MAC is not valid, or it
   * cannot be parsed.
   */
  read({ body, properties }: Delivery): FleetMessage | null {
    const { counters, keys, nowMs } = this.#options
    // This worker's own broadcasts are delivered to it too.
    if (properties.replyTo === this.#ownQueue) return null
    if (body.length > MAX_MESSAGE_BYTES || !keys.verifies(body, properties.headers?.[MAC_HEADER])) {
      counters.fleetMessagesUnverified += 1
      return null
    }
    const read = parseFleetMessage(Buffer.from(body).toString(), nowMs())
    if (read === null) {
      counters.fleetMessagesUnknown += 1
      return null
    }
    counters.fleetRowsRefused += read.refusedRows
    return read.message
  }

  #publish(
    exchange: string,
    routingKey: string,
    content: FleetContent,
    settled: (result: PublishResult) => void = () => undefined,
  ): void {
    const { self, counters, keys } = this.#options
    if (!this.open || !this.hasRoom) {
      counters.fleetMessagesDropped += 1
      queueMicrotask(() => settled("cut"))
      return
    }
    const message = { from: self.worker, incarnation: self.incarnation, ...content }
    const body = Buffer.from(JSON.stringify(message))
    const id = String(this.#nextId)
    this.#nextId += 1
    this.#inFlight += 1
    counters.fleetMessagesSent += 1
    this.#publishChannel.publish(
      {
        id,
        exchange,
        routingKey,
        body,
        properties: {
          contentType: "application/json",
          type: FLEET_MESSAGE_TYPE,
          messageId: id,
          replyTo: this.#ownQueue,
          appId: "owsla",
          headers: { [MAC_HEADER]: keys.mac(body) },
        },
      },
      { id, settled },
    )
  }
}
