/**
 * The consumer: deliveries from the queues in, commands to their connections or to other workers out.
 * The first stage of a command's way.
 *
 *   to_device, owsla.worker.<id> ─► read ─► route ─┬─ here ──► connection ──► (later) its outcome
 *   owsla.dead_letters ─────────────┘              ├─ queue ─► forward; acknowledge once it is stored
 *                                                  ├─ device ► locate ──► here, queue or nowhere
 *                                                  └─ nowhere ► offline
 *
 * Never writes to a socket and never waits. Bounds: `PREFETCH` unacknowledged deliveries for each
 * queue and `maxHeldBytes` of bodies for all, beyond which the broker is read no further.
 */

import type { Counters } from "../counters.ts"
import type { Connection } from "../device/connection.ts"
import type { Broker, Delivery } from "./broker.ts"
import { type CommandMessage, readCommand, readDeath } from "./command-message.ts"
import { Copies } from "./copies.ts"
import { type CommandIds, forwarded } from "./forwarding.ts"
import { Outcomes, type QueuedCommand } from "./outcomes.ts"
import type { Posts } from "./posts.ts"
import { route } from "./routing.ts"
import { isWorkerQueue, WORKER_QUEUE_TTL_MS, workerQueue } from "./topology.ts"

export interface ConsumerOptions {
  readonly workerId: string
  readonly maxLineBytes: number
  /** Bytes of bodies of unacknowledged deliveries. */
  readonly maxHeldBytes: number
  readonly undeliveredQueue: string
  readonly nowMs: () => number
  readonly counters: Counters
  /** The open connection of this worker with this connection or device id. */
  readonly find: (id: string) => Connection | undefined
  readonly locate: Locate
  readonly commandIds: CommandIds
}

/** Where another worker holds a device. */
export type Place =
  | { readonly is: "with"; readonly worker: string }
  | { readonly is: "nowhere"; readonly detail: string }

/**
 * @param trusting whether what was announced will do; false for who was led astray by it.
 * @param found told once, possibly before the call returns.
 */
export type Locate = (deviceId: string, trusting: boolean, found: (place: Place) => void) => void

export class Consumer {
  readonly #options: ConsumerOptions
  readonly #broker: Broker
  readonly #posts: Posts
  readonly outcomes: Outcomes
  readonly #copies = new Copies()
  #heldBytes = 0
  #heldCount = 0
  #paused = false

  constructor(broker: Broker, posts: Posts, options: ConsumerOptions) {
    this.#options = options
    this.#broker = broker
    this.#posts = posts
    const { counters, undeliveredQueue, nowMs } = options
    this.outcomes = new Outcomes(posts, counters, undeliveredQueue, nowMs, (delivery) =>
      this.#release(delivery),
    )
  }

  /** Deliveries that are not acknowledged yet. */
  get heldCount(): number {
    return this.#heldCount
  }

  /** Takes a delivery from `to_device` or from this worker's own queue. */
  deliver(delivery: Delivery): void {
    const { counters, nowMs, maxLineBytes } = this.#options
    counters.commandsReceived += 1
    const read = readCommand(delivery.body, delivery.properties, nowMs(), maxLineBytes)
    const taken =
      "outcome" in read || read.commandId === null
        ? delivery
        : this.#copies.take(read.commandId, read.hops, delivery)
    if (taken === null) {
      counters.commandsRedelivered += 1
      return
    }
    this.#hold(taken)
    if ("outcome" in read) this.outcomes.settleDelivery(taken, read.outcome, read.detail, null)
    else this.#route(taken, read)
  }

  /** Takes a delivery that the broker gave up in another queue. */
  deliverDeadLetter(delivery: Delivery): void {
    const { counters, nowMs, maxLineBytes } = this.#options
    counters.deadLettersReceived += 1
    this.#hold(delivery)
    const death = readDeath(delivery.properties)
    const expiration = death?.expiration ?? null
    const properties = { ...delivery.properties }
    if (death !== null && expiration !== null) {
      const undated = properties.timestamp === undefined && isWorkerQueue(death.queue)
      // Without a timestamp it counts from its arrival, and it has waited in that queue since.
      const waitedMs = undated ? WORKER_QUEUE_TTL_MS : 0
      properties.expiration = String(Math.max(0, Number(expiration) - waitedMs))
    }
    const read = readCommand(delivery.body, properties, nowMs(), maxLineBytes)
    if ("outcome" in read) {
      this.outcomes.settleDelivery(delivery, read.outcome, read.detail, null)
      return
    }
    const abandoned =
      death?.reason === "expired" &&
      isWorkerQueue(death.queue) &&
      (expiration === null || Number(expiration) > WORKER_QUEUE_TTL_MS) &&
      read.expiresAtMs > nowMs()
    if (abandoned) this.#route(delivery, read, death.queue)
    else if (death?.reason === "expired") {
      this.outcomes.settleDelivery(delivery, "expired", `in the queue ${death.queue}`, null)
    } else {
      const detail = `given up by the broker: ${death?.reason ?? "no x-death header"}`
      this.outcomes.settleDelivery(delivery, "closed", detail, null)
    }
  }

  /** @param leftIn the queue of a worker that did not take the command in time. */
  #route(delivery: Delivery, message: CommandMessage, leftIn: string | null = null): void {
    const { workerId, find } = this.#options
    const destination = route(message.target, message.hops, workerId, find)
    switch (destination.to) {
      case "here":
        destination.connection.offer(this.#command(delivery, message))
        break
      case "queue":
        if (destination.queue === leftIn) {
          const detail = `left in ${leftIn} for ${WORKER_QUEUE_TTL_MS} ms`
          this.outcomes.settleDelivery(delivery, "offline", detail, null)
        } else this.#forward(delivery, message, destination.queue)
        break
      case "device":
        this.#locate(delivery, message, destination.deviceId, leftIn === null)
        break
      case "nowhere":
        this.outcomes.settleDelivery(delivery, "offline", destination.detail, null)
        break
    }
  }

  #locate(delivery: Delivery, message: CommandMessage, deviceId: string, fresh: boolean): void {
    const { find, locate } = this.#options
    // What came here by an announcement, or was left where one led, is not sent after another.
    locate(deviceId, fresh && message.hops === 0, (place) => {
      if (delivery.lost) {
        // The broker hands it out again, perhaps to us: what was done with both would be done twice.
        this.#copies.drop(delivery)
        this.#release(delivery)
        return
      }
      // It may have come to this worker in the meantime.
      const connection = find(deviceId)
      if (connection !== undefined) connection.offer(this.#command(delivery, message))
      else if (place.is === "with") this.#forward(delivery, message, workerQueue(place.worker))
      else this.outcomes.settleDelivery(delivery, "offline", place.detail, null)
    })
  }

  #command(delivery: Delivery, message: CommandMessage): QueuedCommand {
    return {
      body: delivery.body,
      seq: message.seq,
      messageId: message.messageId,
      expiresAtMs: message.expiresAtMs,
      redelivered: delivery.redelivered || message.redelivered,
      source: this.outcomes,
      delivery,
    }
  }

  #forward(delivery: Delivery, message: CommandMessage, queue: string): void {
    this.#options.counters.commandsForwarded += 1
    const redelivered = delivery.redelivered || message.redelivered
    const nowMs = this.#options.nowMs()
    const commandId = message.commandId ?? this.#options.commandIds.mint()
    const carried = { ...message, redelivered, commandId }
    const properties = forwarded(delivery.properties, carried, nowMs)
    this.#posts.send(queue, delivery.body, properties, "final", (result) => {
      switch (result) {
        case "confirmed":
          delivery.acknowledge()
          this.#release(delivery)
          break
        case "returned":
          this.outcomes.settleDelivery(delivery, "offline", `no queue ${queue}`, null)
          break
        case "unencodable":
          this.outcomes.settleDelivery(delivery, "invalid", "its headers are too large", null)
          break
      }
    })
  }

  #hold(delivery: Delivery): void {
    this.#heldCount += 1
    this.#heldBytes += delivery.body.length
    if (this.#paused || this.#heldBytes <= this.#options.maxHeldBytes) return
    this.#paused = true
    this.#broker.pauseConsuming()
  }

  #release(delivery: Delivery): void {
    this.#heldCount -= 1
    this.#heldBytes -= delivery.body.length
    if (!this.#paused || this.#heldBytes > this.#options.maxHeldBytes / 2) return
    this.#paused = false
    this.#broker.resumeConsuming()
  }
}
