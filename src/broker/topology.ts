/**
 * The queues and exchanges: names, arguments, and the reasons for them. Pure.
 *
 *   from_device            lines, for the back-ends to consume; with partitions from_device.0, from_device.1, …
 *   to_device              commands, consumed by every worker of every instance
 *   to_device.undelivered  commands that were not written, for the operator
 *   owsla.worker.<id>      commands for the connections of one worker
 *   owsla.broadcasts       broadcasts, each taken by one worker, which coordinates it
 *   owsla.dead_letters     commands that the broker dead-lettered: expired, or not consumed by their worker
 *   owsla.fleet.<id>       messages between workers, and receipts of commands that came by HTTP
 *   owsla.held.<shard>     commands that are held until their devices connect; made when the first is held
 *
 * and the exchanges:
 *
 *   owsla.fleet            to the fleet queues of all workers (fanout)
 *   owsla.presence         devices that connect and disconnect (topic)
 *   owsla.commands         commands, with the name of their queue as routing key (direct); a back-end needs write
 *                          permission for this exchange only, not for all queues through the default exchange
 *   owsla.broadcast        to the queue of broadcasts (fanout), with a permission of its own for the same reason
 *
 * Bounds: a command waits at most `WORKER_QUEUE_TTL_MS` in the queue of a worker, then it is
 * dead-lettered. An unused worker queue is deleted after `WORKER_QUEUE_EXPIRES_MS`. Messages
 * between workers expire after `FLEET_TTL_MS`; beyond `FLEET_MAX_BYTES` the oldest are dropped. A
 * fleet queue is deleted `FLEET_EXPIRES_MS` after its worker ended.
 */

import type { WorkerProcess } from "../device/ids.ts"
import type { ExchangeDeclaration, QueueDeclaration } from "./broker.ts"

/**
 * Longer than the restart of a worker. A command for a dead worker gets its outcome after this
 * time.
 */
export const WORKER_QUEUE_TTL_MS = 15_000
const WORKER_QUEUE_EXPIRES_MS = 300_000

if (WORKER_QUEUE_EXPIRES_MS <= WORKER_QUEUE_TTL_MS) {
  throw new Error("a worker queue must outlive its messages, or they would vanish with it")
}

/** Longer than any time-out for an answer or a receipt. */
const FLEET_TTL_MS = 60_000
const FLEET_EXPIRES_MS = 60_000
const FLEET_MAX_BYTES = 67_108_864

export const FLEET_EXCHANGE = "owsla.fleet"
export const PRESENCE_EXCHANGE = "owsla.presence"
export const COMMANDS_EXCHANGE = "owsla.commands"
export const BROADCAST_EXCHANGE = "owsla.broadcast"

export const EXCHANGES: readonly ExchangeDeclaration[] = [
  { name: FLEET_EXCHANGE, type: "fanout" },
  { name: PRESENCE_EXCHANGE, type: "topic" },
  // Optional, so that an instance starts with the broker permissions of an earlier version.
  { name: COMMANDS_EXCHANGE, type: "direct", optional: true },
  { name: BROADCAST_EXCHANGE, type: "fanout", optional: true },
]

export const DEAD_LETTERS = "owsla.dead_letters"
export const BROADCASTS = "owsla.broadcasts"

/** The prefix of all queues except those of the settings, whose names must not have it. */
export const OWN_QUEUE_PREFIX = "owsla."
const WORKER_QUEUE_PREFIX = `${OWN_QUEUE_PREFIX}worker.`

export function workerQueue(workerId: string): string {
  return `${WORKER_QUEUE_PREFIX}${workerId}`
}

export function isWorkerQueue(queue: string): boolean {
  return queue.startsWith(WORKER_QUEUE_PREFIX)
}

/** The worker of a worker queue; null for another queue. */
export function workerOfQueue(queue: string): string | null {
  return isWorkerQueue(queue) ? queue.slice(WORKER_QUEUE_PREFIX.length) : null
}

/** Each process has its own queue, since messages to the process before it are outdated. */
export function fleetQueue({ worker, incarnation }: WorkerProcess): string {
  return `owsla.fleet.${worker}.${incarnation}`
}

export interface QueueNames {
  /** The queue of lines, or the name of its partitions without their numbers. */
  readonly fromDeviceQueue: string
  /** 1: the queue is not divided. */
  readonly fromDevicePartitions: number
  readonly toDeviceQueue: string
  readonly undeliveredQueue: string
  readonly queueType: "quorum" | "classic"
}

/** The queues of lines: one, or the partitions by their numbers. */
export function lineQueues(queue: string, partitions: number): string[] {
  if (partitions === 1) return [queue]
  return Array.from({ length: partitions }, (_, partition) => `${queue}.${partition}`)
}

/** Whether this is the name of a partition, for any number of partitions. */
export function isPartitionOf(fromDeviceQueue: string, queue: string): boolean {
  const prefix = `${fromDeviceQueue}.`
  return queue.startsWith(prefix) && /^\d+$/.test(queue.slice(prefix.length))
}

/**
 * Whether this is a queue of the gateway, of any instance. Receipts of a back-end's commands must
 * not go there. Partitions count always, because another instance may have them already.
 */
export function isGatewayQueue(names: QueueNames, queue: string): boolean {
  const { fromDeviceQueue, toDeviceQueue, undeliveredQueue } = names
  return (
    queue.startsWith(OWN_QUEUE_PREFIX) ||
    [fromDeviceQueue, toDeviceQueue, undeliveredQueue].includes(queue) ||
    isPartitionOf(fromDeviceQueue, queue)
  )
}

export function queueDeclarations(names: QueueNames, self: WorkerProcess): QueueDeclaration[] {
  const type = { "x-queue-type": names.queueType }
  const deadLettering = {
    "x-dead-letter-exchange": "",
    "x-dead-letter-routing-key": DEAD_LETTERS,
    // By default a quorum queue may lose dead letters in a crash of the broker.
    ...(names.queueType === "quorum"
      ? { "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish" }
      : {}),
  }
  const durable = (name: string, args: QueueDeclaration["arguments"]): QueueDeclaration => ({
    name,
    durable: true,
    arguments: { ...type, ...args },
  })
  // One consumer at a time keeps the order of a partition. Without partitions the back-ends decide.
  const forLines = names.fromDevicePartitions === 1 ? {} : { "x-single-active-consumer": true }
  return [
    durable(DEAD_LETTERS, {}),
    durable(names.undeliveredQueue, {}),
    ...lineQueues(names.fromDeviceQueue, names.fromDevicePartitions).map((queue) =>
      durable(queue, forLines),
    ),
    takingCommands(durable(names.toDeviceQueue, deadLettering)),
    takingCommands(
      durable(workerQueue(self.worker), {
        ...deadLettering,
        "x-message-ttl": WORKER_QUEUE_TTL_MS,
        "x-expires": WORKER_QUEUE_EXPIRES_MS,
      }),
    ),
    {
      name: fleetQueue(self),
      boundTo: [{ exchange: FLEET_EXCHANGE, routingKey: "" }],
      durable: false,
      // Transient: its messages are neither stored nor replicated. A durable queue could not be
      // declared again while its node is down.
      transient: true,
      arguments: {
        "x-queue-type": "classic",
        "x-message-ttl": FLEET_TTL_MS,
        "x-expires": FLEET_EXPIRES_MS,
        "x-max-length-bytes": FLEET_MAX_BYTES,
      },
    },
  ]
}

/**
 * The queue of broadcasts. It is consumed by `Broker.subscribe`, so that an instance works without
 * it when it has the permissions of an earlier version.
 */
export function broadcastsQueue({ queueType }: Pick<QueueNames, "queueType">): QueueDeclaration {
  return {
    name: BROADCASTS,
    boundTo: [{ exchange: BROADCAST_EXCHANGE, routingKey: "", optional: true }],
    durable: true,
    arguments: { "x-queue-type": queueType },
  }
}

/** The log of the held commands of one shard; see `commands/hold/held-log.ts`. */
export function heldQueue(
  { queueType }: Pick<QueueNames, "queueType">,
  shard: number,
): QueueDeclaration {
  const name = `${OWN_QUEUE_PREFIX}held.${shard}`
  return { name, durable: true, arguments: { "x-queue-type": queueType } }
}

/** With the name of the queue as routing key, as in the default exchange. */
function takingCommands(queue: QueueDeclaration): QueueDeclaration {
  const binding = { exchange: COMMANDS_EXCHANGE, routingKey: queue.name, optional: true } as const
  return { ...queue, boundTo: [binding] }
}
