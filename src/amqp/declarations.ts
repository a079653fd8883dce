/**
 * Declares exchanges, queues and bindings on a new connection. A queue or exchange that exists is
 * used unchanged. There is a warning when its arguments differ, and none when the user may not
 * declare it.
 *
 *   declare ─┬─ done
 *            ├─ 405, exclusive to another ────────► left to the subscription, which tries again
 *            ├─ 406, other arguments ────────────► used as it is, warning
 *            ├─ 403, permission is missing ──► passive ─┬─ exists ──► used as it is
 *            │                                          └─ 404 ─────► rejected, with the permission's name
 *            └─ any other ───────────────────────► rejected
 *
 * Bound: one declaration at a time. When a declaration closes its channel, the next one opens
 * another.
 */

import type { AMQPChannel } from "@cloudamqp/amqp-client"
import type { Binding, ExchangeDeclaration, QueueDeclaration } from "../broker/broker.ts"
import { asError, errorText } from "../errors.ts"
import type { BatchingClient } from "./client.ts"
import { readBrokerError } from "./errors.ts"
import {
  argumentsFor,
  hasDeliveryLimit,
  lacksQuorumQueues,
  lacksTransientQueues,
} from "./server-properties.ts"

/** @param about the subject. There is one warning for each subject. */
export type Warn = (about: string, message: string) => void

interface Declaration {
  readonly what: string
  readonly name: string
  readonly act: (on: AMQPChannel) => Promise<unknown>
  /** Checks whether it exists; null when AMQP has no method for that. */
  readonly check: ((on: AMQPChannel) => Promise<unknown>) | null
  /** The permissions that `act` needs, for brokers that do not name the missing one. */
  readonly needs: (resource: string) => string
  /**
   * The exchange that back-ends cannot publish to when it cannot be declared. Then there is a
   * warning and no error. Null when it is required.
   */
  readonly optionalFor: string | null
  /** Added to the warning that it exists with other arguments. */
  readonly advice: (argument: string | null) => string
}

const CONFIGURE = '"configure"'
const WRITE = '"write"'
const READ = '"read"'
const noAdvice = () => ""

/** Rejects when a queue or exchange is missing and cannot be declared. */
export async function declareAll(
  client: BatchingClient,
  exchanges: readonly ExchangeDeclaration[],
  queues: readonly QueueDeclaration[],
  warn: Warn,
): Promise<void> {
  const quorum = queues.some((queue) => queue.arguments["x-queue-type"] === "quorum")
  if (quorum && lacksQuorumQueues(client.server)) warn("quorum queues", noQuorumQueues(client))
  const declare = new Declarer(client, warn)
  for (const exchange of exchanges) await declare.one(exchangeDeclaration(exchange))
  for (const queue of queues) {
    await declare.one(queueDeclaration(queue, client))
    for (const bound of queue.boundTo ?? []) await declare.one(binding(queue.name, bound))
  }
  await declare.end()
}

/** Checks whether a queue exists, on a channel of its own. Rejects when the broker cannot tell. */
export async function queueExists(client: BatchingClient, name: string): Promise<boolean> {
  const channel = await client.channel()
  channel.onerror = () => undefined
  try {
    await channel.queueDeclare(name, { passive: true })
  } catch (error) {
    const { kind } = readBrokerError(errorText(error))
    if (kind === "not_found") return false
    // A queue that is exclusive to another connection exists.
    if (kind === "locked") return true
    throw error
  }
  await channel.close()
  return true
}

class Declarer {
  readonly #client: BatchingClient
  readonly #warn: Warn
  /** Null when there is none, because a refusal closes its channel. */
  #channel: AMQPChannel | null = null

  constructor(client: BatchingClient, warn: Warn) {
    this.#client = client
    this.#warn = warn
  }

  async one(declaration: Declaration): Promise<void> {
    const { what, optionalFor } = declaration
    try {
      await this.#declare(declaration)
    } catch (error) {
      // A lost connection is not a refusal.
      if (optionalFor === null || this.#client.closed) throw error
      this.#warn(what, `back-ends cannot publish to ${optionalFor}: ${errorText(error)}`)
    }
  }

  async #declare({ what, name, act, check, needs, advice }: Declaration): Promise<void> {
    const refusal = await this.#try(act)
    if (refusal === null) return
    const error = readBrokerError(refusal.message)
    switch (error.kind) {
      case "locked":
        return
      case "precondition_failed":
        this.#warn(
          what,
          `${what} exists with other arguments, used as it is: ${refusal.message}${advice(error.argument)}`,
        )
        return
      case "access_refused": {
        const absence = check === null ? refusal : await this.#try(check)
        if (absence === null) {
          const hint = advice(null)
          if (hint !== "")
            this.#warn(what, `${what} is used as it is; its arguments are not known${hint}`)
          return
        }
        // A queue that is exclusive to another connection exists.
        if (readBrokerError(absence.message).kind === "locked") return
        if (check !== null && readBrokerError(absence.message).kind !== "not_found") throw absence
        const resource = error.resource ?? name
        const missing = error.permission === null ? needs(resource) : `"${error.permission}"`
        const absent = check === null ? "cannot be made" : "does not exist and cannot be declared"
        throw new Error(
          `${what} ${absent}: permission ${missing} on ${resource} is missing: ${refusal.message}`,
        )
      }
      default:
        throw refusal
    }
  }

  async end(): Promise<void> {
    await this.#channel?.close()
  }

  /** Null when the broker accepts it. */
  async #try(act: (on: AMQPChannel) => Promise<unknown>): Promise<Error | null> {
    this.#channel ??= await this.#open()
    try {
      await act(this.#channel)
      return null
    } catch (error) {
      this.#channel = null
      return asError(error)
    }
  }

  async #open(): Promise<AMQPChannel> {
    const channel = await this.#client.channel()
    channel.onerror = () => undefined
    return channel
  }
}

function exchangeDeclaration(exchange: ExchangeDeclaration): Declaration {
  const { name, type, optional = false } = exchange
  const optionalFor = optional ? name : null
  return {
    what: `exchange ${name}`,
    name,
    act: (on) => on.exchangeDeclare(name, type, { durable: true }),
    check: (on) => on.exchangeDeclare(name, type, { passive: true }),
    needs: () => CONFIGURE,
    optionalFor,
    advice: noAdvice,
  }
}

function queueDeclaration(queue: QueueDeclaration, client: BatchingClient): Declaration {
  const { name, durable, transient = false } = queue
  const exclusive = queue.exclusive === true || (transient && lacksTransientQueues(client.server))
  const args = argumentsFor(queue.arguments, client.server)
  const params = { durable, exclusive, autoDelete: false, passive: false }
  // RabbitMQ asks for read permission on a queue that dead-letters, and for write permission on its
  // dead-letter exchange.
  const own = "x-dead-letter-exchange" in args ? `${CONFIGURE} or ${READ}` : CONFIGURE
  const limited = args["x-queue-type"] === "quorum" && hasDeliveryLimit(client.server)
  return {
    what: `queue ${name}`,
    name,
    act: (on) => on.queueDeclare(name, params, args),
    check: (on) => on.queueDeclare(name, { passive: true }),
    needs: (resource) => (resource === name ? own : WRITE),
    optionalFor: null,
    // A queue of another type has no delivery limit. The gateway cannot see policies.
    advice: (argument) => (limited && argument !== "x-queue-type" ? deliveryLimitAdvice(name) : ""),
  }
}

function binding(queue: string, bound: Binding): Declaration {
  const { exchange, routingKey, optional = false } = bound
  return {
    what: `the binding of ${queue} to ${exchange}`,
    name: queue,
    act: (on) => on.queueBind(queue, exchange, routingKey),
    check: null,
    needs: (resource) => (resource === exchange ? READ : WRITE),
    optionalFor: optional ? exchange : null,
    advice: noAdvice,
  }
}

function deliveryLimitAdvice(queue: string): string {
  const pattern = `^${queue.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}$`
  const policy = `rabbitmqctl set_policy ${queue} '${pattern}' '{"delivery-limit": -1}' --apply-to quorum_queues`
  return `; 20 lost connections use up the delivery limit of its messages unless a policy lifts it: ${policy}`
}

function noQuorumQueues({ server }: BatchingClient): string {
  return `${server.product} ${server.version} has no quorum queues and makes classic ones in their place: messages are on one node only, and are lost or unavailable with it`
}
