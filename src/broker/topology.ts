/**
 * The queues: their names, arguments and the reasons for them. Pure.
 *
 *   from_device            lines, for the back-ends to consume
 *   to_device              commands, consumed by every worker of every instance
 *   to_device.undelivered  commands that were not written, for the operator
 *   owsla.worker.<id>      commands for the connections of one worker
 *   owsla.dead_letters     commands that the broker gave up: expired, or left with a dead worker
 *   owsla.replies.<id>     receipts for commands that came by HTTP; gone with its connection
 *
 * Bound in time: a command waits `WORKER_QUEUE_TTL_MS` at most in the queue of a worker that does not
 * take it, then it is a dead letter; an unused worker queue goes after `WORKER_QUEUE_EXPIRES_MS`.
 */

import type { QueueDeclaration } from "./broker.ts"

/** Longer than a worker's restart takes; whoever waits for an outcome waits this long for a dead one. */
export const WORKER_QUEUE_TTL_MS = 15_000
const WORKER_QUEUE_EXPIRES_MS = 300_000

if (WORKER_QUEUE_EXPIRES_MS <= WORKER_QUEUE_TTL_MS) {
  throw new Error("a worker queue must outlive its messages, or they would vanish with it")
}

export const DEAD_LETTERS = "owsla.dead_letters"

const WORKER_QUEUE_PREFIX = "owsla.worker."

export function workerQueue(workerId: string): string {
  return `${WORKER_QUEUE_PREFIX}${workerId}`
}

export function isWorkerQueue(queue: string): boolean {
  return queue.startsWith(WORKER_QUEUE_PREFIX)
}

/** @param incarnation of the worker's process, since the queue of the one before may linger. */
export function replyQueue(workerId: string, incarnation: string): string {
  return `owsla.replies.${workerId}.${incarnation}`
}

export interface QueueNames {
  readonly fromDeviceQueue: string
  readonly toDeviceQueue: string
  readonly undeliveredQueue: string
  readonly queueType: "quorum" | "classic"
}

export function queueDeclarations(
  names: QueueNames,
  workerId: string,
  incarnation: string,
): QueueDeclaration[] {
  const type = { "x-queue-type": names.queueType }
  const deadLettering = {
    "x-dead-letter-exchange": "",
    "x-dead-letter-routing-key": DEAD_LETTERS,
    // A quorum queue loses a dead letter in a broker's crash unless it is asked not to.
    ...(names.queueType === "quorum"
      ? { "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish" }
      : {}),
  }
  const durable = (name: string, args: Record<string, string | number>): QueueDeclaration => ({
    name,
    durable: true,
    arguments: { ...type, ...args },
  })
  return [
    durable(DEAD_LETTERS, {}),
    durable(names.undeliveredQueue, {}),
    durable(names.fromDeviceQueue, {}),
    durable(names.toDeviceQueue, deadLettering),
    durable(workerQueue(workerId), {
      ...deadLettering,
      "x-message-ttl": WORKER_QUEUE_TTL_MS,
      "x-expires": WORKER_QUEUE_EXPIRES_MS,
    }),
    { name: replyQueue(workerId, incarnation), durable: false, exclusive: true, arguments: {} },
  ]
}
