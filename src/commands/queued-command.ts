/**
 * A command from a queue, from its arrival until its delivery is acknowledged, or lost before anything
 * was done with it.
 *
 *   routing ─┬─► at_connection ─┬────────► ending ──stored──► ended
 *            ├─► forwarding ────┤            │
 *            └──────────────────┘            │
 *   routing, at_connection (no byte offered), forwarding and ending (nothing offered or published) ──lost──► dropped
 *
 * routing: the device is looked up. at_connection: in the reorder buffer or the outgoing queue. forwarding: being
 * published to another worker's queue. ending: its outcome is known; copy and receipt are being stored.
 *
 * The delivery changes when the command is delivered again while its outcome is still to come.
 */

import type { Delivery } from "../broker/broker.ts"
import type { Command, Outcome, Recipient } from "../device/command.ts"
import type { Connection } from "../device/connection.ts"
import type { CommandMessage } from "./command-message.ts"
import type { LostCommand } from "./lost-commands.ts"

export interface Decided {
  readonly outcome: Outcome
  readonly detail: string
  readonly recipient: Recipient | null
}

/** How many commands of one queue are in hand. */
export interface QueueCount {
  readonly queue: string
  count: number
}

export type QueuedCommandState =
  | "routing"
  | "at_connection"
  | "forwarding"
  | "ending"
  | "ended"
  | "dropped"

/** What a queued command passes the calls of its connection on to; see `Command`. */
export interface CommandKeeper {
  settle(
    command: QueuedCommand,
    outcome: Outcome,
    detail: string,
    recipient: Recipient | null,
  ): void
  acknowledge(command: QueuedCommand): void
  replace(waiting: QueuedCommand, command: QueuedCommand): void
  withdraw(command: QueuedCommand): void
}

export class QueuedCommand implements Command {
  readonly cameBy = "delivery"
  readonly body: Uint8Array
  readonly seq: number | null
  readonly messageId: string | null
  readonly expiresAtMs: number
  readonly redelivered: boolean
  readonly forwarded: boolean
  readonly #keeper: CommandKeeper
  isOffered = false
  delivery: Delivery
  /** The count of the queue that it came from; null before it is counted. */
  countedFor: QueueCount | null = null
  /** Of the delivery; null when it could not be read as a command. */
  message: CommandMessage | null
  state: QueuedCommandState = "routing"
  /** Set while it is at a connection. */
  connection: Connection | null = null
  /** The key that its copies share; null when it was not forwarded. */
  copyKey: string | null = null
  /** It was lost here before anything was done with it, so it is not written yet. */
  droppedBefore = false
  /** Its outcome once the first of it was published, also while it is not known whether the broker has that. */
  decided: Decided | null = null
  /** The id under which it was forwarded; null before. */
  forwardedAs: string | null = null
  /** How often it had been forwarded since the broker gave it up. */
  forwards = 0
  /** Set from the loss of its delivery until it is delivered again. */
  loss: LostCommand<QueuedCommand> | null = null

  constructor(delivery: Delivery, message: CommandMessage | null, keeper: CommandKeeper) {
    this.body = delivery.body
    this.seq = message?.seq ?? null
    this.messageId = message?.messageId ?? null
    this.expiresAtMs = message?.expiresAtMs ?? Number.POSITIVE_INFINITY
    this.redelivered = delivery.redelivered || message?.redelivered === true
    this.forwarded = (message?.commandId ?? null) !== null
    this.#keeper = keeper
    this.delivery = delivery
    this.message = message
  }

  get bodyHash(): bigint | number {
    return Bun.hash(this.body)
  }

  get lost(): boolean {
    return this.delivery.lost
  }

  settle(outcome: Outcome, detail: string, recipient: Recipient | null): void {
    this.#keeper.settle(this, outcome, detail, recipient)
  }

  acknowledge(): void {
    this.#keeper.acknowledge(this)
  }

  replace(waiting: Command): void {
    if (!(waiting instanceof QueuedCommand)) throw new Error("a delivery replaces another only")
    this.#keeper.replace(waiting, this)
  }

  withdraw(): void {
    this.#keeper.withdraw(this)
  }
}
