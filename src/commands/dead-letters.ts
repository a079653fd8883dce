/**
 * Reads where a delivery comes from: a back-end, another worker, or the queue of dead letters.
 * Pure.
 *
 * A dead-lettered command goes to the worker that holds its device, which may have written it
 * before its delivery was lost. If that worker does not remember it, the command ends there as
 * `expired` or `closed`. A command that expired in the queue of a worker only because of the
 * time-to-live of that queue is routed again.
 */

import type { Delivery } from "../broker/broker.ts"
import { isWorkerQueue, WORKER_QUEUE_TTL_MS } from "../broker/topology.ts"
import type { Outcome } from "../device/command.ts"
import {
  type CommandFormat,
  type CommandMessage,
  type Death,
  GIVEN_UP_HEADER,
  LEFT_HEADER,
  type Refusal,
  readCommand,
  readDeath,
} from "./command-message.ts"

/** Bounds the forwards of a command between workers that repeatedly lose their connections. */
export const MAX_GIVEN_UP_FORWARDS = 16

/** The outcome of a dead-lettered command. */
export interface GivenUp {
  readonly outcome: Extract<Outcome, "expired" | "closed">
  readonly detail: string
  /** The number of forwards since it was dead-lettered. */
  readonly forwards: number
}

/** The origin of a command that is routed. */
export interface Origin {
  /** The queue in which the command was dead-lettered; null for another command. */
  readonly leftIn: string | null
  /** Its outcome, unless the worker that holds its device remembers another. */
  readonly givenUp: GivenUp | null
}

/** Properties by which a dead-lettered command is compared with commands that were lost here. */
export interface DeadLetter {
  /** It was dead-lettered because it had expired. */
  readonly expired: boolean
  /** The number of forwards since then. */
  readonly forwards: number
  /**
   * Its hops when it expired in the queue of a worker and is sent to that worker again; null
   * otherwise.
   */
  readonly leftAtHops: number | null
}

export interface ReadDelivery {
  /** The command, or the reason for which it is none. */
  readonly read: CommandMessage | Refusal
  /** Null when it was never dead-lettered. */
  readonly deadLetter: DeadLetter | null
  readonly origin: Origin
}

const FRESH: Origin = { leftIn: null, givenUp: null }

/**
 * A delivery from `to_device` or a worker's queue.
 *
 * @param refusal the reason for which no command must be read from it, or null.
 */
export function readDelivery(
  { body, properties }: Delivery,
  refusal: Refusal | null,
  nowMs: number,
  format: CommandFormat,
): ReadDelivery {
  const read = refusal ?? readCommand(body, properties, nowMs, format)
  const givenUp = readGivenUp(properties)
  const leftAtHops = readLeft(properties)
  if ("outcome" in read || (givenUp === null && leftAtHops === null)) {
    return { read, deadLetter: null, origin: FRESH }
  }
  const expired = givenUp?.outcome === "expired"
  const deadLetter = { expired, forwards: givenUp?.forwards ?? 0, leftAtHops }
  return { read, deadLetter, origin: givenUp === null ? FRESH : { leftIn: null, givenUp } }
}

/** A delivery from the queue of dead letters; see `readDelivery`. */
export function readDeadLetter(
  { body, properties }: Delivery,
  refusal: Refusal | null,
  nowMs: number,
  format: CommandFormat,
): ReadDelivery {
  const death = readDeath(properties)
  const given = readGivenUp(properties)
  const forwards = given?.forwards ?? 0
  const leftAtHops = readLeft(properties)
  const expired = death?.reason === "expired"
  const expiration = death?.expiration ?? null
  const restored = { ...properties }
  if (death !== null && expiration !== null) {
    const undated = properties.timestamp === undefined && isWorkerQueue(death.queue)
    // Without a timestamp an expiration counts from the arrival in the queue, where the command has
    // waited.
    const waitedMs = undated ? WORKER_QUEUE_TTL_MS : 0
    restored.expiration = String(Math.max(0, Number(expiration) - waitedMs))
  }
  const read = refusal ?? readCommand(body, restored, nowMs, format)
  const leftIn = death?.queue ?? null
  if ("outcome" in read) {
    const deadLetter = { expired, forwards, leftAtHops }
    return { read, deadLetter, origin: { leftIn, givenUp: given } }
  }
  // The time-to-live of the queue has ended, not the expiration of the command.
  const isLeft =
    expired &&
    isWorkerQueue(death.queue) &&
    (expiration === null || Number(expiration) > WORKER_QUEUE_TTL_MS) &&
    read.expiresAtMs > nowMs
  // When a dead-lettered command was forwarded, the first reason counts.
  const isExpired = given === null ? expired && !isLeft : given.outcome === "expired"
  const givenUp = given ?? (isLeft ? null : givenUpBy(death))
  const deadLetter = { expired: isExpired, forwards, leftAtHops }
  return { read, deadLetter, origin: { leftIn, givenUp } }
}

/** The header that the next worker reads by `readDelivery`. */
export function givenUpHeader({ outcome, forwards, detail }: GivenUp): string {
  return `${outcome} ${forwards + 1} ${detail}`
}

/** The hops of a command that expired in the queue of a worker; null for another command. */
function readLeft({ headers }: Delivery["properties"]): number | null {
  const hops = headers?.[LEFT_HEADER]
  return typeof hops === "number" && Number.isSafeInteger(hops) ? hops : null
}

function givenUpBy(death: Death | null): GivenUp {
  if (death?.reason === "expired") {
    return { outcome: "expired", detail: `in the queue ${death.queue}`, forwards: 0 }
  }
  const detail = `given up by the broker: ${death?.reason ?? "no x-death header"}`
  return { outcome: "closed", detail, forwards: 0 }
}

/** The outcome that another worker determined for a dead-lettered command; null without one. */
function readGivenUp({ headers }: Delivery["properties"]): GivenUp | null {
  const text = headers?.[GIVEN_UP_HEADER]
  if (typeof text !== "string") return null
  const [outcome, forwards, ...detail] = text.split(" ")
  return {
    outcome: outcome === "expired" ? "expired" : "closed",
    detail: detail.join(" "),
    // An invalid count is taken for the maximum.
    forwards: /^[0-9]{1,2}$/.test(forwards ?? "") ? Number(forwards) : MAX_GIVEN_UP_FORWARDS,
  }
}
