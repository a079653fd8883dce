/**
 * The router: where a command goes, whichever way it came, and its forward to another worker.
 *
 *   target ─► destinationOf ─┬─ here, queue or nowhere
 *                            └─ device ─► locate ─► destinationAt ─► here, queue or nowhere
 *
 * Decides and forwards; its callers settle the commands. Holds no command. Bound: what its callers hold.
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

/** Where another worker holds a device. */
export type Place =
  | { readonly kind: "worker"; readonly worker: string }
  | { readonly kind: "nowhere"; readonly detail: string }

/**
 * @param trusting whether the location cache may answer; false when its answer was wrong before.
 * @param found called once, possibly before the call returns.
 */
export type Locate = (deviceId: string, trusting: boolean, found: (place: Place) => void) => void

export interface RouterOptions {
  readonly workerId: string
  readonly nowMs: () => number
  readonly counters: Counters
  /** The open connection of this worker with this connection or device id. */
  readonly find: (id: string) => Connection | undefined
  readonly locate: Locate
  readonly commandIds: CommandIds
  /** The secret by which the next worker knows that a member of the fleet forwarded the command; see `fleet-keys.ts`. */
  readonly commandKey: string
}

/** A destination that needs no look-up. */
export type Destination = Exclude<Route<Connection>, { readonly kind: "device" }>

export interface Forward {
  readonly queue: string
  readonly body: Uint8Array
  readonly properties: MessageProperties
  /** Asked before the first publish. Later ones are repeats of the same message, which its id tells. */
  readonly wanted: () => boolean
  /** Called once, with "withdrawn" when the forward was not wanted any more. */
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

  /** @param hops how many workers have forwarded the command. */
  destinationOf(target: Target, hops: number): Route<Connection> {
    const { workerId, find } = this.#options
    return route(target, hops, workerId, find)
  }

  /** Asks the fleet for the device; see `Locate`. */
  locate(deviceId: string, trusting: boolean, found: (place: Place) => void): void {
    this.#options.locate(deviceId, trusting, found)
  }

  /** @param place the fleet's answer. The device may have connected to this worker in the meantime. */
  destinationAt(deviceId: string, place: Place): Destination {
    const connection = this.#options.find(deviceId)
    if (connection !== undefined) return { kind: "here", connection }
    if (place.kind === "nowhere") return place
    return { kind: "queue", queue: workerQueue(place.worker) }
  }

  /** The properties of a command's message on its way to another worker. */
  forwardedProperties(properties: MessageProperties, command: ForwardedCommand): MessageProperties {
    const { nowMs, commandKey } = this.#options
    return forwarded(properties, command, nowMs(), commandKey)
  }

  forward({ queue, body, properties, wanted, done }: Forward): void {
    this.#options.counters.commandsForwarded += 1
    let published = false
    this.#outboundMessages.send(queue, body, properties, {
      whenReturned: "final",
      // Once it was published it may have arrived, and its outcome is decided there.
      wanted: () => published || wanted(),
      begun: () => {
        published = true
      },
      done,
    })
  }
}
