/**
 * Held commands on the way to the connections of their devices, and the receipts for them.
 *
 *   wait ─► turn ─► send ─► the fleet queue of the connection's process ─┬─ receipt ───────────────► answered
 *                                       ▲                                ├─ the process has ended ─► answered: closed
 *                                       │                                └─ none for `RETRY_MS` ─┐
 *                                       └────────────────────────────────────────────────────────┘
 *
 * When many devices return at once, only `maxOnTheWay` commands are on the way to one process, and
 * the other devices wait for their turn. More commands would wait in its queue, and all other work
 * of both workers with them. A command without a receipt after `SLOW_MS` does not count any more:
 * its device is slow. Newer commands for the devices wait too, so their workers are told every
 * `WAITS_MS` that there are held ones still.
 *
 * Fleet queues do not survive a restart of the broker. So a forward is repeated, with the same ids,
 * and the worker that has ended the command sends its receipt again. Rejected: the worker's own
 * queue. It survives, but newer commands for the same devices, which wait for the held ones, can
 * fill its prefetch. Bound: one forward or turn for each device with held commands.
 */

import type { Delivery } from "../../broker/broker.ts"
import { HELD_MESSAGE_TYPE } from "../../broker/setup.ts"
import { fleetQueue } from "../../broker/topology.ts"
import { processOfConnection, type WorkerProcess } from "../../device/ids.ts"
import { HELD_HEADER } from "../command-message.ts"
import { type Receipt, readReceipt, receipt } from "../outcomes.ts"
import type { CommandRouter } from "../router.ts"
import type { HeldCommand } from "./held-command.ts"

/** Longer than a worker takes to write a command and to send its receipt, unless it is paused. */
const RETRY_MS = 5_000
/** Longer than a forward and its receipt need with `maxOnTheWay` before them. */
export const SLOW_MS = 250
/** Shorter than newer commands wait without news of held ones (`hold-back.ts`). */
export const WAITS_MS = 5_000

export interface HeldForward {
  readonly command: HeldCommand
  readonly connectionId: string
  /** An answer that does not count yet. */
  receipt: { readonly receipt: Receipt; readonly wasOffered: boolean } | null
}

type Answered = (forward: HeldForward, receipt: Receipt, wasOffered: boolean) => void

interface Sending {
  /** Whether a forward that was not published yet is still to be published. */
  readonly wanted: () => boolean
  readonly answered: Answered
}

interface Sent extends Sending {
  readonly forward: HeldForward
  readonly correlationId: string
  /** Null when the connection id names no process. */
  readonly process: WorkerProcess | null
  readonly lane: Lane
  sentAtMs: number
  /** Neither answered nor slow. */
  isOnTheWay: boolean
}

/** A device that waits until a command may go to its connection. */
export interface Turn {
  readonly connectionId: string
  readonly lane: Lane
  readonly begin: () => void
  /** When its worker was told that it waits; at first when it began to wait. */
  toldAtMs: number
}

/** What goes to one process. */
interface Lane {
  onTheWay: number
  /** In the order in which they began to wait. */
  readonly turns: Set<Turn>
}

export interface HeldForwardsOptions {
  /** Whether a process may still hold connections. */
  readonly mayLive: (process: WorkerProcess) => boolean
  /** The commands that may be on the way to one process. */
  readonly maxOnTheWay: number
  /** Commands for this connection wait still. */
  readonly waits: (connectionId: string) => void
  readonly replyQueue: string
  /** Of a line from a device, which a receipt may contain. */
  readonly maxLineBytes: number
  readonly nowMs: () => number
  readonly steadyMs: () => number
}

export class HeldForwards {
  readonly #router: Pick<CommandRouter, "forward" | "forwardedProperties">
  readonly #options: HeldForwardsOptions
  readonly #sent = new Map<string, Sent>()
  readonly #correlationIds = new WeakMap<HeldForward, string>()
  /** By process. */
  readonly #lanes = new Map<string, Lane>()

  constructor(
    router: Pick<CommandRouter, "forward" | "forwardedProperties">,
    options: HeldForwardsOptions,
  ) {
    this.#router = router
    this.#options = options
  }

  /** Whether a command may go to the connection now. */
  hasRoom(connectionId: string): boolean {
    return this.#laneOf(connectionId).onTheWay < this.#options.maxOnTheWay
  }

  /** @param begin called once, when there is room; not before this returns. */
  wait(connectionId: string, begin: () => void): Turn {
    const lane = this.#laneOf(connectionId)
    const turn = { connectionId, lane, begin, toldAtMs: this.#options.steadyMs() }
    lane.turns.add(turn)
    return turn
  }

  /** The device does not wait for its turn any more. */
  leave(turn: Turn): void {
    turn.lane.turns.delete(turn)
  }

  /** @param sending `answered` is not called before this returns. */
  send(command: HeldCommand, connectionId: string, sending: Sending): HeldForward {
    const forward: HeldForward = { command, connectionId, receipt: null }
    // Random, so that a back-end that may publish to the fleet queue cannot forge a receipt.
    const correlationId = crypto.randomUUID()
    const process = processOfConnection(connectionId)
    const lane = this.#laneOf(connectionId)
    lane.onTheWay += 1
    const where = { process, lane, sentAtMs: 0, isOnTheWay: true }
    const sent = { ...sending, forward, correlationId, ...where }
    this.#sent.set(correlationId, sent)
    this.#correlationIds.set(forward, correlationId)
    this.#publish(sent)
    return forward
  }

  /** The forward has its answer, or none is awaited any more. */
  end(forward: HeldForward): void {
    const correlationId = this.#correlationIds.get(forward) ?? ""
    const sent = this.#sent.get(correlationId)
    this.#sent.delete(correlationId)
    if (sent !== undefined) this.#arrived(sent)
  }

  /** Handles a receipt. @returns false when it is not for a forward of a held command. */
  deliverReceipt({ properties, body }: Delivery): boolean {
    const sent = this.#sent.get(properties.correlationId ?? "")
    if (sent === undefined) return false
    const read = readReceipt(body, this.#options.maxLineBytes)
    if (read === null) return true
    const { offered = false, ...receipt } = read
    this.#answered(sent, receipt, offered)
    return true
  }

  /** Repeats forwards without a receipt. To be called periodically. */
  sweep(steadyMs: number): void {
    for (const sent of this.#sent.values()) {
      const waitedMs = steadyMs - sent.sentAtMs
      if (waitedMs >= SLOW_MS) this.#arrived(sent)
      if (sent.forward.receipt === null && waitedMs >= RETRY_MS) this.#publish(sent)
    }
    for (const [key, lane] of this.#lanes) {
      this.#advance(lane)
      if (lane.onTheWay + lane.turns.size === 0) this.#lanes.delete(key)
      for (const turn of lane.turns) {
        if (steadyMs - turn.toldAtMs < WAITS_MS) continue
        turn.toldAtMs = steadyMs
        this.#options.waits(turn.connectionId)
      }
    }
  }

  #laneOf(connectionId: string): Lane {
    const process = processOfConnection(connectionId)
    const key = process === null ? "" : fleetQueue(process)
    const lane = this.#lanes.get(key) ?? { onTheWay: 0, turns: new Set() }
    this.#lanes.set(key, lane)
    return lane
  }

  #advance(lane: Lane): void {
    for (const turn of lane.turns) {
      if (lane.onTheWay >= this.#options.maxOnTheWay) return
      lane.turns.delete(turn)
      turn.begin()
    }
  }

  /** The command is at its device, or does not come there. */
  #arrived(sent: Sent): void {
    if (!sent.isOnTheWay) return
    sent.isOnTheWay = false
    sent.lane.onTheWay -= 1
  }

  #answered(sent: Sent, receipt: Receipt, wasOffered: boolean): void {
    this.#arrived(sent)
    // The next command of the device goes before those of devices that wait. So one device after
    // the other has all its commands.
    sent.answered(sent.forward, receipt, wasOffered)
    this.#advance(sent.lane)
  }

  #publish(sent: Sent): void {
    const { forward, correlationId, process, wanted } = sent
    const { command, connectionId } = forward
    const { steadyMs, nowMs, replyQueue, mayLive } = this.#options
    sent.sentAtMs = steadyMs()
    const properties = this.#router.forwardedProperties(command.properties, {
      ...{ expiresAtMs: command.expiresAtMs, hops: 0, redelivered: false, commandId: command.id },
    })
    properties.type = HELD_MESSAGE_TYPE
    properties.replyTo = replyQueue
    properties.correlationId = correlationId
    properties.headers = { ...properties.headers, [HELD_HEADER]: true, connection_id: connectionId }
    const isCurrent = () => this.#sent.get(correlationId) === sent
    const target = { deviceId: command.deviceId, connectionId }
    const failed = (outcome: "closed" | "invalid", detail: string) =>
      this.#answered(sent, receipt(outcome, detail, null, target, nowMs()), false)
    if (process === null || !mayLive(process)) {
      // Not before `send` has returned.
      queueMicrotask(() => {
        if (isCurrent()) failed("closed", `the worker of ${connectionId} has ended`)
      })
      return
    }
    this.#router.forward({
      queue: fleetQueue(process),
      body: command.body,
      properties,
      wanted: () => isCurrent() && wanted(),
      done: (result) => {
        if (result === "confirmed" || !isCurrent()) return
        // Not wanted now. One that was published before may have been written.
        if (result === "withdrawn") sent.sentAtMs = Number.NEGATIVE_INFINITY
        else if (result === "unencodable") failed("invalid", "its headers are too large")
        else failed("closed", `not forwarded to the worker of ${connectionId}: ${result}`)
      },
    })
  }
}
