/**
 * Checks the queues and exchanges that exist against those that an instance declares at its start.
 *
 *   passive ─┬─ exists ──► declared again with the wanted arguments ─┬─ equal
 *            │                                                       └─ 406 ──► warning: used as it is
 *            └─ 404 ─────► declared by the start, if the user may (`broker-permissions.ts`)
 *
 * A declaration of a queue that exists changes nothing (AMQP 0-9-1, `queue.declare`). If a queue is
 * deleted between the two questions, it is made, as by the start of an instance. The queues of
 * workers are left out: they exist only while their worker runs. The queues of held commands are
 * checked if they exist, because each is made when the first command of its shard is held.
 *
 * Bound: `MAX_HELD_QUEUES` queues of held commands.
 */

import { argumentsFor, hasDeliveryLimit } from "../../amqp/server-properties.ts"
import type { QueueDeclaration } from "../../broker/broker.ts"
import {
  broadcastsQueue,
  EXCHANGES,
  heldQueue,
  type QueueNames,
  queueDeclarations,
} from "../../broker/topology.ts"
import type { Config } from "../../config/config.ts"
import type { BrokerSession } from "./broker-session.ts"
import { type Finding, failure, ok, warning } from "./finding.ts"

const CHECK = "queues"
/** No worker has this name: only the queues that all instances share are used here. */
const NO_WORKER = { worker: "", incarnation: "" }
/** There are up to FLEET_SHARDS of them, and each question takes some round trips. */
const MAX_HELD_QUEUES = 16

/** The queues that all instances share. */
export function sharedQueues(names: QueueNames): QueueDeclaration[] {
  const own = queueDeclarations(names, NO_WORKER).filter(
    ({ name }) => !/^owsla\.(worker|fleet)\./.test(name),
  )
  return [...own, broadcastsQueue(names)]
}

/** The queues of held commands of the first shards. Any of them may be missing. */
export function heldQueues({ broker, fleetShards }: Config): QueueDeclaration[] {
  const count = Math.min(fleetShards, MAX_HELD_QUEUES)
  return Array.from({ length: count }, (_, shard) => heldQueue(broker, shard))
}

export interface CheckedQueues {
  readonly findings: readonly Finding[]
  /** The queues and exchanges that do not exist and that the start declares. */
  readonly missing: readonly string[]
}

export async function checkQueues(session: BrokerSession, config: Config): Promise<CheckedQueues> {
  const findings: Finding[] = []
  const missing: string[] = []
  let equal = 0
  for (const { name, type } of EXCHANGES) {
    const absent = await session.attempt((channel) =>
      channel.exchangeDeclare(name, type, { passive: true }),
    )
    if (absent !== null) missing.push(name)
  }
  const shared = sharedQueues(config.broker)
  for (const queue of [...shared, ...heldQueues(config)]) {
    const { name } = queue
    const refusal = await session.attempt((channel) =>
      channel.queueDeclare(name, { passive: true }),
    )
    if (refusal?.error.kind === "not_found") {
      if (shared.includes(queue)) missing.push(name)
    } else if (refusal !== null) {
      const advice = "start the broker node that holds it, or wait until it has a leader"
      findings.push(failure(CHECK, `queue ${name} cannot be used: ${refusal.text}`, advice))
    } else {
      const difference = await differenceOf(session, queue)
      if (difference === null) equal += 1
      else findings.push(difference)
    }
  }
  if (equal > 0) findings.unshift(ok(CHECK, `${equal} queue(s) exist as wanted`))
  if (missing.length > 0) {
    const message = `${missing.join(", ")} ${missing.length === 1 ? "does" : "do"} not exist yet; the start declares what is missing`
    findings.push(ok(CHECK, message))
  }
  return { findings, missing }
}

/** Null when the queue has the wanted arguments, or when the user may not ask. */
async function differenceOf(
  session: BrokerSession,
  { name, durable, arguments: wanted }: QueueDeclaration,
): Promise<Finding | null> {
  const args = argumentsFor(wanted, session.server)
  const params = { durable, exclusive: false, autoDelete: false, passive: false }
  const refusal = await session.attempt((channel) => channel.queueDeclare(name, params, args))
  if (refusal === null || refusal.error.kind === "access_refused") return null
  if (refusal.error.kind !== "precondition_failed") {
    const advice = `check ${name} with rabbitmqctl list_queues, and the log of the broker`
    return failure(CHECK, `queue ${name}: ${refusal.text}`, advice)
  }
  const { argument } = refusal.error
  const message = `queue ${name} exists with other arguments, and is used as it is: ${refusal.text}`
  if (argument === "x-delivery-limit" && hasDeliveryLimit(session.server)) {
    const advice = `lift the limit by a policy: rabbitmqctl set_policy ${name} '^${RegExp.escape(name)}$' '{"delivery-limit": -1}' --apply-to quorum_queues`
    return warning(CHECK, message, advice)
  }
  const advice = `to change it, drain the queue, delete it and start an instance; or set ${argument === "x-queue-type" ? "QUEUE_TYPE to its type" : "the settings that fit it"}`
  return warning(CHECK, message, advice)
}
