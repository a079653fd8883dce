/**
 * What a worker sets up at the broker: its exchanges and queues, and who takes what comes from each.
 * The names and arguments are those of `topology.ts`.
 *
 * Whatever a taker throws is a defect that is reported; the delivery stays unacknowledged, and the
 * broker hands it out again on the next connection. Bound: `PREFETCH` for all queues together, divided by `SHARES`.
 */

import type { WorkerProcess } from "../device/ids.ts"
import type { BrokerSetup, Delivery, Subscription } from "./broker.ts"
import { divided } from "./prefetch.ts"
import {
  DEAD_LETTERS,
  EXCHANGES,
  fleetQueue,
  type QueueNames,
  queueDeclarations,
  workerQueue,
} from "./topology.ts"

/** Tells what workers tell each other from receipts, which come on the same queue. */
export const FLEET_MESSAGE_TYPE = "owsla.fleet"

/**
 * Shares of `PREFETCH`. Messages of the fleet's queue are acknowledged at once, so its share covers only those in flight;
 * dead letters are rare.
 */
const SHARES = { fleet: 2, toDevice: 4, worker: 3, deadLetters: 1 }

export interface Handlers {
  /** @param prefetch how many deliveries of its queue may be unacknowledged. */
  readonly command: (delivery: Delivery, prefetch: number) => void
  readonly deadLetter: (delivery: Delivery, prefetch: number) => void
  /** The connection that delivers commands and dead letters was lost; called for each of their queues. */
  readonly commandsLost: () => void
  readonly fleetMessage: (delivery: Delivery) => void
  readonly receipt: (delivery: Delivery) => void
  readonly fault: (error: Error, queue: string) => void
}

export function brokerSetup(
  names: QueueNames & { readonly prefetch: number },
  self: WorkerProcess,
  handlers: Handlers,
): BrokerSetup {
  const [fleet, toDevice, worker, deadLetters] = divided(names.prefetch, Object.values(SHARES))
  const subscribe = (
    queue: string,
    share: number | undefined,
    take: (delivery: Delivery, prefetch: number) => void,
  ): Subscription => {
    const deliver = (delivery: Delivery, prefetch: number): void => {
      try {
        take(delivery, prefetch)
      } catch (error) {
        handlers.fault(error instanceof Error ? error : new Error(String(error)), queue)
      }
    }
    return { queue, prefetch: share ?? 1, deliver }
  }
  const commands = (
    queue: string,
    share: number | undefined,
    take: Handlers["command"],
  ): Subscription => ({
    ...subscribe(queue, share, take),
    lost: handlers.commandsLost,
  })
  const told = (delivery: Delivery) => {
    // Nothing on this queue is worth a second try, not even what we trip over.
    delivery.acknowledge()
    if (delivery.properties.type === FLEET_MESSAGE_TYPE) handlers.fleetMessage(delivery)
    else handlers.receipt(delivery)
  }
  return {
    exchanges: EXCHANGES,
    queues: queueDeclarations(names, self),
    subscriptions: [
      // First, since a worker that does not know the fleet's members would call devices of others offline.
      { ...subscribe(fleetQueue(self), fleet, told), untilClose: true },
      commands(names.toDeviceQueue, toDevice, handlers.command),
      // Exclusive, so that two instances with one INSTANCE_ID do not take each other's commands.
      { ...commands(workerQueue(self.worker), worker, handlers.command), exclusive: true },
      commands(DEAD_LETTERS, deadLetters, handlers.deadLetter),
    ],
  }
}
