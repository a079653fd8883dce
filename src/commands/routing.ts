/**
 * Where a command goes: to a connection of this worker, to the queue of the worker that holds its
 * connection, to wherever the fleet finds its device, or nowhere. Pure: the connections are asked for,
 * the decision is returned.
 *
 * A connection id carries its worker and needs no look-up; a device id does. Bound: `MAX_HOPS` from
 * worker to worker, so that no command follows a device for ever that keeps moving.
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
 * @param workerId this worker's.
 * @param find the open connection of this worker with an id, if it holds one.
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
  // No device is called as connections are, so neither can be taken for the other.
  const isConnection = target.connectionId !== null
  if (isConnection && holder === null) return { kind: "nowhere", detail: "no worker has minted it" }
  const connection = find(id)
  if (connection !== undefined) return { kind: "here", connection }
  if (holder === workerId) return { kind: "nowhere", detail: "the connection has closed" }
  if (hops >= MAX_HOPS) return { kind: "nowhere", detail: `not reached in ${MAX_HOPS} hops` }
  if (holder !== null) return { kind: "queue", queue: workerQueue(holder) }
  return { kind: "device", deviceId: id }
}
