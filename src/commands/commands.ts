/**
 * The stages of the commands of one worker, put together.
 *
 *   broker ─► consumer ─┐                       ┌─► connection ─► outcomes ─► outbound messages ─► broker
 *   HTTP ───► sender ───┴─► router ─────────────┴─► outbound messages ─► another worker
 *                               └─► keeper (of held commands) ─► its log at the broker ─► outbound messages ─► …
 *
 * Bounds: those of the stages.
 */

import type { Broker, Delivery } from "../broker/broker.ts"
import { OutboundMessages } from "../broker/outbound-messages.ts"
import { fleetQueue, isGatewayQueue, type QueueNames, workerQueue } from "../broker/topology.ts"
import type { Counters } from "../counters.ts"
import type { Connection } from "../device/connection.ts"
import type { WorkerProcess } from "../device/ids.ts"
import type { FleetKeys } from "../fleet/fleet-keys.ts"
import type { CommandFormat } from "./command-message.ts"
import { Consumer } from "./consumer.ts"
import type { CommandIds } from "./forwarding.ts"
import { HeldForwards, type HeldForwardsOptions } from "./hold/held-forwards.ts"
import { HoldKeeper, type HoldKeeperOptions } from "./hold/keeper.ts"
import { HttpSender } from "./http-sender.ts"
import { Outcomes } from "./outcomes.ts"
import { CommandRouter, type Locate } from "./router.ts"
import { UnacknowledgedCommands } from "./unacknowledged-commands.ts"

export interface CommandsOptions extends CommandFormat {
  readonly self: WorkerProcess
  readonly queues: QueueNames
  readonly maxCommandBytes: number
  readonly sendTimeoutMs: number
  readonly nowMs: () => number
  readonly steadyMs: () => number
  readonly counters: Counters
  readonly keys: FleetKeys
  readonly commandIds: CommandIds
  /** The open connection of this worker with this connection or device id. */
  readonly find: (id: string) => Connection | undefined
  readonly locate: Locate
  readonly hold: Pick<
    HoldKeeperOptions,
    | "shardOf"
    | "claimOf"
    | "prefetch"
    | "maxPerDevice"
    | "maxHeld"
    | "heldElsewhere"
    | "locate"
    | "done"
  > &
    Pick<HeldForwardsOptions, "maxOnTheWay" | "waits">
  /** The process that keeps the held commands of a device; null when none is known. */
  readonly keeperOf: (deviceId: string) => WorkerProcess | null
  /** Whether the fleet knows this worker, or may not know it yet. */
  readonly mayServe: (worker: string) => boolean
  /** Whether a process of the fleet may still hold connections. */
  readonly mayLive: (process: WorkerProcess) => boolean
  readonly fault: (error: Error, where: string) => void
}

export class Commands {
  readonly outboundMessages: OutboundMessages
  readonly unacknowledged: UnacknowledgedCommands
  readonly outcomes: Outcomes
  readonly consumer: Consumer
  readonly sender: HttpSender
  readonly keeper: HoldKeeper

  constructor(broker: Broker, options: CommandsOptions) {
    const { self, queues, counters, nowMs, steadyMs, keys, find, locate, commandIds } = options
    const { mayServe, fault, framing, maxLineBytes, maxReplyMs, maxCommandBytes } = options
    const { maxHoldMs, keeperOf } = options
    const workerId = self.worker
    this.outboundMessages = new OutboundMessages(broker, counters, steadyMs)
    const { commandKey } = keys
    const routing = { workerId, nowMs, counters, find, locate, commandIds, commandKey }
    const router = new CommandRouter(this.outboundMessages, routing)
    this.unacknowledged = new UnacknowledgedCommands(broker, maxCommandBytes, counters)
    this.outcomes = new Outcomes(
      this.outboundMessages,
      this.unacknowledged,
      counters,
      queues.undeliveredQueue,
      nowMs,
      steadyMs,
    )
    const replyQueue = fleetQueue(self)
    const { mayLive } = options
    const times = { nowMs, steadyMs }
    const forwards = new HeldForwards(router, {
      ...{ replyQueue, maxLineBytes, mayLive, ...times },
      maxOnTheWay: options.hold.maxOnTheWay,
      waits: options.hold.waits,
    })
    this.keeper = new HoldKeeper(broker, this.outboundMessages, this.outcomes, forwards, {
      ...options.hold,
      ...{ self, queues, keys, counters, nowMs, steadyMs, maxBytes: maxCommandBytes },
      foreign: (delivery) => this.consumer.deliverForeign(delivery),
    })
    const keeperQueueOf = (deviceId: string) => {
      const keeper = keeperOf(deviceId)
      return keeper && workerQueue(keeper.worker)
    }
    this.consumer = new Consumer(router, this.outcomes, this.unacknowledged, {
      ...{ workerId, ...times, counters, keys, framing, maxLineBytes, maxReplyMs, mayServe, fault },
      ...{ maxHoldMs, keeper: this.keeper, keeperQueueOf },
      isGatewayQueue: (queue) => isGatewayQueue(queues, queue),
    })
    this.sender = new HttpSender(broker, this.outboundMessages, router, this.outcomes, {
      ...{ ...times, counters, replyQueue, timeoutMs: options.sendTimeoutMs },
      ...{ maxLineBytes, keeperQueueOf },
    })
  }

  /** Handles a receipt from the fleet queue of this worker. */
  deliverReceipt(delivery: Delivery): void {
    if (!this.keeper.deliverReceipt(delivery)) this.sender.deliverReceipt(delivery)
  }

  /** True when every command has its outcome and every outcome is stored. */
  get settled(): boolean {
    return (
      this.unacknowledged.count === 0 &&
      this.sender.pendingCount === 0 &&
      this.outboundMessages.count === 0 &&
      this.keeper.unsettledCount === 0 &&
      this.outcomes.late.count === 0
    )
  }

  /**
   * To be called periodically.
   *
   * @param connectedMs the time since the last call in which the broker was connected.
   */
  sweep(atMs: number, connectedMs: number): void {
    this.unacknowledged.pass(connectedMs)
    this.consumer.sweep()
    this.sender.sweep()
    this.keeper.sweep(atMs)
    this.outcomes.late.sweep(atMs)
  }

  /** The worker drains: others hold commands. */
  leave(): void {
    this.keeper.leave()
    this.consumer.leave()
  }

  stop(): void {
    this.outboundMessages.stop()
  }
}
