/**
 * Routes commands from queues and from HTTP, and forwards them to other workers.
 *
 *   target ─► destinationOf ─┬─ here, queue or nowhere
 *                            └─ device ─► locate ─► destinationAt ─► here, queue or nowhere
 *
 * Its callers settle the commands. It keeps no commands. Bound: those of its callers.
 */

import type { MessageProperties } from "../broker/broker.ts"
import type { OutboundMessages } from "../broker/outbound-messages.ts"
import type { FinalResult } from "../broker/publish-window.ts"
import { workerQueue } from "../broker/topology.ts"
import type { Counters } from "../counters.ts"
import type { Connection } from "../device/connection.ts"
import type { Target } from "./command-message.ts"
import { type CommandIds, type ForwardedCommand, forwarded } from "./forwarding.ts"
import { type Route, route } from "./routing.ts"

/** The place of a device that this worker does not hold. */
export type Place =
  | { readonly kind: "worker"; readonly worker: string }
  | { readonly kind: "nowhere"; readonly detail: string }

/**
 * @param trusting whether the location cache may answer; false after it gave a wrong answer.
 * @param found called once, possibly before the call returns.
 */
export type Locate = (deviceId: string, trusting: boolean, found: (place: Place) => void) => void

/**
 * The queue of the worker that keeps the held commands of a device; null when none is known.
 */
export type KeeperQueueOf = (deviceId: string) => string | null

export interface RouterOptions {
  readonly workerId: string
  readonly nowMs: () => number
  readonly counters: Counters
  /** The open connection of this worker with this connection or device id. */
  readonly find: (id: string) => Connection | undefined
  readonly locate: Locate
  readonly commandIds: CommandIds
  /**
   * Proves to the next worker that a member of the fleet forwarded the command; see
   * `fleet-keys.ts`.
   */
  readonly commandKey: string
}

/** A destination that needs no look-up. */
export type Destination = Exclude<Route<Connection>, { readonly kind: "device" }>

export interface Forward {
  readonly queue: string
  readonly body: Uint8Array
  readonly properties: MessageProperties
  /** Called before the first publish. Later publishes repeat the same message, with the same id. */
  readonly wanted: () => boolean
  /** Called once, with "withdrawn" when the forward was no longer wanted. */
  readonly done: (result: FinalResult) => void
}

export class CommandRouter {
  readonly #outboundMessages: OutboundMessages
  readonly #options: RouterOptions

  constructor(outboundMessages: OutboundMessages, options: RouterOptions) {
    this.#outboundMessages = outboundMessages
    this.#options = options
  }

  /** The id for a command that is forwarded for the first time. */
  mintCommandId(): string {
    return this.#options.commandIds.mint()
  }

  /** @param hops the number of times that the command was forwarded. */
  destinationOf(target: Target, hops: number): Route<Connection> {
    const { workerId, find } = this.#options
    return route(target, hops, workerId, find)
  }

  /** Asks the fleet for the device; see `Locate`. */
  locate(deviceId: string, trusting: boolean, found: (place: Place) => void): void {
    this.#options.locate(deviceId, trusting, found)
  }

  /**
   * @param place the answer of the fleet. The device may have connected to this worker meanwhile.
   */
  destinationAt(deviceId: string, place: Place): Destination {
    const connection = this.#options.find(deviceId)
    if (connection !== undefined) return { kind: "here", connection }
    if (place.kind === "nowhere") return place
    return { kind: "queue", queue: workerQueue(place.worker) }
  }

  /** The properties of the message that forwards a command. */
  forwardedProperties(properties: MessageProperties, command: ForwardedCommand): MessageProperties {
    const { nowMs, commandKey } = this.#options
    return forwarded(properties, command, nowMs(), commandKey)
  }

  forward({ queue, body, properties, wanted, done }: Forward): void {
    this.#options.counters.commandsForwarded += 1
    let published = false
    this.#outboundMessages.send(queue, body, properties, {
      whenReturned: "final",
      // A published forward may have arrived, and then its outcome is decided there.
      wanted: () => published || wanted(),
      begun: () => {
        published = true
      },
      done,
    })
  }
}
