/**
 * The log of one shard's held commands: the queue `owsla.held.<shard>`. Only the keeper of the
 * shard consumes it; the exclusive consumer is the fence between two keepers.
 *
 *   new ──open──► reading ──marker delivered──► read          any ──close──► closed
 *                    ▲                           │
 *                    └──────connection lost──────┘
 *
 *   append   publishes an entry               end   publishes a tombstone
 *   a lap    a marker is published to the end of the queue. Each entry before it is published again
 *            behind it and then acknowledged; tombstones and entries that have ended are left out
 *
 * No message can be fetched by its id, and only the prefetch is delivered at a time. So a keeper
 * reads the queue by one lap and keeps the commands in memory. Afterwards deliveries stay
 * unacknowledged, which keeps others from being delivered. One that is older than `REFRESH_MS` is
 * published again and acknowledged: brokers close channels with old unacknowledged deliveries, and
 * some keep all later messages on disk meanwhile.
 *
 * A tombstone is published when no publish of an entry of its command is in flight. So all entries
 * of this keeper are before it, and when it is delivered they have all been read. An entry that the
 * keeper before has published again may be behind it: so the first lap publishes tombstones again
 * too, and the last `PAST_TOMBSTONES` that were left out are remembered. An acknowledgement of the
 * entry instead of a tombstone was rejected: the broker does not confirm acknowledgements, and a
 * command whose acknowledgement is lost would be written again.
 *
 * The first lap of a connection begins with the first delivery, because only then no other keeper
 * consumes the queue: what that keeper has published again is before the marker. Probes, which are
 * markers of no lap, make sure that there is a delivery. Another keeper that still consumes the
 * queue may take probe or marker, so both are repeated.
 *
 * Bounds: the prefetch; the commands and tombstones of the shard. Errors: none; while the broker is
 * not available messages wait in `OutboundMessages`.
 */

import type { Delivery, QueueDeclaration, Subscription } from "../../broker/broker.ts"
import type { OutboundMessages } from "../../broker/outbound-messages.ts"
import type { FinalResult } from "../../broker/publish-window.ts"
import type { FleetKeys } from "../../fleet/fleet-keys.ts"
import { BoundedMap } from "../../structures/bounded-map.ts"
import {
  entryProperties,
  type HeldCommand,
  markerProperties,
  readLogMessage,
  tombstoneProperties,
} from "./held-command.ts"

/** Shorter than the shortest `consumer_timeout` that RabbitMQ enforces, one minute. */
export const REFRESH_MS = 20_000
/**
 * A lap begins when there are more tombstones than these and `TOMBSTONES_EACH` for each command. It
 * publishes all commands again, so with more tombstones fewer are published for each that ends.
 */
export const SPARE_TOMBSTONES = 64
export const TOMBSTONES_EACH = 3
/** More than the entries that the keeper before may have had in flight. */
const PAST_TOMBSTONES = 10_000
/** Probes are repeated, and a lap begins again, when there is no delivery for this long. */
const IDLE_MS = 2_000

const NO_BODY = new Uint8Array(0)

export interface HeldLogHooks {
  /** A command was read that was not known. */
  entry(command: HeldCommand): void
  /** Another keeper has ended the command. */
  gone(id: string): void
  /** All commands of the shard are known. */
  read(): void
  /** The connection is lost: another keeper may read and end commands, until `read`. */
  lost(): void
  /** No member of the fleet has stored this message. To be acknowledged by the callee. */
  foreign(delivery: Delivery): void
}

export interface HeldLogOptions {
  readonly queue: QueueDeclaration
  readonly prefetch: number
  readonly broker: {
    subscribe(queue: QueueDeclaration, subscription: Subscription): void
    unsubscribe(queue: string): void
  }
  readonly outboundMessages: Pick<OutboundMessages, "send">
  readonly keys: Pick<FleetKeys, "admit" | "commandKey">
  /** A text that no other marker has. */
  readonly mintMarker: () => string
  readonly steadyMs: () => number
}

interface Appending {
  /** Called before each publish; false ends it as "withdrawn". */
  readonly wanted: () => boolean
  readonly done: (result: FinalResult) => void
}

interface Lap {
  readonly marker: string
  /** The broker has the marker, so that what is published now is behind it. */
  isStored: boolean
  /** The tombstones before the marker. */
  tombstones: ReadonlySet<string>
}

/** The end of a command. */
interface Tombstone {
  /** The broker has it. */
  isStored: boolean
  /** Unacknowledged deliveries of what it makes void. */
  readonly inHand: readonly Delivery[]
}

/** A command that has not ended. */
interface Live {
  readonly command: HeldCommand
  /** Unacknowledged deliveries of its entries. */
  inHand: Delivery[]
  inHandSinceMs: number
  /** Deliveries to acknowledge when the publish in flight is confirmed. */
  replaced: Delivery[]
  isPublishing: boolean
  /** The lap in which it was published again. */
  lap: Lap | null
  /** It was read, or stored, on this connection. */
  isSeen: boolean
  /** Called when no publish is in flight. */
  idle: (() => void) | null
}

export class HeldLog {
  readonly #options: HeldLogOptions
  readonly #hooks: HeldLogHooks
  readonly #live = new Map<string, Live>()
  /** Those with deliveries in hand. */
  readonly #inHand = new Set<Live>()
  /** Those that were not read yet. */
  readonly #tombstones = new Map<string, Tombstone>()
  /** Those that were read and left out. */
  readonly #past = new BoundedMap<string, true>(PAST_TOMBSTONES)
  #state: "new" | "reading" | "read" | "closed" = "new"
  #lap: Lap | null = null
  #isProbing = false
  /** The last delivery, or attempt to get one. */
  #activeAtMs = 0

  constructor(options: HeldLogOptions, hooks: HeldLogHooks) {
    this.#options = options
    this.#hooks = hooks
  }

  /** Whether all commands are known and no other keeper consumes the queue. */
  get isRead(): boolean {
    return this.#state === "read"
  }

  open(): void {
    this.#state = "reading"
    const { broker, queue, prefetch } = this.#options
    const deliver = (delivery: Delivery) => this.#deliver(delivery)
    const lost = () => this.#lost()
    broker.subscribe(queue, { queue: queue.name, exclusive: true, prefetch, deliver, lost })
    this.#probe()
  }

  /** Gives the queue to the next keeper. Publishes in flight continue. */
  close(): void {
    const isOpen = this.#state === "reading" || this.#state === "read"
    this.#state = "closed"
    this.#lap = null
    this.#live.clear()
    this.#inHand.clear()
    if (isOpen) this.#options.broker.unsubscribe(this.#options.queue.name)
  }

  /** Stores a command. It must be new. */
  append(command: HeldCommand, { wanted, done }: Appending): void {
    const live = newLive(command)
    live.isPublishing = true
    this.#live.set(command.id, live)
    this.#publishEntry(command, wanted, (result) => {
      live.isPublishing = false
      live.isSeen = true
      if (result !== "confirmed") this.#live.delete(command.id)
      done(result)
      this.#published(live)
    })
  }

  /** Stores that a command has ended. @param done called when that is stored. */
  end(id: string, done: () => void): void {
    const live = this.#live.get(id)
    if (live !== undefined) this.#end(live, done)
    // The queue was read again, or belongs to another keeper, which may have the command.
    else if (this.#tombstones.has(id)) done()
    else this.#publishTombstone(id, [], done)
  }

  /** To be called periodically. */
  sweep(steadyMs: number): void {
    const isIdle = steadyMs - this.#activeAtMs >= IDLE_MS
    if (this.#state === "reading" && this.#lap === null && isIdle) this.#probe()
    if (this.#lap?.isStored === true && this.#inHand.size === 0 && isIdle) this.#beginLap()
    if (this.#state !== "read") return
    for (const live of this.#inHand) {
      if (!live.isPublishing && steadyMs - live.inHandSinceMs >= REFRESH_MS) this.#refresh(live)
    }
    const spare = TOMBSTONES_EACH * this.#live.size + SPARE_TOMBSTONES
    if (this.#lap === null && this.#tombstones.size > spare) this.#beginLap()
  }

  #deliver(delivery: Delivery): void {
    if (this.#state === "closed") return
    this.#activeAtMs = this.#options.steadyMs()
    if (this.#state === "reading" && this.#lap === null) this.#beginLap()
    const { body, properties } = delivery
    const message = this.#options.keys.admit(properties) ? readLogMessage(body, properties) : null
    if (message === null) this.#hooks.foreign(delivery)
    else if (message.kind === "entry") this.#entry(message.command, delivery)
    else if (message.kind === "tombstone") this.#tombstone(message.id, delivery)
    else {
      delivery.acknowledge()
      if (message.marker === this.#lap?.marker) this.#endLap(this.#lap)
    }
  }

  #entry(command: HeldCommand, delivery: Delivery): void {
    if (this.#tombstones.has(command.id) || this.#past.get(command.id) === true) {
      delivery.acknowledge()
      return
    }
    let live = this.#live.get(command.id)
    if (live === undefined) {
      live = newLive(command)
      this.#live.set(command.id, live)
      this.#hooks.entry(command)
    }
    live.isSeen = true
    // During a lap all deliveries are from before the marker.
    const isRepeated = this.#lap !== null && live.lap === this.#lap
    if (isRepeated && live.isPublishing) live.replaced.push(delivery)
    else if (isRepeated) delivery.acknowledge()
    else {
      if (live.inHand.length === 0) live.inHandSinceMs = this.#options.steadyMs()
      live.inHand.push(delivery)
      this.#inHand.add(live)
      this.#advance(live)
    }
  }

  #tombstone(id: string, delivery: Delivery): void {
    const live = this.#live.get(id)
    if (live === undefined) {
      const inHand = this.#tombstones.get(id)?.inHand ?? []
      if (this.#state === "reading") {
        this.#publishTombstone(id, [...inHand, delivery], () => undefined)
        return
      }
      // All entries of the command were before it. They are acknowledged first, because the
      // connection may be lost in between.
      for (const voided of inHand) voided.acknowledge()
      this.#tombstones.delete(id)
      this.#past.add(id, true)
      delivery.acknowledge()
      return
    }
    // Another keeper has ended it. Entries that were published again are behind this tombstone.
    live.inHand.push(delivery)
    this.#hooks.gone(id)
    this.#end(live, () => undefined)
  }

  #end(live: Live, done: () => void): void {
    if (live.isPublishing) {
      const { idle } = live
      live.idle = () => {
        idle?.()
        this.#end(live, done)
      }
      return
    }
    const { id } = live.command
    this.#live.delete(id)
    this.#inHand.delete(live)
    this.#publishTombstone(id, live.inHand, done)
  }

  #publishTombstone(id: string, inHand: readonly Delivery[], done: () => void): void {
    const tombstone = { isStored: false, inHand }
    this.#tombstones.set(id, tombstone)
    this.#publish(NO_BODY, tombstoneProperties(id, this.#options.keys.commandKey), {
      done: () => {
        tombstone.isStored = true
        for (const voided of inHand) voided.acknowledge()
        done()
      },
    })
  }

  /** Publishes the entry again when the lap asks for it. */
  #advance(live: Live): void {
    if (this.#lap?.isStored !== true || live.lap === this.#lap) return
    if (!live.isPublishing && live.inHand.length > 0) this.#refresh(live)
  }

  /** Publishes an entry again, and acknowledges those in hand. */
  #refresh(live: Live): void {
    live.replaced = live.inHand
    live.inHand = []
    this.#inHand.delete(live)
    live.isPublishing = true
    live.lap = this.#lap
    // The broker keeps the entries in hand when the connection is lost.
    const wanted = () => this.#state !== "closed" && live.replaced.some(({ lost }) => !lost)
    this.#publishEntry(live.command, wanted, (result) => {
      live.isPublishing = false
      if (result === "confirmed") for (const delivery of live.replaced) delivery.acknowledge()
      live.replaced = []
      this.#published(live)
    })
  }

  #published(live: Live): void {
    const { idle } = live
    live.idle = null
    if (idle !== null) idle()
    else if (this.#live.get(live.command.id) === live) this.#advance(live)
  }

  #beginLap(): void {
    const lap: Lap = { marker: this.#options.mintMarker(), isStored: false, tombstones: new Set() }
    this.#lap = lap
    this.#activeAtMs = this.#options.steadyMs()
    const stored = [...this.#tombstones].filter(([, { isStored }]) => isStored)
    lap.tombstones = new Set(stored.map(([id]) => id))
    this.#publish(NO_BODY, markerProperties(lap.marker, this.#options.keys.commandKey), {
      wanted: () => this.#lap === lap,
      done: () => {
        if (this.#lap !== lap) return
        lap.isStored = true
        for (const live of this.#inHand) this.#advance(live)
      },
    })
  }

  #endLap({ tombstones }: Lap): void {
    this.#lap = null
    // A keeper in between may have removed them.
    for (const id of tombstones) this.#tombstones.delete(id)
    if (this.#state !== "reading") return
    for (const [id, live] of this.#live) {
      if (live.isSeen || live.isPublishing) continue
      this.#live.delete(id)
      this.#hooks.gone(id)
    }
    this.#state = "read"
    this.#hooks.read()
  }

  #lost(): void {
    if (this.#state === "closed") return
    this.#state = "reading"
    this.#lap = null
    this.#inHand.clear()
    for (const live of this.#live.values()) {
      live.inHand = []
      live.isSeen = false
    }
    this.#hooks.lost()
    this.#probe()
  }

  #probe(): void {
    if (this.#isProbing) return
    this.#isProbing = true
    this.#activeAtMs = this.#options.steadyMs()
    const probe = markerProperties(this.#options.mintMarker(), this.#options.keys.commandKey)
    this.#publish(NO_BODY, probe, {
      wanted: () => this.#state === "reading",
      done: () => {
        this.#isProbing = false
      },
    })
  }

  #publishEntry(
    command: HeldCommand,
    wanted: () => boolean,
    done: (result: FinalResult) => void,
  ): void {
    const properties = entryProperties(command, this.#options.keys.commandKey)
    this.#publish(command.body, properties, { wanted, done })
  }

  #publish(
    body: Uint8Array,
    properties: Parameters<OutboundMessages["send"]>[2],
    { wanted = () => true, done = () => undefined }: Partial<Appending>,
  ): void {
    const { outboundMessages, queue } = this.#options
    // Returned messages are published again: `OutboundMessages` has the queue declared again.
    const options = { whenReturned: "again", wanted, done } as const
    outboundMessages.send(queue.name, body, properties, options)
  }
}

function newLive(command: HeldCommand): Live {
  return {
    ...{ command, inHand: [], inHandSinceMs: 0, replaced: [], isPublishing: false },
    ...{ lap: null, isSeen: false, idle: null },
  }
}
