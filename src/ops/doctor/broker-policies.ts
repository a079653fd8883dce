/**
 * Checks the policies of the queues, and the alarms and the clock of the broker's nodes, with the
 * HTTP API of its management plugin. AMQP does not show any of these, so without `--management`
 * they are not checked.
 *
 * A policy breaks a promise when it makes the broker delete messages: a length limit that drops, a
 * TTL on a queue that does not dead-letter, a delivery limit, an expiring queue. A short
 * `consumer-timeout` closes channels on which commands wait. Of the workers' queues only those of
 * this instance are checked.
 */

import {
  DEAD_LETTERS,
  lineQueues,
  WORKER_QUEUE_TTL_MS,
  workerQueue,
} from "../../broker/topology.ts"
import type { Config } from "../../config/config.ts"
import { errorText } from "../../errors.ts"
import { heldQueues, sharedQueues } from "./broker-queues.ts"
import { clockFinding } from "./clock.ts"
import { type Finding, failure, ok, skipped, warning } from "./finding.ts"
import { type ManagedQueue, Management, ManagementError } from "./management.ts"

const CHECK = "policies"
/** The accuracy of an HTTP date. */
const DATE_ACCURACY_MS = 1_000

/** @param url of the management plugin; null when it was not given. */
export async function checkPolicies(config: Config, url: URL | null): Promise<Finding[]> {
  const amqpUrl = config.amqp?.urls[0]
  if (amqpUrl === undefined) return []
  if (url === null) {
    return [skipped(CHECK, "AMQP does not show policies; give --management <URL of its HTTP API>")]
  }
  const management = new Management(url, new URL(amqpUrl))
  try {
    const findings: Finding[] = []
    const unknown: string[] = []
    for (const name of queuesOf(config)) {
      const queue = await management.queue(name)
      if (queue === null) continue
      if (queue.effective_policy_definition === undefined) unknown.push(name)
      findings.push(...policyFindings(queue, config))
    }
    if (unknown.length > 0) {
      const names = unknown.join(", ")
      findings.push(skipped(CHECK, `the broker has no statistics of ${names} now`))
    } else if (findings.length === 0) {
      findings.push(ok(CHECK, "no policy makes the broker delete messages"))
    }
    return [...findings, ...(await nodeFindings(management))]
  } catch (error) {
    const advice =
      error instanceof ManagementError
        ? "give the user the tag management, or put another user into the URL"
        : "check the URL of the management plugin"
    return [failure(CHECK, errorText(error), advice)]
  }
}

function queuesOf(config: Config): string[] {
  const durable = [...sharedQueues(config.broker), ...heldQueues(config)].map(({ name }) => name)
  return [...durable, ...ownWorkerQueues(config)]
}

/** They exist only while this instance runs, or ran some minutes ago. */
function ownWorkerQueues({ instanceId, workers }: Config): string[] {
  return Array.from({ length: workers }, (_, index) => workerQueue(`${instanceId}.${index}`))
}

async function nodeFindings(management: Management): Promise<Finding[]> {
  const findings: Finding[] = []
  const nodes = await management.nodes()
  for (const { name, running, mem_alarm, disk_free_alarm } of nodes ?? []) {
    const advice = `check node ${name}`
    if (!running) findings.push(warning("alarms", `node ${name} does not run`, advice))
    if (mem_alarm) findings.push(failure("alarms", `memory alarm on node ${name}`, advice))
    if (disk_free_alarm) findings.push(failure("alarms", `disk alarm on node ${name}`, advice))
  }
  const differenceMs = await management.clockDifferenceMs()
  if (differenceMs !== null) {
    findings.push(clockFinding("the broker's", differenceMs, DATE_ACCURACY_MS))
  }
  return findings
}

/** What the effective policy and the arguments of a queue break. Pure. */
export function policyFindings(queue: ManagedQueue, config: Config): Finding[] {
  const { name, arguments: args, effective_policy_definition: policy } = queue
  const { broker, device } = config
  /** The lower number applies. */
  const limit = (key: string): number | null => {
    const values = [policy?.[key], args?.[`x-${key}`]].filter((value) => typeof value === "number")
    return values.length === 0 ? null : Math.min(...values)
  }
  const text = (key: string) => policy?.[key] ?? args?.[`x-${key}`]
  const by = queue.policy ? ` (policy ${queue.policy})` : ""
  const lines = lineQueues(broker.fromDeviceQueue, broker.fromDevicePartitions)
  const findings: Finding[] = []
  const length = limit("max-length") ?? limit("max-length-bytes")
  const drops = (text("overflow") ?? "drop-head") === "drop-head"
  // An operator may bound the queue of undelivered commands.
  if (length !== null && drops && name !== broker.undeliveredQueue) {
    const message = `${name} has a length limit that drops its oldest messages${by}`
    findings.push(
      failure(
        CHECK,
        message,
        'add "overflow": "reject-publish" to the policy, or remove the limit',
      ),
    )
  }
  const ttlMs = limit("message-ttl")
  const deadLetters = text("dead-letter-exchange") !== undefined
  // Commands that expire get an outcome only when they are dead-lettered.
  if (ttlMs !== null && name !== broker.undeliveredQueue && !deadLetters) {
    const what = lines.includes(name) ? "lines" : "messages"
    const message = `${name} deletes ${what} after ${ttlMs} ms${by}`
    findings.push(failure(CHECK, message, 'remove "message-ttl" from the policy'))
  }
  const expiresMs = limit("expires")
  const ownQueues = ownWorkerQueues(config)
  // The queue of a worker expires by its own arguments, and must outlive the commands in it.
  const mayBeDeleted = ownQueues.includes(name) && (expiresMs ?? 0) > WORKER_QUEUE_TTL_MS
  if (expiresMs !== null && !mayBeDeleted) {
    const message = `${name} is deleted when it is not used for ${expiresMs} ms${by}`
    findings.push(failure(CHECK, message, 'remove "expires" from the policy'))
  }
  const deliveries = limit("delivery-limit")
  if (queue.type === "quorum" && deliveries !== null && deliveries >= 0) {
    const message = `${name} removes a message at its ${deliveries + 1}. return, and each lost connection returns messages${by}`
    findings.push(
      warning(CHECK, message, 'set "delivery-limit": -1 in a policy, or remove the limit'),
    )
  }
  const timeoutMs = limit("consumer-timeout")
  const waitsMs = Math.max(device.maxReplyMs, device.slowDeviceTimeoutMs, device.gapTimeoutMs)
  // Not the queues of held commands: their keeper publishes an old delivery again, and acknowledges
  // it, before the shortest timeout that RabbitMQ enforces (`REFRESH_MS` of `held-log.ts`).
  const isConsumed = [broker.toDeviceQueue, DEAD_LETTERS, ...ownQueues].includes(name)
  if (timeoutMs !== null && isConsumed && timeoutMs < 2 * waitsMs) {
    const message = `${name} has a consumer timeout of ${timeoutMs} ms${by}, and a command may wait ${waitsMs} ms for its device`
    const advice = `set "consumer-timeout" to at least ${2 * waitsMs}`
    findings.push(warning(CHECK, message, advice))
  }
  return findings
}
