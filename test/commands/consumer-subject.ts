/**
 * A consumer with a scripted broker and a scripted connection, and the clock held. The embedded
 * broker answers as it is told.
 */

import { jest } from "bun:test"
import type {
  Delivery,
  HeaderValue,
  MessageProperties,
  OutgoingMessage,
  PublishResult,
} from "../../src/broker/broker.ts"
import { EmbeddedBroker } from "../../src/broker/embedded.ts"
import { OutboundMessages } from "../../src/broker/outbound-messages.ts"
import { workerQueue } from "../../src/broker/topology.ts"
import { Consumer } from "../../src/commands/consumer.ts"
import { CommandIds } from "../../src/commands/forwarding.ts"
import type { HoldRequest } from "../../src/commands/hold/held-shard.ts"
import { Outcomes } from "../../src/commands/outcomes.ts"
import { CommandRouter, type Place } from "../../src/commands/router.ts"
import { UnacknowledgedCommands } from "../../src/commands/unacknowledged-commands.ts"
import { Counters } from "../../src/counters.ts"
import type { Command, Outcome } from "../../src/device/command.ts"
import type { Connection } from "../../src/device/connection.ts"
import { FLEET_KEYS, RANDOM_PART } from "../support/fleet-keys.ts"

export const LONGEST_WAIT_MS = 5_000
export const NOW_MS = 1_750_000_000_123
/** The time cut to whole seconds, as in a timestamp. */
export const SECOND_MS = 1_750_000_000_000
export const UNDELIVERED = "to_device.undelivered"
export const REPLIES = "replies"
export const MAX_LINE_BYTES = 100
export const MAX_HELD_BYTES = 100
export const MAX_HOLD_MS = 60_000
export const PREFETCH = 4
export const HERE = "gw.0"
/** Minted by this worker, by another, and by one that has no queue. */
export const [OWN, OTHER, GONE] = ["gw.0.mb2k3f9zq7.1", "gw.1.mb2k3f9zq7.1", "gw.9.mb2k3f9zq7.1"]
export const OTHER_QUEUE = workerQueue("gw.1")
export const RECIPIENT = { connectionId: OWN, deviceId: "thermostat:7", epoch: 1_750_000_000_000 }

export class ScriptedBroker extends EmbeddedBroker {
  readonly results: PublishResult[] = []
  readonly published: OutgoingMessage[] = []
  /** "pause" and "resume" in the order in which they were asked for. */
  readonly reading: string[] = []

  override store(message: OutgoingMessage): PublishResult {
    this.published.push(message)
    return this.results.shift() ?? super.store(message)
  }

  override pauseConsuming(): void {
    this.reading.push("pause")
  }

  override resumeConsuming(): void {
    this.reading.push("resume")
  }
}

/** A connection that keeps what it is offered. */
export class ScriptedConnection {
  readonly offered: Command[] = []
  /** A connection whose socket was offered bytes of all commands. */
  writing = false
  /** A connection whose commands wait for a missing number. */
  atGap = false
  gapsGivenUp = 0
  /** A connection whose commands wait for held ones. */
  heldBack = false
  heldBackReleased = 0
  /** A connection whose commands wait for replies. */
  isStuck = false
  readonly remembered = new Set<string>()
  readonly endpoint = {
    isHeld: () => this.atGap,
    remembers: (messageId: string) => this.remembered.has(messageId),
  }

  offer(command: Command): void {
    this.offered.push(command)
  }

  giveWay(command: Command): boolean {
    const at = this.offered.indexOf(command)
    if (at !== -1) this.offered.splice(at, 1)[0]?.settle("no_reply", "", RECIPIENT)
    return at !== -1
  }

  withdrawLost(): void {
    if (this.writing) return
    for (const command of this.offered.splice(0)) command.withdraw()
  }

  giveUpGap(): void {
    this.gapsGivenUp += 1
  }

  isHeldBack(): boolean {
    return this.heldBack
  }

  releaseHeldBack(): void {
    this.heldBackReleased += 1
  }

  /** Ends the oldest command that it was offered. */
  settle(outcome: Outcome): void {
    const command = this.offered.shift()
    command?.settle(outcome, "", RECIPIENT)
  }
}

/** The message of a member, when it has headers that only members may set. */
export function asMember(properties: MessageProperties): MessageProperties {
  const { headers = {} } = properties
  if (!Object.keys(headers).some((name) => name.startsWith("owsla-"))) return properties
  return { ...properties, headers: { ...headers, "owsla-member": FLEET_KEYS.commandKey } }
}

export class TestDelivery implements Delivery {
  readonly queue: string
  readonly body: Buffer
  readonly properties: MessageProperties
  readonly redelivered: boolean
  lost = false
  settled = false
  acknowledged = 0

  constructor(properties: MessageProperties, body: string | Buffer = "on", redelivered = false) {
    this.queue = "to_device"
    this.properties = properties
    this.body = Buffer.from(body)
    this.redelivered = redelivered
  }

  acknowledge(): void {
    this.acknowledged += 1
  }
}

export class Subject {
  readonly broker = new ScriptedBroker()
  readonly counters = new Counters()
  readonly connection = new ScriptedConnection()
  readonly unacknowledged = new UnacknowledgedCommands(this.broker, MAX_HELD_BYTES, this.counters)
  readonly outcomes: Outcomes
  readonly consumer: Consumer
  /** Workers that were heard lately. */
  readonly heard = new Set<string>()
  readonly received = new Map<string, Delivery[]>()
  readonly located: { id: string; trusting: boolean }[] = []
  readonly faults: Error[] = []
  /** What the keeper of held commands was asked to hold. */
  readonly held: HoldRequest[] = []
  /** The queue of the worker that keeps all held commands; null: none is known. */
  keeperQueue: string | null = null
  /** The look-up of connections throws. */
  broken = false
  /** Where the fleet says that a device is; null: it says nothing yet. */
  passedMs = 0
  place: Place | null = { kind: "nowhere", detail: "nobody holds it" }
  readonly #looking: ((place: Place) => void)[] = []
  readonly #ids = new Map([
    [OWN, this.connection],
    ["thermostat:7", this.connection],
  ])

  constructor() {
    const outboundMessages = new OutboundMessages(this.broker, this.counters, () => NOW_MS)
    const nowMs = () => NOW_MS
    const { counters, unacknowledged } = this
    this.outcomes = new Outcomes(
      outboundMessages,
      unacknowledged,
      counters,
      UNDELIVERED,
      nowMs,
      nowMs,
    )
    const router = new CommandRouter(outboundMessages, {
      workerId: HERE,
      nowMs,
      counters,
      find: (id) => {
        if (this.broken) throw new Error("broken")
        return this.#ids.get(id) as Connection | undefined
      },
      locate: (id, trusting, found) => {
        this.located.push({ id, trusting })
        if (this.place === null) this.#looking.push(found)
        else found(this.place)
      },
      commandIds: new CommandIds({ worker: HERE, incarnation: "mb2k3f9zq7" }, RANDOM_PART),
      commandKey: FLEET_KEYS.commandKey,
    })
    this.consumer = new Consumer(router, this.outcomes, unacknowledged, {
      workerId: HERE,
      framing: "line",
      maxLineBytes: MAX_LINE_BYTES,
      maxReplyMs: 60_000,
      maxHoldMs: MAX_HOLD_MS,
      keeper: { hold: (request) => void this.held.push(request) },
      keeperQueueOf: () => this.keeperQueue,
      nowMs,
      steadyMs: () => NOW_MS + this.passedMs,
      counters,
      mayServe: (worker) => this.heard.has(worker),
      keys: FLEET_KEYS,
      isGatewayQueue: (queue) => queue.startsWith("owsla."),
      fault: (error) => void this.faults.push(error),
    })
  }

  async start(): Promise<this> {
    const names = [UNDELIVERED, REPLIES, OTHER_QUEUE]
    this.broker.start(
      {
        exchanges: [],
        queues: names.map((name) => ({ name, durable: true, arguments: {} })),
        subscriptions: names.map((queue) => {
          const into: Delivery[] = []
          this.received.set(queue, into)
          return { queue, prefetch: 100, deliver: (delivery: Delivery) => void into.push(delivery) }
        }),
      },
      { stateChanged: () => undefined, warning: () => undefined },
    )
    await settled()
    return this
  }

  async deliver(properties: MessageProperties, body?: string | Buffer): Promise<TestDelivery> {
    return await this.deliverFromAnybody(asMember(properties), body)
  }

  /** Its headers that only members may set are no member's. */
  async deliverFromAnybody(
    properties: MessageProperties,
    body?: string | Buffer,
  ): Promise<TestDelivery> {
    const delivery = new TestDelivery(properties, body)
    this.consumer.deliver(delivery, PREFETCH)
    await settled()
    return delivery
  }

  /** The broker delivers a message again. */
  async redeliver({ properties, body }: Delivery): Promise<TestDelivery> {
    const delivery = new TestDelivery(properties, Buffer.from(body), true)
    this.consumer.deliver(delivery, PREFETCH)
    await settled()
    return delivery
  }

  /** The connection that these came on is lost. */
  async lose(...deliveries: TestDelivery[]): Promise<void> {
    for (const delivery of deliveries) delivery.lost = true
    this.unacknowledged.lost()
    await settled()
  }

  /** The fleet says where the device is that was looked for first. */
  async found(place: Place): Promise<void> {
    this.#looking.shift()?.(place)
    await settled()
  }

  /** A device is admitted by this worker. */
  comes(deviceId: string): void {
    this.#ids.set(deviceId, this.connection)
  }

  async deliverDead(properties: MessageProperties): Promise<TestDelivery> {
    return await this.deliverDeadFromAnybody(asMember(properties))
  }

  async deliverDeadFromAnybody(properties: MessageProperties): Promise<TestDelivery> {
    const delivery = new TestDelivery(properties)
    this.consumer.deliverDeadLetter(delivery, PREFETCH)
    await settled()
    return delivery
  }

  /** Lets the longest wait between tries pass. */
  async waitOut(): Promise<void> {
    jest.advanceTimersByTime(LONGEST_WAIT_MS)
    await settled()
  }

  /** Outcome and detail of each copy in the undelivered queue. */
  kept(): (readonly [HeaderValue, HeaderValue])[] {
    const copies = this.received.get(UNDELIVERED) ?? []
    return copies.map(({ properties: { headers } }) => [
      headers?.["owsla-outcome"],
      headers?.["owsla-detail"],
    ])
  }

  /** What went to the queue of the other worker, whether it stayed there or not. */
  forwarded(): OutgoingMessage[] {
    return this.broker.published.filter(({ routingKey }) => routingKey === OTHER_QUEUE)
  }

  receipts(): { outcome: string }[] {
    const replies = this.received.get(REPLIES) ?? []
    return replies.map(({ body }) => JSON.parse(Buffer.from(body).toString()))
  }
}

/**
 * Lets everything happen that needs no time: the embedded broker answers at the end of the turn.
 */
export async function settled(): Promise<void> {
  for (let n = 0; n < 20; n += 1) await Promise.resolve()
}
