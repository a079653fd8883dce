/**
 * Decides where a command goes: to a connection of this worker, to the queue of another worker, to
 * the place where the fleet finds its device, or nowhere. Pure.
 *
 * A connection id contains its worker and needs no look-up; a device id does. Bound: `MAX_HOPS`
 * forwards, so that no command follows a moving device without end.
 */

import { workerQueue } from "../broker/topology.ts"
import { workerOfConnection } from "../device/ids.ts"
import type { Target } from "./command-message.ts"

export const MAX_HOPS = 3

export type Route<C> =
  | { readonly kind: "here"; readonly connection: C }
  | { readonly kind: "queue"; readonly queue: string }
  | { readonly kind: "device"; readonly deviceId: string }
  | { readonly kind: "nowhere"; readonly detail: string }

/**
 * @param workerId of this worker.
 * @param find returns the open connection of this worker with a connection or device id.
 */
export function route<C>(
  target: Target,
  hops: number,
  workerId: string,
  find: (id: string) => C | undefined,
): Route<C> {
  const id = target.connectionId ?? target.deviceId
  if (id === null) return { kind: "nowhere", detail: "no id" }
  const holder = workerOfConnection(id)
  // The two kinds of ids have different forms, so that neither can be taken for the other.
  const isConnection = target.connectionId !== null
  if (isConnection && holder === null) {
    return { kind: "nowhere", detail: "no connection has this id" }
  }
  const connection = find(id)
  if (connection !== undefined) return { kind: "here", connection }
  if (holder === workerId) return { kind: "nowhere", detail: "the connection has closed" }
  if (hops >= MAX_HOPS) return { kind: "nowhere", detail: `not reached in ${MAX_HOPS} hops` }
  if (holder !== null) return { kind: "queue", queue: workerQueue(holder) }
  return { kind: "device", deviceId: id }
}
