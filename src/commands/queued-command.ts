/**
 * A command from a queue. It exists until its delivery is acknowledged, or is lost before the
 * command had any effect.
 *
 *   routing ─┬─► at_connection ─┬────────► ending ──stored──► ended
 *            ├─► forwarding ────┤            │
 *            └──────────────────┘            │
 *   routing, at_connection (no byte offered), forwarding and ending (nothing offered or published) ──lost──► dropped
 *
 * routing: its device is looked up. at_connection: it is in the reorder buffer or the outgoing
 * queue, or was written and waits for its reply. forwarding: it is published to the queue of
 * another worker. ending: it has an outcome, and copy and receipt are published.
 *
 * Its delivery is replaced when the command is redelivered before it has an outcome.
 */

import type { Delivery } from "../broker/broker.ts"
import type { Command, Outcome, Recipient, Reply, TraceContext } from "../device/command.ts"
import type { Connection } from "../device/connection.ts"
import type { ReplyRequest } from "../device/reply-request.ts"
import type { CommandMessage } from "./command-message.ts"
import { NO_OPTIONS } from "./command-options.ts"
import type { LostCommand } from "./lost-commands.ts"

export interface Decided {
  readonly outcome: Outcome
  readonly detail: string
  readonly recipient: Recipient | null
}

/** The number of unacknowledged commands of one queue. */
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

/** Handles the calls of a connection for queued commands; see `Command`. */
export interface CommandKeeper {
  settle(
    command: QueuedCommand,
    outcome: Outcome,
    detail: string,
    recipient: Recipient | null,
    reply?: Reply,
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
  readonly supersedeKey: string | null
  readonly reply: ReplyRequest | null
  readonly trace: TraceContext | null
  readonly redelivered: boolean
  readonly forwarded: boolean
  readonly wasHeld: boolean
  readonly #keeper: CommandKeeper
  isOffered = false
  delivery: Delivery
  /** Of its first delivery here, of the monotonic clock. */
  readonly arrivedAtMs: number
  /** When it was last seen to wait for held commands, of the monotonic clock. */
  heldBackAtMs = Number.NEGATIVE_INFINITY
  /** The count of its queue; null before it is counted. */
  countedFor: QueueCount | null = null
  /** Null when the delivery could not be read as a command. */
  message: CommandMessage | null
  state: QueuedCommandState = "routing"
  /** Set while it is at a connection. */
  connection: Connection | null = null
  /** The key of all its copies; null when it was not forwarded. */
  copyKey: string | null = null
  /**
   * Set for a held command whose connection is, or was, of this worker. It may come again when its
   * keeper has got no receipt, and by way of the dead letters: all of them are copies. At another
   * worker it only ends as not written.
   */
  heldKey: string | null = null
  /** It was lost here before without any effect, so it is certainly not written. */
  droppedBefore = false
  /** Its outcome, from the first publish of copy or receipt on, also before that is confirmed. */
  decided: Decided | null = null
  /** The id under which it was forwarded; null before. */
  forwardedAs: string | null = null
  /** The number of forwards since it was dead-lettered. */
  forwards = 0
  /** Set from the loss of its delivery until its redelivery. */
  loss: LostCommand<QueuedCommand> | null = null

  constructor(
    delivery: Delivery,
    message: CommandMessage | null,
    keeper: CommandKeeper,
    arrivedAtMs: number,
  ) {
    this.body = delivery.body
    this.seq = message?.seq ?? null
    this.messageId = message?.messageId ?? null
    this.expiresAtMs = message?.expiresAtMs ?? Number.POSITIVE_INFINITY
    const { supersedeKey, reply, trace } = message?.options ?? NO_OPTIONS
    this.supersedeKey = supersedeKey
    this.reply = reply
    this.trace = trace
    this.redelivered = delivery.redelivered || message?.redelivered === true
    this.forwarded = (message?.commandId ?? null) !== null
    this.wasHeld = message?.isHeld === true
    this.#keeper = keeper
    this.delivery = delivery
    this.arrivedAtMs = arrivedAtMs
    this.message = message
  }

  get bodyHash(): bigint | number {
    return Bun.hash(this.body)
  }

  get lost(): boolean {
    return this.delivery.lost
  }

  settle(outcome: Outcome, detail: string, recipient: Recipient | null, reply?: Reply): void {
    this.#keeper.settle(this, outcome, detail, recipient, reply)
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
