/**
 * Checks the permissions of the broker user: configure, write and read on what an instance uses.
 * Each question is a method that RabbitMQ refuses in any case, and that changes nothing: with 403
 * when the permission is missing, otherwise, because RabbitMQ checks permissions first, for another
 * reason.
 *
 *   configure  queue.declare with an invalid `x-expires`            406
 *   write      basic.publish with an invalid `expiration`           406, or 404 without the exchange
 *   read       basic.consume with an invalid `x-priority`           406, or 404 without the queue
 *
 * A binding needs write on the queue and read on the exchange. `queue.bind` is not used as the
 * question, because it could make the binding. RabbitMQ's own permissions are patterns of names and
 * do not distinguish queues from exchanges, so the questions above are asked with these names too.
 *
 * Other brokers may check in another order, so they are not asked.
 */

import type { AMQPChannel } from "@cloudamqp/amqp-client"
import {
  BROADCAST_EXCHANGE,
  BROADCASTS,
  COMMANDS_EXCHANGE,
  DEAD_LETTERS,
  FLEET_EXCHANGE,
  fleetQueue,
  heldQueue,
  PRESENCE_EXCHANGE,
  workerQueue,
} from "../../broker/topology.ts"
import type { Config } from "../../config/config.ts"
import type { BrokerSession } from "./broker-session.ts"
import { type Finding, failure, ok, skipped, warning } from "./finding.ts"

const CHECK = "permissions"
export const PERMISSION_ADVICE =
  "give it with rabbitmqctl set_permissions; docs/OPERATING.md has the patterns"

type Permission = "configure" | "write" | "read"

interface Needed {
  readonly permission: Permission
  /** A queue or an exchange; "" is the default exchange. */
  readonly resource: string
  /** What does not work without it; null when an instance does not work at all. */
  readonly purpose: string | null
}

/** @param missing queues and exchanges that the start must declare. */
export async function checkPermissions(
  session: BrokerSession,
  { broker, instanceId }: Config,
  missing: readonly string[],
): Promise<Finding[]> {
  const { product } = session.server
  if (product !== "RabbitMQ") {
    return [skipped(CHECK, `${product} may answer these questions differently than RabbitMQ`)]
  }
  const worker = `${instanceId}.0`
  const fleet = fleetQueue({ worker, incarnation: "doctor" })
  const held = heldQueue(broker, 0).name
  const optional = (name: string) =>
    name === BROADCASTS || /broadcast$/.test(name)
      ? "broadcasts from the broker"
      : name === COMMANDS_EXCHANGE
        ? `commands through the exchange ${COMMANDS_EXCHANGE}`
        : null
  // An operator may make these bindings, and AMQP has no method that shows them.
  const boundCommands = `commands through the exchange ${COMMANDS_EXCHANGE}, unless an operator makes its bindings`
  const boundBroadcasts = `broadcasts from the broker, unless an operator binds ${BROADCASTS} to ${BROADCAST_EXCHANGE}`
  const needed: Needed[] = [
    ...[...missing, workerQueue(worker), fleet].map(
      (resource): Needed => ({ permission: "configure", resource, purpose: optional(resource) }),
    ),
    { permission: "configure", resource: held, purpose: "commands with hold_ms" },
    ...["", FLEET_EXCHANGE, PRESENCE_EXCHANGE, fleet].map(
      (resource): Needed => ({ permission: "write", resource, purpose: null }),
    ),
    ...[broker.toDeviceQueue, workerQueue(worker)].map(
      (resource): Needed => ({ permission: "write", resource, purpose: boundCommands }),
    ),
    { permission: "write", resource: BROADCASTS, purpose: boundBroadcasts },
    ...[broker.toDeviceQueue, DEAD_LETTERS, workerQueue(worker), fleet, FLEET_EXCHANGE].map(
      (resource): Needed => ({ permission: "read", resource, purpose: null }),
    ),
    { permission: "read", resource: BROADCASTS, purpose: "broadcasts from the broker" },
    { permission: "read", resource: held, purpose: "commands with hold_ms" },
    { permission: "read", resource: COMMANDS_EXCHANGE, purpose: boundCommands },
    { permission: "read", resource: BROADCAST_EXCHANGE, purpose: boundBroadcasts },
  ]
  const findings: Finding[] = []
  const refused: Needed[] = []
  for (const each of needed) {
    const answer = await ask(session, each)
    if (answer === "refused") refused.push(each)
    else if (answer !== "permitted")
      findings.push(skipped(CHECK, `${textOf(each)}: ${answer.text}`))
  }
  findings.push(...refusalFindings(refused))
  if (findings.length > 0) return findings
  return [ok(CHECK, `the user has the ${needed.length} permissions that an instance needs`)]
}

async function ask(
  session: BrokerSession,
  { permission, resource }: Needed,
): Promise<"permitted" | "refused" | { readonly text: string }> {
  const refusal = await session.attempt((channel) => QUESTIONS[permission](channel, resource))
  switch (refusal?.error.kind) {
    case "precondition_failed":
    case "not_found":
    // The queue is exclusive to another connection.
    case "locked":
      return "permitted"
    case "access_refused":
      return "refused"
    default:
      return { text: refusal?.text ?? "the broker did not refuse the question" }
  }
}

/** One finding for each permission and purpose. */
function refusalFindings(refused: readonly Needed[]): Finding[] {
  const groups = Map.groupBy(refused, ({ permission, purpose }) => `${permission} ${purpose}`)
  return [...groups.values()].map((group) => {
    const { permission, purpose } = group[0] as Needed
    const names = group.map(({ resource }) => nameOf(resource)).join(", ")
    const message = `the user has no ${permission} permission on ${names}`
    return purpose === null
      ? failure(CHECK, message, PERMISSION_ADVICE)
      : warning(CHECK, `${message}: without it there are no ${purpose}`, PERMISSION_ADVICE)
  })
}

function textOf({ permission, resource }: Needed): string {
  return `${permission} permission on ${nameOf(resource)}`
}

/** As in patterns of permissions. */
function nameOf(resource: string): string {
  return resource === "" ? "amq.default" : resource
}

const QUESTIONS: Readonly<
  Record<Permission, (channel: AMQPChannel, resource: string) => Promise<unknown>>
> = {
  configure: (channel, queue) =>
    channel.queueDeclare(
      queue,
      { durable: true, exclusive: false, autoDelete: false, passive: false },
      { "x-expires": -1, "x-queue-type": "classic" },
    ),
  write: async (channel, exchange) => {
    await channel.confirmSelect()
    await channel.basicPublish(exchange, "owsla.doctor", "", { expiration: "invalid" })
  },
  read: (channel, queue) =>
    channel.basicConsume(queue, { noAck: false, args: { "x-priority": "invalid" } }, () => {
      throw new Error("not reached: the consumer is refused")
    }),
}
