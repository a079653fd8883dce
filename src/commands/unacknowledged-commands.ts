/**
 * The commands that this worker has consumed and not acknowledged ("in hand"): their number and
 * size, and the handling of lost deliveries.
 *
 *   add ─► in hand ─┬─ acknowledge: its outcome is stored ──► acknowledged, remembered until the broker processed that
 *                   ├─ lost without any effect ─────────────► dropped
 *                   └─ lost, bytes offered or outcome begun ► in hand until it ends; see `lost-commands.ts`
 *
 * Bounds: the prefetch of each queue; `maxBytes` of bodies, beyond which consuming pauses;
 * `MAX_ACKNOWLEDGED` acknowledgements, with `MAX_ACKNOWLEDGED_BYTES` of bodies, that the broker may
 * not have processed.
 */

import type { Broker, Delivery } from "../broker/broker.ts"
import type { Counters } from "../counters.ts"
import { Fifo } from "../structures/fifo.ts"
import type { DeadLetter } from "./dead-letters.ts"
import { Deduplicator } from "./deduplicator.ts"
import { fingerprint } from "./fingerprint.ts"
import { type LostCommand, LostCommands, type LostState } from "./lost-commands.ts"
import type { QueueCount, QueuedCommand } from "./queued-command.ts"

/**
 * More than the broker usually has to process: a fence every `FENCE_MS` shows which it has
 * processed.
 */
const MAX_ACKNOWLEDGED = 16_384
const MAX_ACKNOWLEDGED_BYTES = 16_777_216

interface Acknowledged {
  readonly delivery: Delivery
  readonly command: QueuedCommand
}

export class UnacknowledgedCommands {
  readonly #broker: Pick<Broker, "pauseConsuming" | "resumeConsuming">
  readonly #maxBytes: number
  readonly #counters: Counters
  readonly #commands = new Set<QueuedCommand>()
  readonly #byQueue = new Map<string, QueueCount>()
  readonly #acknowledged = new Fifo<Acknowledged>()
  readonly #lost = new LostCommands<QueuedCommand>()
  readonly #copies = new Deduplicator()
  #bytes = 0
  #acknowledgedBytes = 0
  #paused = false

  constructor(
    broker: Pick<Broker, "pauseConsuming" | "resumeConsuming">,
    maxBytes: number,
    counters: Counters,
  ) {
    this.#broker = broker
    this.#maxBytes = maxBytes
    this.#counters = counters
  }

  get count(): number {
    return this.#commands.size
  }

  countFrom(queue: string): number {
    return this.#byQueue.get(queue)?.count ?? 0
  }

  /** In order of arrival. */
  all(): Iterable<QueuedCommand> {
    return this.#commands
  }

  /**
   * Adds a command, unless it is the redelivery of a lost one or a copy of a forwarded one, which
   * are settled here.
   *
   * @param deadLetter set when it was dead-lettered.
   * @returns false when it is a redelivery or a copy.
   */
  add(command: QueuedCommand, deadLetter: DeadLetter | null): boolean {
    if (this.#isKnown(command, deadLetter)) {
      this.#counters.commandsRedelivered += 1
      return false
    }
    this.hold(command)
    return true
  }

  /** The command in hand with this delivery, or null. */
  of(delivery: Delivery): QueuedCommand | null {
    for (const command of this.#commands) if (command.delivery === delivery) return command
    return null
  }

  /** Adds a command without comparing it with lost ones. */
  hold(command: QueuedCommand): void {
    if (this.#commands.has(command)) return
    this.#commands.add(command)
    command.countedFor = this.#countOf(command.delivery.queue)
    command.countedFor.count += 1
    this.#bytes += command.body.length
    if (!this.#paused && this.#bytes > this.#maxBytes) {
      this.#paused = true
      this.#broker.pauseConsuming()
    }
  }

  /** Whether consuming is paused because the bodies of these commands have reached `maxBytes`. */
  get paused(): boolean {
    return this.#paused
  }

  /** Acknowledges the delivery: the outcome is stored, or another delivery decides it. */
  acknowledge(command: QueuedCommand): void {
    command.state = "ended"
    if (command.copyKey !== null) this.#copies.ended(command.copyKey)
    command.connection = null
    const { delivery, loss } = command
    if (loss !== null) finish(loss, "ended")
    // The delivery is lost but `lost` was not called yet, which will remember the command.
    else if (delivery.lost) return
    else this.#acknowledge(delivery, command)
    this.#release(command)
  }

  /**
   * A command in hand gets the delivery of the same command, and its own delivery is acknowledged.
   */
  replace(command: QueuedCommand, other: QueuedCommand): void {
    const { delivery, message, copyKey, countedFor, loss } = command
    if (loss !== null) loss.command = other
    command.loss = null
    command.delivery = other.delivery
    command.message = other.message
    command.copyKey = other.copyKey
    command.countedFor = other.countedFor
    Object.assign(other, { delivery, message, copyKey, countedFor, loss })
    this.acknowledge(other)
  }

  /** Removes a lost command that had no effect. Its next delivery decides. */
  drop(command: QueuedCommand): void {
    if (command.state === "dropped") return
    command.state = "dropped"
    command.connection = null
    if (command.copyKey !== null) this.#copies.drop(command.copyKey)
    this.#counters.commandsDropped += 1
    if (command.loss !== null) finish(command.loss, "dropped")
    else this.#remember(command, "dropped")
    this.#release(command)
  }

  /** To be called when a connection was lost, before the first delivery of the next one. */
  lost(): void {
    const connections = new Set(
      [...this.#commands].flatMap(({ lost, connection }) =>
        lost && connection !== null ? [connection] : [],
      ),
    )
    // Commands that wait at the connection are removed by `drop`.
    for (const connection of connections) connection.withdrawLost()
    for (const command of this.#commands) {
      if (!command.lost || command.loss !== null) continue
      switch (command.state) {
        case "routing":
          this.drop(command)
          break
        case "ended":
          this.#remember(command, "ended")
          this.#release(command)
          break
        default:
          this.#remember(command, "unfinished")
      }
    }
    for (;;) {
      const acknowledged = this.#acknowledged.shift()
      if (acknowledged === undefined) {
        this.#acknowledgedBytes = 0
        return
      }
      const { delivery, command } = acknowledged
      // The broker has processed most of these acknowledgements. A command without an id or number
      // could be another one with the same text, which would never be written.
      if (delivery.settled || !isDistinct(command)) continue
      this.#lost.add(lossOf(delivery, command, "acknowledged"))
    }
  }

  /** Adds time with a connection to the broker. */
  pass(ms: number): void {
    this.#lost.pass(ms)
  }

  #isKnown(command: QueuedCommand, deadLetter: DeadLetter | null): boolean {
    const { delivery, message } = command
    const key = keyOf(command)
    // A dead-lettered command may be forwarded here repeatedly, and must not count as its own copy.
    const forwards = deadLetter?.forwards ?? 0
    command.forwards = forwards
    const isNew = key !== null && forwards > 0 && command.heldKey === null
    command.copyKey = isNew ? `${key} given up ${forwards}` : key
    if (this.#lost.count > 0 && (command.redelivered || deadLetter !== null)) {
      const print = fingerprint(delivery.body, delivery.properties)
      const commandId = message?.commandId ?? null
      const leftAtHops = deadLetter?.leftAtHops ?? null
      const leftAs =
        commandId === null || leftAtHops === null ? [] : [Deduplicator.key(commandId, leftAtHops)]
      const forwarded =
        key === null || commandId === null
          ? null
          : { commandId, copyKeys: [key, ...leftAs], forwards }
      const lost = this.#lost.recognise(print, forwarded, deadLetter?.expired === true)
      if (lost !== null && lost.state !== "dropped") {
        // Copies of the command get no outcome of their own.
        if (command.copyKey !== null) this.#copies.ended(command.copyKey)
        if (lost.command === null) this.#acknowledge(delivery, command)
        else {
          // It may have come another way, with other hops.
          lost.command.delivery = delivery
          lost.command.message = message
          lost.command.forwards = forwards
          lost.command.loss = null
        }
        return true
      }
      command.droppedBefore = lost !== null
      command.decided = lost?.decided ?? null
      if (lost !== null && command.copyKey !== null) {
        this.#copies.reopen(command.copyKey)
        return false
      }
    }
    if (command.copyKey === null || this.#copies.take(command.copyKey)) return false
    this.#acknowledge(delivery, command)
    return true
  }

  #remember(command: QueuedCommand, state: LostState): void {
    command.loss = lossOf(command.delivery, command, state)
    this.#lost.add(command.loss)
  }

  #acknowledge(delivery: Delivery, command: QueuedCommand): void {
    delivery.acknowledge()
    const before = this.#acknowledged
    while (
      before.first?.delivery.settled === true ||
      before.length >= MAX_ACKNOWLEDGED ||
      (before.length > 0 && this.#acknowledgedBytes > MAX_ACKNOWLEDGED_BYTES)
    ) {
      this.#acknowledgedBytes -= before.shift()?.delivery.body.length ?? 0
    }
    before.push({ delivery, command })
    this.#acknowledgedBytes += delivery.body.length
  }

  #countOf(queue: string): QueueCount {
    const known = this.#byQueue.get(queue)
    if (known !== undefined) return known
    const count = { queue, count: 0 }
    this.#byQueue.set(queue, count)
    return count
  }

  #release(command: QueuedCommand): void {
    if (!this.#commands.delete(command)) return
    if (command.countedFor !== null) command.countedFor.count -= 1
    this.#bytes -= command.body.length
    if (!this.#paused || this.#bytes > this.#maxBytes / 2) return
    this.#paused = false
    this.#broker.resumeConsuming()
  }
}

function lossOf(
  delivery: Delivery,
  command: QueuedCommand,
  state: LostState,
): LostCommand<QueuedCommand> {
  return {
    fingerprint: fingerprint(delivery.body, delivery.properties),
    copyKey: keyOf(command),
    mayExpire: Number.isFinite(command.expiresAtMs),
    command: state === "unfinished" ? command : null,
    forwardedAs: command.forwardedAs,
    forwards: command.forwards,
    decided: command.decided,
    state,
  }
}

/** Whether an id or a number distinguishes it from other commands with the same text. */
function isDistinct({ messageId, seq, message, delivery }: QueuedCommand): boolean {
  const { correlationId } = delivery.properties
  const forwarded = message !== null && message.commandId !== null
  return messageId !== null || seq !== null || forwarded || correlationId !== undefined
}

function finish(loss: LostCommand<QueuedCommand>, state: "ended" | "dropped"): void {
  loss.state = state
  loss.command = null
}

function keyOf({ message, heldKey }: QueuedCommand): string | null {
  const commandId = message?.commandId ?? null
  if (commandId === null || message === null) return null
  return message.isHeld ? heldKey : Deduplicator.key(commandId, message.hops)
}
