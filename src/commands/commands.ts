/**
 * The stages of the commands of one worker, put together.
 *
 *   broker ─► consumer ─┐                       ┌─► connection ─► outcomes ─► outbound messages ─► broker
 *   HTTP ───► sender ───┴─► router ─────────────┴─► outbound messages ─► another worker
 *
 * Bounds: those of the stages.
 */

import type { Broker } from "../broker/broker.ts"
import { OutboundMessages } from "../broker/outbound-messages.ts"
import { fleetQueue, isGatewayQueue, type QueueNames } from "../broker/topology.ts"
import type { Counters } from "../counters.ts"
import type { Connection } from "../device/connection.ts"
import type { WorkerProcess } from "../device/ids.ts"
import type { FleetKeys } from "../fleet/fleet-keys.ts"
import type { CommandFormat } from "./command-message.ts"
import { Consumer } from "./consumer.ts"
import type { CommandIds } from "./forwarding.ts"
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
  /** Whether the fleet knows this worker, or may not know it yet. */
  readonly mayServe: (worker: string) => boolean
  readonly fault: (error: Error, where: string) => void
}

export class Commands {
  readonly outboundMessages: OutboundMessages
  readonly unacknowledged: UnacknowledgedCommands
  readonly outcomes: Outcomes
  readonly consumer: Consumer
  readonly sender: HttpSender

  constructor(broker: Broker, options: CommandsOptions) {
    const { self, queues, counters, nowMs, steadyMs, keys, find, locate, commandIds } = options
    const { mayServe, fault, framing, maxLineBytes, maxReplyMs, maxCommandBytes } = options
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
    )
    this.consumer = new Consumer(router, this.outcomes, this.unacknowledged, {
      ...{ workerId, nowMs, counters, keys, framing, maxLineBytes, maxReplyMs, mayServe, fault },
      isGatewayQueue: (queue) => isGatewayQueue(queues, queue),
    })
    this.sender = new HttpSender(broker, this.outboundMessages, router, this.outcomes, {
      ...{ nowMs, counters, replyQueue: fleetQueue(self), timeoutMs: options.sendTimeoutMs },
      maxLineBytes,
    })
  }

  /** True when every command has its outcome and every outcome is stored. */
  get settled(): boolean {
    return (
      this.unacknowledged.count === 0 &&
      this.sender.pendingCount === 0 &&
      this.outboundMessages.count === 0 &&
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
    this.outcomes.late.sweep(atMs)
  }

  stop(): void {
    this.outboundMessages.stop()
  }
}
