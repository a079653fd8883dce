/**
 * The headers of forwarded commands, which keep the meaning of a command and identify its copies.
 * Pure.
 *
 * AMQP restarts an expiration in each queue, does not count hops, and makes a second message of a
 * repeated publish. So the time of expiration, the hops and an id are headers.
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

/** The maximum of RabbitMQ, which closes the channel at more. */
const MAX_EXPIRATION_MS = 2 ** 32 - 1

/**
 * Makes ids for the commands that this process forwards first: worker, incarnation, a random part,
 * which back-ends cannot guess, and a counter.
 */
export class CommandIds {
  readonly #prefix: string
  #next = 0

  /** @param random at least 64 random bits for the process. */
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
 * @param commandKey proves to that worker that a member of the fleet forwarded it; see
 * `fleet-keys.ts`.
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
