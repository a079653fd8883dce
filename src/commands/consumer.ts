/**
 * Consumes commands from the queues and passes each to its connection, to another worker, or to its
 * outcome.
 *
 *   to_device, owsla.worker.<id> ─► read ─► known? ─► router ─┬─ here ────► connection ─► (later) its outcome
 *   owsla.dead_letters ───────────┘                           ├─ queue ───► forwarded; acknowledged once it is stored
 *                                                             └─ nowhere ─► offline, or held (`hold/`)
 *
 * What a delivery says is read by `dead-letters.ts` and `command-message.ts`.
 *
 * It writes to no socket. Bounds: the prefetch of each queue, and `MAX_COMMAND_BYTES` of bodies for
 * all queues, beyond which reading from the broker pauses. When all deliveries of a queue up to its
 * prefetch wait for missing numbers, the oldest gap is given up.
 */

import type { Delivery, MessageProperties } from "../broker/broker.ts"
import {
  OWN_QUEUE_PREFIX,
  WORKER_QUEUE_TTL_MS,
  workerOfQueue,
  workerQueue,
} from "../broker/topology.ts"
import type { Counters } from "../counters.ts"
import type { Connection } from "../device/connection.ts"
import { workerOfConnection } from "../device/ids.ts"
import { asError } from "../errors.ts"
import type { FleetKeys } from "../fleet/fleet-keys.ts"
import {
  type CommandFormat,
  type CommandMessage,
  GIVEN_UP_HEADER,
  HOLD_HEADER,
  LEFT_HEADER,
  type Refusal,
} from "./command-message.ts"
import {
  type DeadLetter,
  type GivenUp,
  givenUpHeader,
  MAX_GIVEN_UP_FORWARDS,
  type Origin,
  readDeadLetter,
  readDelivery,
} from "./dead-letters.ts"
import { ownProperties } from "./hold/held-command.ts"
import type { HoldKeeper } from "./hold/keeper.ts"
import type { Outcomes } from "./outcomes.ts"
import { type CommandKeeper, QueuedCommand } from "./queued-command.ts"
import { refuseReplyTo } from "./reply-to.ts"
import type { CommandRouter, Destination, KeeperQueueOf } from "./router.ts"
import { MAX_HOPS } from "./routing.ts"
import type { UnacknowledgedCommands } from "./unacknowledged-commands.ts"

export interface ConsumerOptions extends CommandFormat {
  readonly workerId: string
  readonly nowMs: () => number
  readonly steadyMs: () => number
  readonly counters: Counters
  /**
   * Whether the fleet knows a worker, or may not know it yet because the connection to the broker
   * is new.
   */
  readonly mayServe: (workerId: string) => boolean
  readonly keys: FleetKeys
  /** Whether a queue is of the gateway. Receipts of back-ends' commands must not go there. */
  readonly isGatewayQueue: (queue: string) => boolean
  /** Called with an exception of the handling of a delivery. */
  readonly fault: (error: Error, queue: string) => void
  /** Holds commands for devices of shards that this worker keeps. */
  readonly keeper: Pick<HoldKeeper, "hold">
  readonly keeperQueueOf: KeeperQueueOf
}

/** Bounds the forwards of a command between workers that disagree about the keeper. */
const MAX_HOLD_HOPS = 16
/** How long a command may at least wait for held ones, a reply, or a device that takes no bytes. */
const STUCK_MS = 5_000
/** In one sweep, one of so many deliveries of the prefetch is ended. */
const STUCK_PART = 4

export class Consumer {
  readonly #options: ConsumerOptions
  readonly #router: CommandRouter
  readonly #outcomes: Outcomes
  readonly #unacknowledged: UnacknowledgedCommands
  /** The outcomes, but a command that may be held does not end as `closed`. */
  readonly #settling: CommandKeeper
  /** Commands to be held while no keeper is known. */
  #unplaced: (readonly [QueuedCommand, CommandMessage])[] = []
  #isLeaving = false
  /** The prefetch of each queue. */
  readonly #prefetchOf = new Map<string, number>()
  /**
   * Queue and prefetch of the last delivery, since most deliveries have the queue of the one
   * before.
   */
  #notedQueue = ""
  #notedPrefetch = 0
  /** A queue has had a delivery since the last sweep. */
  #hasReceived = false

  constructor(
    router: CommandRouter,
    outcomes: Outcomes,
    unacknowledged: UnacknowledgedCommands,
    options: ConsumerOptions,
  ) {
    this.#options = options
    this.#router = router
    this.#outcomes = outcomes
    this.#unacknowledged = unacknowledged
    this.#settling = {
      settle: (command, outcome, ...about) => {
        const { message } = command
        if (outcome === "closed" && message !== null && this.#mayHold(command, message)) {
          this.#hold(command, message)
        } else outcomes.settle(command, outcome, ...about)
      },
      acknowledge: (command) => outcomes.acknowledge(command),
      replace: (waiting, command) => outcomes.replace(waiting, command),
      withdraw: (command) => outcomes.withdraw(command),
    }
  }

  /**
   * Handles a delivery from `to_device` or from the queue of this worker.
   *
   * @param prefetch the current prefetch of its queue.
   */
  deliver(delivery: Delivery, prefetch: number): void {
    this.#options.counters.commandsReceived += 1
    this.#hasReceived = true
    this.#handle(delivery, prefetch, readDelivery)
  }

  /** Handles a delivery from the queue of dead letters. */
  deliverDeadLetter(delivery: Delivery, prefetch: number): void {
    this.#options.counters.deadLettersReceived += 1
    this.#hasReceived = true
    this.#handle(delivery, prefetch, readDeadLetter)
  }

  /**
   * Handles a held command from its keeper. It does not come by the queue of this worker: newer
   * commands, which wait for it, may fill the prefetch of that queue. The keeper sends it again
   * when it gets no receipt.
   */
  deliverHeld(delivery: Delivery): void {
    const { keys, counters } = this.#options
    if (!keys.admit(delivery.properties)) {
      counters.fleetMessagesUnverified += 1
      return
    }
    counters.commandsReceived += 1
    this.#handle(delivery, Number.POSITIVE_INFINITY, readDelivery)
  }

  /** Handles a message in the log of held commands that no member of the fleet has stored. */
  deliverForeign(delivery: Delivery): void {
    const detail = "in a queue of the gateway without the fleet's key: has FLEET_SECRET changed?"
    try {
      const refusal = this.#admit(delivery.properties)
      this.#refuse(delivery, refusal ?? { outcome: "invalid", detail }, null)
    } catch (error) {
      this.#failed(delivery, error)
    }
  }

  #handle(delivery: Delivery, prefetch: number, readFrom: typeof readDelivery): void {
    this.#note(delivery.queue, prefetch)
    try {
      this.#take(delivery, readFrom)
    } catch (error) {
      this.#failed(delivery, error)
    }
  }

  #take(delivery: Delivery, readFrom: typeof readDelivery): void {
    const options = this.#options
    const refusal = this.#admit(delivery.properties)
    const { read, deadLetter, origin } = readFrom(delivery, refusal, options.nowMs(), options)
    if ("outcome" in read) {
      this.#refuse(delivery, read, deadLetter)
      return
    }
    const command = new QueuedCommand(delivery, read, this.#settling, options.steadyMs())
    const { connectionId } = read.target
    if (read.isHeld && connectionId !== null) {
      const isHere = workerOfConnection(connectionId) === options.workerId
      command.heldKey = isHere ? `${read.commandId} ${connectionId}` : null
    }
    if (this.#unacknowledged.add(command, deadLetter)) this.#route(command, read, origin)
    // Its keeper has repeated it because it got no receipt.
    else if (read.isHeld) this.#outcomes.answerAgain(command)
  }

  /**
   * The worker drains. Commands to be held for which no keeper is known go back to their queue when
   * the connection closes: the whole fleet may be stopping.
   */
  leave(): void {
    this.#isLeaving = true
  }

  /**
   * To be called periodically. Makes room in a queue of which as many deliveries as its prefetch
   * allows wait for something that may not come: they would stop all other commands.
   */
  sweep(): void {
    const unplaced = this.#unplaced
    this.#unplaced = []
    for (const [command, message] of unplaced) this.#hold(command, message)
    const isIdle = !this.#hasReceived
    this.#hasReceived = false
    for (const [queue, prefetch] of this.#prefetchOf) {
      if (this.#unacknowledged.countFrom(queue) >= prefetch) this.#makeRoom(queue, prefetch, isIdle)
    }
  }

  /**
   * Removes internal headers from a message that no member of the fleet sent.
   * @returns the reason for which no command must be read from it, or null.
   */
  #admit(properties: MessageProperties): Refusal | null {
    const { keys, isGatewayQueue } = this.#options
    return keys.admit(properties) ? null : refuseReplyTo(properties, isGatewayQueue)
  }

  #refuse(delivery: Delivery, { outcome, detail }: Refusal, deadLetter: DeadLetter | null): void {
    const command = this.#unread(delivery)
    if (!this.#unacknowledged.add(command, deadLetter)) return
    this.#outcomes.settle(command, outcome, detail, null)
  }

  /**
   * Ends the command of a delivery whose handling threw an exception, so that it does not stay
   * unacknowledged.
   */
  #failed(delivery: Delivery, error: unknown): void {
    this.#options.fault(asError(error), delivery.queue)
    const command = this.#unacknowledged.of(delivery) ?? this.#unread(delivery)
    // The connection may still have the command. Closing it settles the commands that it has.
    if (command.state === "at_connection") {
      command.connection?.close("fault")
      if (command.state !== "at_connection") return
    }
    if (command.state === "ended" || command.state === "dropped") return
    this.#unacknowledged.hold(command)
    try {
      this.#outcomes.fail(command, "internal error, see the server log")
    } catch (again) {
      this.#options.fault(asError(again), delivery.queue)
      this.#unacknowledged.acknowledge(command)
    }
  }

  /** The command of a delivery that could not be read as one. */
  #unread(delivery: Delivery): QueuedCommand {
    return new QueuedCommand(delivery, null, this.#outcomes, this.#options.steadyMs())
  }

  #note(queue: string, prefetch: number): void {
    if (queue === this.#notedQueue && prefetch === this.#notedPrefetch) return
    this.#notedQueue = queue
    this.#notedPrefetch = prefetch
    this.#prefetchOf.set(queue, prefetch)
  }

  /**
   * Gives up the oldest gap when no queue has had a delivery between two calls: the missing command
   * cannot be delivered from this queue then, and is not being delivered from another. Then
   * commands do not wait for held ones any longer either. Ends commands that have waited long for a
   * reply or for a device that takes no bytes.
   */
  #makeRoom(queue: string, prefetch: number, isIdle: boolean): void {
    let oldest: QueuedCommand | null = null
    const stuck: QueuedCommand[] = []
    const steadyMs = this.#options.steadyMs()
    const since = steadyMs - STUCK_MS
    for (const command of this.#unacknowledged.all()) {
      if (command.countedFor?.queue !== queue) continue
      const { connection } = command
      if (connection?.endpoint?.isHeld(command) === true) oldest ??= command
      else if (isHeldBack(command)) {
        command.heldBackAtMs = steadyMs
        if (command.arrivedAtMs <= since) oldest ??= command
      } else if (connection?.isStuck !== true) return
      else if (Math.max(command.arrivedAtMs, command.heldBackAtMs) <= since) stuck.push(command)
    }
    for (const command of stuck.slice(0, Math.ceil(prefetch / STUCK_PART))) {
      if (command.connection?.giveWay(command)) this.#options.counters.commandsGaveWay += 1
    }
    if (oldest === null || !isIdle) return
    if (isHeldBack(oldest)) {
      oldest.connection?.releaseHeldBack()
      return
    }
    this.#options.counters.gapsGivenUpEarly += 1
    oldest.connection?.giveUpGap()
  }

  #route(command: QueuedCommand, message: CommandMessage, origin: Origin): void {
    const { workerId, mayServe } = this.#options
    const { leftIn } = origin
    const { decided } = command
    if (decided !== null) {
      this.#outcomes.settle(command, decided.outcome, decided.detail, decided.recipient)
      return
    }
    const owner = leftIn === null ? null : workerOfQueue(leftIn)
    if (
      owner !== null &&
      owner !== workerId &&
      mayForward(message, origin.givenUp) &&
      mayServe(owner)
    ) {
      // That worker may have consumed the command and lost its delivery. Then it remembers the
      // command.
      this.#forward(command, message, workerQueue(owner), origin)
      return
    }
    if (message.isHoldRequest && origin.givenUp === null) {
      this.#hold(command, message)
      return
    }
    const destination = this.#router.destinationOf(message.target, message.hops)
    if (destination.kind === "device") {
      this.#locate(command, message, destination.deviceId, origin)
    } else if (destination.kind === "queue" && destination.queue === leftIn) {
      if (origin.givenUp !== null) this.#end(command, origin.givenUp)
      else this.#nowhere(command, message, `left in ${leftIn} for ${WORKER_QUEUE_TTL_MS} ms`)
    } else this.#go(command, message, destination, origin)
  }

  #locate(command: QueuedCommand, message: CommandMessage, deviceId: string, origin: Origin): void {
    // The location cache led the command here, or to the queue where it expired, so it is not used
    // again.
    const trusting = origin.leftIn === null && message.hops === 0
    this.#router.locate(deviceId, trusting, (place) => {
      // Its delivery was lost meanwhile, and the next one is looked up again. Or its handling has
      // failed.
      if (command.state !== "routing") return
      try {
        this.#go(command, message, this.#router.destinationAt(deviceId, place), origin)
      } catch (error) {
        this.#failed(command.delivery, error)
      }
    })
  }

  #go(
    command: QueuedCommand,
    message: CommandMessage,
    destination: Destination,
    origin: Origin,
  ): void {
    const { givenUp } = origin
    if (destination.kind === "queue" && mayForward(message, givenUp)) {
      this.#forward(command, message, destination.queue, origin)
    } else if (givenUp !== null) this.#end(command, givenUp)
    else if (destination.kind === "here") this.#offer(command, destination.connection)
    else if (destination.kind === "nowhere") this.#nowhere(command, message, destination.detail)
    else this.#nowhere(command, message, `not reached in ${MAX_HOPS} hops`)
  }

  #offer(command: QueuedCommand, connection: Connection): void {
    if (command.redelivered && !isRecognised(command, connection)) this.#countRepeat(command)
    command.state = "at_connection"
    command.connection = connection
    connection.offer(command)
  }

  #countRepeat({ redelivered, droppedBefore }: QueuedCommand): void {
    if (redelivered && !droppedBefore) this.#options.counters.commandsPossiblyRepeated += 1
  }

  /** The device is not connected. */
  #nowhere(command: QueuedCommand, message: CommandMessage, detail: string): void {
    if (this.#mayHold(command, message)) this.#hold(command, message)
    else {
      this.#countRepeat(command)
      this.#outcomes.settle(command, "offline", detail, null)
    }
  }

  #mayHold(command: QueuedCommand, message: CommandMessage): boolean {
    const { options, isHeld, expiresAtMs } = message
    if (options.holdMs === null || isHeld || command.isOffered || command.lost) return false
    return this.#options.nowMs() < expiresAtMs
  }

  /** Passes a command to the keeper of its shard, which may be this worker. */
  #hold(command: QueuedCommand, message: CommandMessage): void {
    const { keeper, keeperQueueOf, workerId } = this.#options
    const { deviceId } = message.target
    const { holdMs } = message.options
    command.connection = null
    if (command.lost) {
      this.#unacknowledged.drop(command)
      return
    }
    const queue = deviceId === null ? null : keeperQueueOf(deviceId)
    if (deviceId === null || holdMs === null || queue === null) {
      if (this.#isLeaving) {
        this.#unacknowledged.drop(command)
        return
      }
      command.state = "routing"
      this.#unplaced.push([command, message])
      return
    }
    if (queue !== workerQueue(workerId)) {
      if (message.hops < MAX_HOLD_HOPS) this.#forwardToKeeper(command, message, queue)
      else this.#outcomes.settle(command, "offline", "no worker has taken it to be held", null)
      return
    }
    const id = message.commandId ?? this.#router.mintCommandId()
    const { messageId, supersedeKey, body } = command
    const properties = ownProperties(command.delivery.properties)
    // Only the command of an HTTP request has a fleet queue as `reply_to`: it is answered now.
    if (properties.replyTo?.startsWith(OWN_QUEUE_PREFIX) === true) {
      delete properties.replyTo
      delete properties.correlationId
    }
    command.state = "forwarding"
    command.forwardedAs = id
    keeper.hold({
      command: { id, deviceId, messageId, supersedeKey, body, properties },
      holdMs,
      expiresAtMs: message.expiresAtMs,
      redelivered: command.redelivered,
      wanted: () => !command.lost,
      stored: (heldUntilMs) => {
        if (messageId === null) this.#countRepeat(command)
        this.#outcomes.answerHeld(command, heldUntilMs)
        this.#unacknowledged.acknowledge(command)
      },
      known: (heldUntilMs) => {
        this.#outcomes.answerHeld(command, heldUntilMs)
        this.#outcomes.acknowledge(command)
      },
      refused: (outcome, detail) => this.#outcomes.settle(command, outcome, detail, null),
      withdrawn: () => {
        if (command.lost) this.#unacknowledged.drop(command)
        else this.#unplaced.push([command, message])
      },
    })
  }

  #forwardToKeeper(command: QueuedCommand, message: CommandMessage, queue: string): void {
    const commandId = message.commandId ?? this.#router.mintCommandId()
    command.state = "forwarding"
    command.forwardedAs = commandId
    const { expiresAtMs, hops } = message
    const { redelivered } = command
    const properties = this.#router.forwardedProperties(command.delivery.properties, {
      ...{ expiresAtMs, hops, redelivered, commandId },
    })
    properties.headers = { ...properties.headers, [HOLD_HEADER]: true }
    this.#router.forward({
      queue,
      body: command.body,
      properties,
      wanted: () => !command.lost,
      done: (result) => {
        if (result === "confirmed") this.#unacknowledged.acknowledge(command)
        else if (result === "unencodable") {
          this.#outcomes.settle(command, "invalid", "its headers are too large", null)
        } else if (command.lost) this.#unacknowledged.drop(command)
        // Its keeper has ended.
        else this.#unplaced.push([command, message])
      },
    })
  }

  #end(command: QueuedCommand, { outcome, detail }: GivenUp): void {
    this.#countRepeat(command)
    this.#outcomes.settle(command, outcome, detail, null)
  }

  #forward(command: QueuedCommand, message: CommandMessage, queue: string, origin: Origin): void {
    const { leftIn, givenUp } = origin
    const commandId = message.commandId ?? this.#router.mintCommandId()
    command.state = "forwarding"
    command.forwardedAs = commandId
    // The next worker compares a dead-lettered command with those it lost, so the hops must stay
    // the same.
    const hops = givenUp === null ? message.hops : message.hops - 1
    const properties = this.#router.forwardedProperties(command.delivery.properties, {
      expiresAtMs: message.expiresAtMs,
      hops,
      redelivered: command.redelivered,
      commandId,
    })
    if (givenUp === null && leftIn !== null && properties.headers !== undefined) {
      properties.headers[LEFT_HEADER] = message.hops
    }
    if (givenUp !== null && properties.headers !== undefined) {
      properties.headers[GIVEN_UP_HEADER] = givenUpHeader(givenUp)
      // The command may have expired already, and must not expire again in the queue of the worker.
      delete properties.expiration
    }
    this.#router.forward({
      queue,
      body: command.body,
      properties,
      wanted: () => !command.lost,
      done: (result) => {
        if (result === "confirmed") this.#unacknowledged.acknowledge(command)
        else if (result === "withdrawn" && command.lost) this.#unacknowledged.drop(command)
        // The command was redelivered before the forward was published.
        else if (result === "withdrawn") this.#forward(command, message, queue, origin)
        else if (givenUp !== null) this.#end(command, givenUp)
        else if (result === "returned") this.#nowhere(command, message, `no queue ${queue}`)
        else this.#outcomes.settle(command, "invalid", "its headers are too large", null)
      },
    })
  }
}

/** Whether the connection would know that the command was written before. */
function isRecognised({ message, messageId, seq }: QueuedCommand, connection: Connection): boolean {
  // By an id or a number it recognises what it has written itself.
  if (message?.target.deviceId == null) return messageId !== null || seq !== null
  // The device may have had another connection.
  return messageId !== null && connection.endpoint?.remembers(messageId) === true
}

function isHeldBack(command: QueuedCommand): boolean {
  return command.connection?.isHeldBack(command) === true
}

/** Dead-lettered commands have a bound of their own. */
function mayForward({ hops }: CommandMessage, givenUp: GivenUp | null): boolean {
  return givenUp === null ? hops < MAX_HOPS : givenUp.forwards < MAX_GIVEN_UP_FORWARDS
}
