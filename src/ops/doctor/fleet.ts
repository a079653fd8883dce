/**
 * Listens to the messages between workers (`owsla.fleet`) on a temporary exclusive queue, for
 * `LISTEN_MS`, and sends nothing: each worker announces itself every 2 s in a fleet of up to 100
 * workers.
 *
 *   listening ──LISTEN_MS──► instances, equal settings, one process for each worker id, clocks,
 *                            messages that do not verify
 *
 * Of the settings a worker sends `FLEET_SHARDS` and those of `fleet-settings.ts`. A setting that it
 * does not send, as in earlier versions, is not compared. The difference of clocks contains the
 * time of the message, some milliseconds. Bound: `MAX_MEMBERS` workers.
 */

import { readBrokerError } from "../../amqp/errors.ts"
import type { Delivery } from "../../broker/broker.ts"
import { FLEET_EXCHANGE } from "../../broker/topology.ts"
import type { Config } from "../../config/config.ts"
import { fleetSettings, SHOULD_BE_EQUAL } from "../../config/fleet-settings.ts"
import { errorText } from "../../errors.ts"
import { FleetKeys, MAC_HEADER } from "../../fleet/fleet-keys.ts"
import { MAX_MEMBERS } from "../../fleet/members.ts"
import { type FleetMessage, type FleetSettings, parseFleetMessage } from "../../fleet/messages.ts"
import { PERMISSION_ADVICE } from "./broker-permissions.ts"
import type { BrokerSession } from "./broker-session.ts"
import { clockFinding } from "./clock.ts"
import { type Finding, failure, ok, warning } from "./finding.ts"

const CHECK = "fleet"
/** Longer than the interval of `alive` messages. */
export const LISTEN_MS = 3_000
/** The time that a message of the fleet may take. */
const TRANSIT_MS = 500

type Alive = Extract<FleetMessage, { type: "alive" }>

interface Member {
  /** The processes that have used this worker id. */
  readonly incarnations: Set<string>
  shards: number | null
  /** Empty when its messages have none. */
  settings: FleetSettings
  /** The sender's clock minus this one, milliseconds; null when its messages have no time. */
  clockDifferenceMs: number | null
}

/** What was heard; fed by `listen`, judged by `findings`. */
export class HeardFleet {
  readonly #members = new Map<string, Member>()
  #unverified = 0

  unverified(): void {
    this.#unverified += 1
  }

  heard({ from, incarnation, keeps, sent_at, settings }: Alive, nowMs: number): void {
    const known = this.#members.get(from)
    if (known === undefined && this.#members.size >= MAX_MEMBERS) return
    const member = known ?? {
      ...{ incarnations: new Set(), shards: null, settings: {}, clockDifferenceMs: null },
    }
    this.#members.set(from, member)
    member.incarnations.add(incarnation)
    member.shards = keeps?.of ?? member.shards
    member.settings = settings ?? member.settings
    if (sent_at !== undefined) member.clockDifferenceMs = sent_at - nowMs
  }

  findings(config: Config): Finding[] {
    const { instanceId, fleetShards } = config
    const findings: Finding[] = []
    if (this.#unverified > 0) {
      findings.push(
        failure(
          CHECK,
          `${this.#unverified} message(s) of other workers do not verify: they have a different FLEET_SECRET`,
          "set the same FLEET_SECRET on all instances, or the same password in AMQP_URL",
        ),
      )
    }
    findings.push(ok(CHECK, this.#membersText(instanceId)))
    const others = [...this.#members].filter(
      ([, { shards }]) => shards !== null && shards !== fleetShards,
    )
    if (others.length > 0) {
      const theirs = [...new Set(others.map(([, { shards }]) => shards))].join(", ")
      findings.push(
        failure(
          CHECK,
          `FLEET_SHARDS is ${fleetShards} here and ${theirs} on ${namesOf(others)}`,
          "set the same FLEET_SHARDS on all instances",
        ),
      )
    }
    findings.push(...this.#settings(fleetSettings(config)))
    const shared = [...this.#members].filter(([, { incarnations }]) => incarnations.size > 1)
    if (shared.length > 0) {
      findings.push(
        warning(
          CHECK,
          `several processes use the same worker id: ${namesOf(shared)}`,
          "give each instance its own INSTANCE_ID; if a worker has just restarted, run the doctor again",
        ),
      )
    }
    return [...findings, ...this.#clocks()]
  }

  #membersText(instanceId: string): string {
    if (this.#members.size === 0) {
      return "no worker was heard: this is the first instance on the broker"
    }
    const instances = [...new Set([...this.#members.keys()].map(instanceOf))].sort()
    const own = instances.includes(instanceId)
      ? `; ${instanceId} is this machine's INSTANCE_ID and must run nowhere else`
      : ""
    return `${this.#members.size} worker(s) of ${instances.length} instance(s) heard: ${instances.join(", ")}${own}`
  }

  /** One finding for each setting that differs. The workers of an instance have the same values. */
  #settings(own: FleetSettings): Finding[] {
    return Object.entries(own).flatMap(([name, value]) => {
      const instances = new Map<string | number, Set<string>>()
      for (const [worker, { settings }] of this.#members) {
        const theirs = settings[name]
        if (theirs === undefined || theirs === value) continue
        const known = instances.get(theirs) ?? new Set()
        instances.set(theirs, known.add(instanceOf(worker)))
      }
      if (instances.size === 0) return []
      const others = [...instances].map(
        ([theirs, names]) => `${theirs} on ${[...names].sort().join(", ")}`,
      )
      const level = SHOULD_BE_EQUAL.includes(name) ? warning : failure
      const message = `${name} is ${value} here and ${others.join(" and ")}`
      return [level(CHECK, message, `set the same ${name} on all instances`)]
    })
  }

  /** One finding for each instance, since its workers share a clock. */
  #clocks(): Finding[] {
    const differences = new Map<string, number>()
    for (const [worker, { clockDifferenceMs }] of this.#members) {
      if (clockDifferenceMs !== null) differences.set(instanceOf(worker), clockDifferenceMs)
    }
    return [...differences].map(([instance, differenceMs]) =>
      clockFinding(`the ${instance} instance's`, differenceMs, TRANSIT_MS),
    )
  }
}

export async function checkFleet(session: BrokerSession, config: Config): Promise<Finding[]> {
  const { fleetSecret } = config
  if (fleetSecret === null) return []
  const keys = new FleetKeys(fleetSecret)
  const heard = new HeardFleet()
  const exchange = await session.attempt((on) =>
    on.exchangeDeclare(FLEET_EXCHANGE, "fanout", { passive: true }),
  )
  if (exchange !== null) return [ok(CHECK, `${FLEET_EXCHANGE} does not exist: no instance has run`)]
  const channel = await session.channel()
  const queue = await session.temporaryQueue(channel)
  try {
    await channel.queueBind(queue, FLEET_EXCHANGE, "")
  } catch (error) {
    return [bindingFailure(errorText(error), queue)]
  }
  await channel.basicConsume(queue, { noAck: true }, ({ body, properties }) => {
    listen(heard, keys, { body: body ?? new Uint8Array(0), properties })
  })
  await Bun.sleep(LISTEN_MS)
  await channel.close()
  return heard.findings(config)
}

/** A worker binds its fleet queue with the same permissions, and is not ready without them. */
function bindingFailure(text: string, queue: string): Finding {
  const error = readBrokerError(text)
  if (error.kind !== "access_refused") {
    const advice = `check the exchange ${FLEET_EXCHANGE} and the connection to the broker`
    return failure(CHECK, `no queue can be bound to ${FLEET_EXCHANGE}: ${text}`, advice)
  }
  const missing =
    error.resource === queue
      ? "write permission on owsla.fleet.*, the queues of workers"
      : `read permission on ${FLEET_EXCHANGE}`
  const message = `the user has no ${missing}: a worker needs it to bind its queue`
  return failure(CHECK, message, PERMISSION_ADVICE)
}

function listen(
  heard: HeardFleet,
  keys: FleetKeys,
  { body, properties }: Pick<Delivery, "body" | "properties">,
): void {
  if (!keys.verifies(body, properties.headers?.[MAC_HEADER])) {
    heard.unverified()
    return
  }
  const nowMs = Date.now()
  const message = parseFleetMessage(Buffer.from(body).toString(), nowMs)?.message
  if (message?.type === "alive") heard.heard(message, nowMs)
}

function instanceOf(worker: string): string {
  return worker.slice(0, worker.lastIndexOf("."))
}

function namesOf(members: readonly (readonly [string, Member])[]): string {
  return members
    .map(([worker]) => worker)
    .sort()
    .join(", ")
}
