/**
 * What a worker sets up at the broker: its exchanges and queues, and who takes what comes from each.
 * The names and arguments are those of `topology.ts`.
 *
 * What the fleet or the sender throws is a defect that is reported. Bound: `PREFETCH` for all queues together, divided by `SHARES`.
 */

import type { WorkerProcess } from "../device/ids.ts"
import { asError } from "../errors.ts"
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

/** The stages that take what comes from the queues. */
export interface Handlers {
  /** Throws nothing. @param prefetch how many deliveries of its queue may be unacknowledged. */
  readonly consumer: {
    deliver(delivery: Delivery, prefetch: number): void
    deliverDeadLetter(delivery: Delivery, prefetch: number): void
  }
  readonly unacknowledged: {
    /** The connection that delivers commands and dead letters was lost; called for each of their queues. */
    lost(): void
  }
  readonly fleet: { deliver(delivery: Delivery): void }
  readonly sender: { deliverReceipt(delivery: Delivery): void }
  readonly fault: (error: Error, queue: string) => void
}

export function brokerSetup(
  names: QueueNames & { readonly prefetch: number },
  self: WorkerProcess,
  { consumer, unacknowledged, fleet, sender, fault }: Handlers,
): BrokerSetup {
  const shares = divided(names.prefetch, Object.values(SHARES))
  const [fleetShare = 1, toDevice = 1, worker = 1, deadLetters = 1] = shares
  const fleetName = fleetQueue(self)
  const lost = () => unacknowledged.lost()
  const deliver: Subscription["deliver"] = (delivery, prefetch) =>
    consumer.deliver(delivery, prefetch)
  const deliverDeadLetter: Subscription["deliver"] = (delivery, prefetch) =>
    consumer.deliverDeadLetter(delivery, prefetch)
  const deliverFromWorker: Subscription["deliver"] = (delivery) => {
    // Acknowledged first: no message on this queue is delivered again, not even one whose handling throws.
    delivery.acknowledge()
    try {
      if (delivery.properties.type === FLEET_MESSAGE_TYPE) fleet.deliver(delivery)
      else sender.deliverReceipt(delivery)
    } catch (error) {
      fault(asError(error), fleetName)
    }
  }
  return {
    exchanges: EXCHANGES,
    queues: queueDeclarations(names, self),
    subscriptions: [
      // First, since a worker that does not know the fleet's members would call devices of others offline.
      { queue: fleetName, prefetch: fleetShare, deliver: deliverFromWorker, untilClose: true },
      { queue: names.toDeviceQueue, prefetch: toDevice, deliver, lost },
      // Exclusive, so that two instances with one INSTANCE_ID do not take each other's commands.
      { queue: workerQueue(self.worker), prefetch: worker, deliver, lost, exclusive: true },
      { queue: DEAD_LETTERS, prefetch: deadLetters, deliver: deliverDeadLetter, lost },
    ],
  }
}
