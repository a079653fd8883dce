/**
 * The queues: their names, arguments and the reasons for them. Pure.
 *
 *   from_device            lines, for the back-ends to consume
 *   to_device              commands, consumed by every worker of every instance
 *   to_device.undelivered  commands that were not written, for the operator
 *   owsla.worker.<id>      commands for the connections of one worker
 *   owsla.dead_letters     commands that the broker gave up: expired, or left with a dead worker
 *   owsla.fleet.<id>       what workers tell each other, and receipts for commands that came by HTTP
 *
 * and the exchanges:
 *
 *   owsla.fleet            to the fleet queues of all workers (fanout)
 *   owsla.presence         devices that connect and disconnect (topic)
 *   owsla.commands         commands, by the name of the queue that they are for (direct): a back-end needs permission
 *                          to write to this exchange alone, and not to every queue by the default exchange
 *
 * Bound in time: a command waits `WORKER_QUEUE_TTL_MS` at most in the queue of a worker that does not
 * take it, then it is a dead letter; an unused worker queue goes after `WORKER_QUEUE_EXPIRES_MS`. What
 * workers tell each other is stale after `FLEET_TTL_MS`, and the oldest of more than `FLEET_MAX_BYTES`
 * makes room; the queue goes `FLEET_EXPIRES_MS` after its worker.
 */

import type { WorkerProcess } from "../device/ids.ts"
import type { ExchangeDeclaration, QueueDeclaration } from "./broker.ts"

/** Longer than a worker's restart takes. A command for a dead worker has its outcome after this time. */
export const WORKER_QUEUE_TTL_MS = 15_000
const WORKER_QUEUE_EXPIRES_MS = 300_000

if (WORKER_QUEUE_EXPIRES_MS <= WORKER_QUEUE_TTL_MS) {
  throw new Error("a worker queue must outlive its messages, or they would vanish with it")
}

/** Longer than anybody waits for an answer or a receipt. */
const FLEET_TTL_MS = 60_000
const FLEET_EXPIRES_MS = 60_000
const FLEET_MAX_BYTES = 67_108_864

export const FLEET_EXCHANGE = "owsla.fleet"
export const PRESENCE_EXCHANGE = "owsla.presence"
export const COMMANDS_EXCHANGE = "owsla.commands"

export const EXCHANGES: readonly ExchangeDeclaration[] = [
  { name: FLEET_EXCHANGE, type: "fanout" },
  { name: PRESENCE_EXCHANGE, type: "topic" },
  // Its absence would stop an instance whose user has the permissions of a version before it.
  { name: COMMANDS_EXCHANGE, type: "direct", optional: true },
]

export const DEAD_LETTERS = "owsla.dead_letters"

/** Of every queue but those of the settings, whose names may not begin with it. */
export const OWN_QUEUE_PREFIX = "owsla."
const WORKER_QUEUE_PREFIX = `${OWN_QUEUE_PREFIX}worker.`

export function workerQueue(workerId: string): string {
  return `${WORKER_QUEUE_PREFIX}${workerId}`
}

export function isWorkerQueue(queue: string): boolean {
  return queue.startsWith(WORKER_QUEUE_PREFIX)
}

/** The worker whose queue this is, or null when it is another queue. */
export function workerOfQueue(queue: string): string | null {
  return isWorkerQueue(queue) ? queue.slice(WORKER_QUEUE_PREFIX.length) : null
}

/** Each process has its own: nothing that was told to the one before is for it. */
export function fleetQueue({ worker, incarnation }: WorkerProcess): string {
  return `owsla.fleet.${worker}.${incarnation}`
}

export interface QueueNames {
  readonly fromDeviceQueue: string
  readonly toDeviceQueue: string
  readonly undeliveredQueue: string
  readonly queueType: "quorum" | "classic"
}

/** Whether this is one of the gateway's queues, of any instance: none of them takes receipts of a back-end's command. */
export function isGatewayQueue(names: QueueNames, queue: string): boolean {
  const { fromDeviceQueue, toDeviceQueue, undeliveredQueue } = names
  return (
    queue.startsWith(OWN_QUEUE_PREFIX) ||
    [fromDeviceQueue, toDeviceQueue, undeliveredQueue].includes(queue)
  )
}

export function queueDeclarations(names: QueueNames, self: WorkerProcess): QueueDeclaration[] {
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
      // Its messages are neither stored nor copied to other nodes of the broker. A durable one could not be declared
      // again while the node that holds it is down.
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

/** Under its own name, as in the default exchange. */
function takingCommands(queue: QueueDeclaration): QueueDeclaration {
  const binding = { exchange: COMMANDS_EXCHANGE, routingKey: queue.name, optional: true } as const
  return { ...queue, boundTo: [binding] }
}
