/**
 * The keeper: holds commands for the devices of the shards that this worker keeps.
 *
 *   gained ─► HeldShard ◄── hold, registered, cancel, list
 *   lost, leave ─► closed; the next keeper reads its log
 *
 * Which worker keeps a shard is decided by the fleet (`fleet/keepers.ts`). Two workers may believe
 * it for a moment. Bounds, each ending a command as `hold_full`: `maxPerDevice` commands of a
 * device; `maxHeld` of the fleet, as far as the other keepers have told their numbers; `maxBytes`
 * of bodies on this worker.
 */

import type { Broker, Delivery } from "../../broker/broker.ts"
import type { OutboundMessages } from "../../broker/outbound-messages.ts"
import { heldQueue, type QueueNames } from "../../broker/topology.ts"
import type { Counters } from "../../counters.ts"
import type { WorkerProcess } from "../../device/ids.ts"
import type { FleetKeys } from "../../fleet/fleet-keys.ts"
import type { Registration } from "../../fleet/registration.ts"
import type { Outcomes } from "../outcomes.ts"
import { type HeldCommand, shownId } from "./held-command.ts"
import type { HeldForwards } from "./held-forwards.ts"
import { HeldLog } from "./held-log.ts"
import { HeldShard, type HeldShardOptions, type HoldRequest } from "./held-shard.ts"

/** All lines of an answer, as JSON: less than a message between workers may have. */
const MAX_LISTED_BYTES = 1_000_000

/** A held command as operators see it; times in milliseconds since 1970. */
export interface HeldRow {
  readonly message_id: string
  readonly supersede_key: string | null
  readonly held_at: number
  readonly expires_at: number
  readonly bytes: number
  /**
   * Only when it was asked for, and while all of them have at most `MAX_LISTED_BYTES`. In base64
   * when it is not UTF-8.
   */
  readonly line?: string
}

/**
 * What this worker is for a shard that it keeps: the only one that claims it, the first of several,
 * or another of them, which is about to give it up.
 */
export type Claim = "only" | "first" | "other"

export interface HoldKeeperOptions {
  readonly self: WorkerProcess
  readonly queues: QueueNames
  readonly shardOf: (deviceId: string) => number
  readonly claimOf: (deviceId: string) => Claim
  /** The prefetch of each log. */
  readonly prefetch: number
  readonly maxPerDevice: number
  readonly maxHeld: number
  readonly maxBytes: number
  /** The number of commands that other workers hold, as far as it is known. */
  readonly heldElsewhere: () => number
  readonly locate: HeldShardOptions["locate"]
  /** All held commands for this connection have been written. */
  readonly done: (connectionId: string) => void
  /** Handles a message in a log that no member of the fleet has stored. */
  readonly foreign: (delivery: Delivery) => void
  readonly keys: FleetKeys
  readonly counters: Counters
  readonly nowMs: () => number
  readonly steadyMs: () => number
}

export class HoldKeeper {
  readonly #broker: Pick<Broker, "subscribe" | "unsubscribe" | "exists">
  readonly #outboundMessages: OutboundMessages
  readonly #outcomes: Pick<Outcomes, "store">
  readonly #forwards: HeldForwards
  readonly #options: HoldKeeperOptions
  readonly #shards = new Map<number, HeldShard>()
  #nextMarker = 0
  #isLeaving = false

  constructor(
    broker: Pick<Broker, "subscribe" | "unsubscribe" | "exists">,
    outboundMessages: OutboundMessages,
    outcomes: Pick<Outcomes, "store">,
    forwards: HeldForwards,
    options: HoldKeeperOptions,
  ) {
    this.#broker = broker
    this.#outboundMessages = outboundMessages
    this.#outcomes = outcomes
    this.#forwards = forwards
    this.#options = options
  }

  /** The number of held commands that this worker keeps. */
  get count(): number {
    let count = 0
    for (const { index } of this.#shards.values()) count += index.count
    return count
  }

  /** Outcomes that are being stored, and requests that wait. */
  get unsettledCount(): number {
    let count = 0
    for (const shard of this.#shards.values()) count += shard.unsettledCount
    return count
  }

  /** This worker keeps the shard from now on. */
  gained(shard: number): void {
    if (this.#shards.has(shard) || this.#isLeaving) return
    const gained = this.#makeShard(heldQueue(this.#options.queues, shard))
    this.#shards.set(shard, gained)
    gained.check()
  }

  lost(shard: number): void {
    const lost = this.#shards.get(shard)
    this.#shards.delete(shard)
    lost?.close()
  }

  /** The worker drains: others keep its shards. */
  leave(): void {
    this.#isLeaving = true
    for (const shard of [...this.#shards.keys()]) this.lost(shard)
  }

  /** The broker is connected. */
  connected(): void {
    for (const shard of this.#shards.values()) shard.check()
  }

  /** A device is connected. @returns whether it has held commands, or may have. */
  registered(registration: Registration): boolean {
    const [deviceId, , , isFresh] = registration
    const shard = this.#of(deviceId)
    if (shard === undefined) return false
    const claim = this.#options.claimOf(deviceId)
    // The device registers with the first one too, which knows whether there are held commands.
    if (claim === "other") return true
    return shard.registered(registration, isFresh === 1 && claim === "only")
  }

  hold(request: HoldRequest): void {
    const shard = this.#of(request.command.deviceId)
    if (shard === undefined) request.withdrawn()
    else shard.hold(request)
  }

  /** Handles a receipt. @returns false when it is not for a forward of a held command. */
  deliverReceipt(delivery: Delivery): boolean {
    return this.#forwards.deliverReceipt(delivery)
  }

  /** The held commands of a device; null when this worker does not know all of them. */
  list(deviceId: string, withLines: boolean): HeldRow[] | null {
    const entries = this.#of(deviceId)?.list(deviceId) ?? null
    let left = withLines ? MAX_LISTED_BYTES : 0
    return (
      entries?.map(({ command }) => {
        const line = lineText(command.body)
        left -= Buffer.byteLength(JSON.stringify(line))
        return heldRow(command, left >= 0 ? line : null)
      }) ?? null
    )
  }

  /**
   * Cancels held commands of a device.
   * @param messageId null for all.
   * @returns their number; null when this worker does not know all of them.
   */
  cancel(deviceId: string, messageId: string | null): number | null {
    return this.#of(deviceId)?.cancel(deviceId, messageId) ?? null
  }

  /** To be called periodically. */
  sweep(steadyMs: number): void {
    for (const shard of this.#shards.values()) shard.sweep(steadyMs)
    this.#forwards.sweep(steadyMs)
  }

  #of(deviceId: string): HeldShard | undefined {
    return this.#shards.get(this.#options.shardOf(deviceId))
  }

  #makeShard(queue: ReturnType<typeof heldQueue>): HeldShard {
    const options = this.#options
    const { self, keys, prefetch, steadyMs, locate, foreign, done, maxPerDevice } = options
    const { counters, nowMs } = options
    const broker = this.#broker
    const outboundMessages = this.#outboundMessages
    const log = { queue, prefetch, broker, outboundMessages, keys, steadyMs }
    return new HeldShard({
      ...{ forwards: this.#forwards, locate, foreign, done, maxPerDevice },
      ...{ counters, nowMs, steadyMs },
      makeLog: (hooks) => new HeldLog({ ...log, mintMarker: () => this.#mintMarker(self) }, hooks),
      exists: () => broker.exists(queue.name),
      store: (command, receipt, wanted, stored) =>
        this.#outcomes.store(command, receipt, wanted, stored),
      room: () => ({
        commands: options.maxHeld - this.count - options.heldElsewhere(),
        bytes: options.maxBytes - this.#bytes,
      }),
    })
  }

  get #bytes(): number {
    let bytes = 0
    for (const { index } of this.#shards.values()) bytes += index.bytes
    return bytes
  }

  #mintMarker({ worker, incarnation }: WorkerProcess): string {
    this.#nextMarker += 1
    return `${worker}.${incarnation}.${this.#nextMarker}`
  }
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })

function heldRow(command: HeldCommand, line: string | null): HeldRow {
  const { supersedeKey, heldAtMs, expiresAtMs, body } = command
  return {
    message_id: shownId(command),
    supersede_key: supersedeKey,
    held_at: heldAtMs,
    expires_at: expiresAtMs,
    bytes: body.length,
    ...(line === null ? {} : { line }),
  }
}

function lineText(body: Uint8Array): string {
  try {
    return utf8.decode(body)
  } catch {
    return Buffer.from(body).toString("base64")
  }
}
