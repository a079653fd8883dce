/**
 * Forwarding: what a command's message carries from worker to worker, so that its meaning stays the same
 * on the way and copies of it can be told. Pure.
 *
 * AMQP restarts an expiration in each queue and knows nothing of hops, and a publish that is
 * repeated after a lost connection is a second message. So each goes along as a header.
 */

import type { MessageProperties } from "../broker/broker.ts"
import { republishable } from "../broker/republishing.ts"
import type { WorkerProcess } from "../device/ids.ts"
import {
  COMMAND_ID_HEADER,
  type CommandMessage,
  EXPIRES_AT_HEADER,
  HOPS_HEADER,
  MEMBER_HEADER,
  REDELIVERED_HEADER,
} from "./command-message.ts"

/** The most that RabbitMQ takes; it closes the channel at more. */
const MAX_EXPIRATION_MS = 2 ** 32 - 1

/**
 * Mints the ids of the commands that one process is the first to forward: worker, incarnation, a random part that nobody
 * else can guess, and a counter.
 */
export class CommandIds {
  readonly #prefix: string
  #next = 0

  /** @param random at least 64 bits, drawn once for a process. */
  constructor({ worker, incarnation }: WorkerProcess, random: string) {
    this.#prefix = `${worker}.${incarnation}.${random}.`
  }

  mint(): string {
    const id = this.#prefix + this.#next.toString(36)
    this.#next += 1
    return id
  }
}

/** The fields of a command that go to the next worker as headers. */
export interface ForwardedCommand
  extends Pick<CommandMessage, "expiresAtMs" | "hops" | "redelivered"> {
  readonly commandId: string
}

/**
 * The properties of a command on its way to another worker.
 * @param commandKey by which that worker knows that a member of the fleet has forwarded it; see `fleet-keys.ts`.
 */
export function forwarded(
  properties: MessageProperties,
  message: ForwardedCommand,
  nowMs: number,
  commandKey: string,
): MessageProperties {
  const again = republishable(properties)
  const { headers } = again
  headers[MEMBER_HEADER] = commandKey
  headers[HOPS_HEADER] = message.hops + 1
  headers[COMMAND_ID_HEADER] = message.commandId
  if (message.redelivered) headers[REDELIVERED_HEADER] = true
  if (Number.isFinite(message.expiresAtMs)) {
    headers[EXPIRES_AT_HEADER] = message.expiresAtMs
    again.expiration = expirationLeft(message.expiresAtMs - nowMs)
  }
  return again
}

function expirationLeft(ms: number): string {
  return String(Math.min(MAX_EXPIRATION_MS, Math.max(0, Math.floor(ms))))
}
