/**
 * The exchanges, queues and subscriptions of a worker. Names and arguments are in `topology.ts`.
 *
 * An exception of the fleet or the sender is reported as a defect. Bound: `PREFETCH` for all queues
 * together, divided by `SHARES`; with more shards than a quarter of it, one more for each log of
 * held commands that this worker keeps.
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

/** The `type` of messages between workers. Receipts arrive on the same queue. */
export const FLEET_MESSAGE_TYPE = "owsla.fleet"
/** The `type` of held commands on the way to the worker of their device. */
export const HELD_MESSAGE_TYPE = "owsla.held"

/**
 * The shares of `PREFETCH`. Messages of the fleet queue are acknowledged at once, so its share
 * covers messages in flight only. Dead letters are rare.
 */
const SHARES = { fleet: 2, toDevice: 4, worker: 3, deadLetters: 1 }
/** The part of `PREFETCH` for the logs of held commands: one of this many. */
const HELD_PART = 11
/** With many shards their logs need more. They leave at least three quarters to the others. */
const MAX_HELD_PART = 4
const ON_THE_WAY_PART = 8

/**
 * The prefetch of the log of each shard's held commands. One worker may keep all shards, and their
 * number changes: so the share is divided by all of them.
 */
export function heldPrefetch(prefetch: number, shards: number): number {
  return Math.max(1, Math.floor(prefetch / HELD_PART / shards))
}

/**
 * The held commands that one keeper may have on the way to one worker: more than it writes in the
 * time that a command and its receipt need, and few of what it is delivered at once.
 */
export function heldOnTheWay(prefetch: number): number {
  return Math.max(1, Math.floor(prefetch / ON_THE_WAY_PART))
}

/** The handlers of deliveries. */
export interface Handlers {
  /** Throws nothing. @param prefetch the limit of unacknowledged deliveries of the queue. */
  readonly consumer: {
    deliver(delivery: Delivery, prefetch: number): void
    deliverDeadLetter(delivery: Delivery, prefetch: number): void
    deliverHeld(delivery: Delivery): void
  }
  readonly unacknowledged: {
    /** Called for each queue of commands and dead letters when its connection was lost. */
    lost(): void
  }
  readonly fleet: { deliver(delivery: Delivery): void }
  readonly receipts: { deliverReceipt(delivery: Delivery): void }
  readonly fault: (error: Error, queue: string) => void
}

export function brokerSetup(
  names: QueueNames & { readonly prefetch: number; readonly shards: number },
  self: WorkerProcess,
  { consumer, unacknowledged, fleet, receipts, fault }: Handlers,
): BrokerSetup {
  const { prefetch, shards } = names
  const held = Math.min(shards * heldPrefetch(prefetch, shards), prefetch / MAX_HELD_PART)
  const shares = divided(prefetch - Math.floor(held), Object.values(SHARES))
  const [fleetShare = 1, toDevice = 1, worker = 1, deadLetters = 1] = shares
  const fleetName = fleetQueue(self)
  const lost = () => unacknowledged.lost()
  const deliver: Subscription["deliver"] = (delivery, prefetch) =>
    consumer.deliver(delivery, prefetch)
  const deliverDeadLetter: Subscription["deliver"] = (delivery, prefetch) =>
    consumer.deliverDeadLetter(delivery, prefetch)
  const deliverFromWorker: Subscription["deliver"] = (delivery) => {
    // Acknowledged first, so that no message of this queue is redelivered, even if its handler
    // throws.
    delivery.acknowledge()
    try {
      const { type } = delivery.properties
      if (type === FLEET_MESSAGE_TYPE) fleet.deliver(delivery)
      else if (type === HELD_MESSAGE_TYPE) consumer.deliverHeld(delivery)
      else receipts.deliverReceipt(delivery)
    } catch (error) {
      fault(asError(error), fleetName)
    }
  }
  return {
    exchanges: EXCHANGES,
    queues: queueDeclarations(names, self),
    subscriptions: [
      // First, since a worker that knows no other workers would report their devices as offline.
      {
        ...{ queue: fleetName, prefetch: fleetShare, deliver: deliverFromWorker },
        ...{ untilClose: true, mayRepeat: true },
      },
      { queue: names.toDeviceQueue, prefetch: toDevice, deliver, lost },
      // Exclusive, so that two instances with the same INSTANCE_ID do not consume each other's
      // commands.
      { queue: workerQueue(self.worker), prefetch: worker, deliver, lost, exclusive: true },
      { queue: DEAD_LETTERS, prefetch: deadLetters, deliver: deliverDeadLetter, lost },
    ],
  }
}
