/**
 * Reads what brought a delivery here: a back-end, another worker, or the broker, which gave the command up in another
 * queue. Pure.
 *
 * A command that the broker gave up goes to the worker that holds its device, since it may have been written there
 * before its delivery was lost. Unless that worker knows better, it ends there as `expired` or `closed`. One whose time
 * in the queue of a worker was over is no such command: that worker did not take it, and another may.
 */

import type { Delivery } from "../broker/broker.ts"
import { isWorkerQueue, WORKER_QUEUE_TTL_MS } from "../broker/topology.ts"
import type { Outcome } from "../device/command.ts"
import {
  type CommandMessage,
  type Death,
  GIVEN_UP_HEADER,
  LEFT_HEADER,
  type Refusal,
  readCommand,
  readDeath,
} from "./command-message.ts"

/** Bounds the forwards between workers that lose the command with their connections again and again. */
export const MAX_GIVEN_UP_FORWARDS = 16

/** The outcome of a command that the broker gave up. */
export interface GivenUp {
  readonly outcome: Extract<Outcome, "expired" | "closed">
  readonly detail: string
  /** How often it was forwarded since. */
  readonly forwards: number
}

/** Where a command that is routed comes from. */
export interface Origin {
  /** The queue of a worker that did not take the command in time. */
  readonly leftIn: string | null
  /** Its outcome unless the worker that holds its device knows better. */
  readonly givenUp: GivenUp | null
}

/** By what a command that the broker gave up is recognised, if it was lost here before. */
export interface DeadLetter {
  /** The broker gave it up because it had expired. */
  readonly expired: boolean
  /** How often it was forwarded since it was given up for good. */
  readonly forwards: number
  /** Its hops when its time in a worker's queue was over and it is sent to that worker again; null otherwise. */
  readonly leftAtHops: number | null
}

export interface ReadDelivery {
  /** The command, or why it is none. */
  readonly read: CommandMessage | Refusal
  /** Null when the broker never gave it up. */
  readonly deadLetter: DeadLetter | null
  readonly origin: Origin
}

const FRESH: Origin = { leftIn: null, givenUp: null }

/**
 * A delivery from `to_device` or a worker's queue.
 *
 * @param refusal why no command is to be read from it, or null.
 */
export function readDelivery(
  { body, properties }: Delivery,
  refusal: Refusal | null,
  nowMs: number,
  maxLineBytes: number,
): ReadDelivery {
  const read = refusal ?? readCommand(body, properties, nowMs, maxLineBytes)
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
  maxLineBytes: number,
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
    // Without a timestamp it counts from its arrival, and it has waited in that queue since.
    const waitedMs = undated ? WORKER_QUEUE_TTL_MS : 0
    restored.expiration = String(Math.max(0, Number(expiration) - waitedMs))
  }
  const read = refusal ?? readCommand(body, restored, nowMs, maxLineBytes)
  const leftIn = death?.queue ?? null
  if ("outcome" in read) {
    const deadLetter = { expired, forwards, leftAtHops }
    return { read, deadLetter, origin: { leftIn, givenUp: given } }
  }
  // Its time in the queue was over, not its own.
  const isLeft =
    expired &&
    isWorkerQueue(death.queue) &&
    (expiration === null || Number(expiration) > WORKER_QUEUE_TTL_MS) &&
    read.expiresAtMs > nowMs
  // When a command was forwarded after it was given up, the first reason counts.
  const isExpired = given === null ? expired && !isLeft : given.outcome === "expired"
  const givenUp = given ?? (isLeft ? null : givenUpBy(death))
  const deadLetter = { expired: isExpired, forwards, leftAtHops }
  return { read, deadLetter, origin: { leftIn, givenUp } }
}

/** What `readDelivery` reads at the worker that the command is forwarded to. */
export function givenUpHeader({ outcome, forwards, detail }: GivenUp): string {
  return `${outcome} ${forwards + 1} ${detail}`
}

/** The hops of a command when it was left in a worker's queue; null on one that was not. */
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

/** The outcome that another worker found for a command that the broker gave up; null without one. */
function readGivenUp({ headers }: Delivery["properties"]): GivenUp | null {
  const text = headers?.[GIVEN_UP_HEADER]
  if (typeof text !== "string") return null
  const [outcome, forwards, ...detail] = text.split(" ")
  return {
    outcome: outcome === "expired" ? "expired" : "closed",
    detail: detail.join(" "),
    // A count that is not a number is treated as too many.
    forwards: /^[0-9]{1,2}$/.test(forwards ?? "") ? Number(forwards) : MAX_GIVEN_UP_FORWARDS,
  }
}
