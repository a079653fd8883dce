/**
 * A fleet of many workers in one process: the real `Fleet` of each, on a simulated broker and a
 * simulated clock. Only what the fleet does is simulated: workers have devices without sockets, and
 * no lines and commands.
 *
 * The broker delivers messages of one queue in order, after a delay. It keeps the queue of a worker
 * that is away, as RabbitMQ keeps a transient queue for a minute, and loses all queues when it
 * restarts. A worker can be killed, paused (its messages and timers wait), cut off, and started
 * again. What the broker can do besides, and this cannot: lose a confirm of a message that it has
 * routed, drop the oldest messages of a full queue, deliver to one worker later than to another for
 * seconds.
 */

import { drainMicrotasks } from "bun:jsc"
import type {
  Broker,
  BrokerState,
  Delivery,
  OutgoingMessage,
  PublishChannel,
  PublishChannelListener,
  PublishResult,
} from "../../src/broker/broker.ts"
import { fleetQueue } from "../../src/broker/topology.ts"
import { Counters } from "../../src/counters.ts"
import type { CloseReason } from "../../src/device/close-reason.ts"
import type { Recipient } from "../../src/device/command.ts"
import type { Connection, LineHandler } from "../../src/device/connection.ts"
import type { ConnectionTape } from "../../src/device/connection-tape.ts"
import { Connections, SWEEP_EVERY_MS } from "../../src/device/connections.ts"
import { ConnectionIds, incarnation, type WorkerProcess } from "../../src/device/ids.ts"
import { Fleet, type KeeperHooks } from "../../src/fleet/fleet.ts"
import type { Located } from "../../src/fleet/locator.ts"
import { shardOf } from "../../src/fleet/shards.ts"
import { FLEET_KEYS } from "./fleet-keys.ts"
import { NO_HELD_COMMANDS } from "./no-held-commands.ts"
import { noRecords } from "./no-records.ts"

const STARTED_AT_MS = 1_750_000_000_000
const NO_DEADLINES = { handshakeTimeoutMs: 1e9, identifyTimeoutMs: 1e9, idleTimeoutMs: 1e9 }

interface Event {
  readonly atMs: number
  readonly order: number
  readonly worker: NetworkWorker | null
  readonly act: () => void
}

export interface NetworkOptions {
  readonly shards: number
  /** From 0 to 1. */
  readonly random: () => number
  /** The longest delay of a message at the broker, ms. */
  readonly delayMs?: number
  /** The difference of a worker's clock, ms. */
  readonly skewOf?: (worker: number) => number
}

export class FleetNetwork {
  readonly options: NetworkOptions
  readonly workers: NetworkWorker[] = []
  nowMs = 0
  brokerIsUp = true
  /** Devices with held commands. */
  readonly held = new Set<string>()
  /** Messages that the broker refuses. */
  refuses: (message: OutgoingMessage) => boolean = () => false
  /** Messages that the broker has routed, each counted once for each queue. */
  routed = 0
  published = 0
  readonly #events: Event[] = []
  #order = 0
  #current: NetworkWorker | null = null
  readonly #queues = new Map<string, NetworkWorker>()

  constructor(options: NetworkOptions) {
    this.options = options
  }

  /** Starts a worker, or another process of it. */
  start(at: number): NetworkWorker {
    const worker = new NetworkWorker(this, at)
    this.workers[at] = worker
    worker.connect()
    return worker
  }

  /** The broker restarts: it is away for this time, and its fleet queues are lost. */
  restartBroker(forMs: number): void {
    if (!this.brokerIsUp) return
    this.brokerIsUp = false
    this.#queues.clear()
    for (const worker of this.workers) worker.cut()
    this.at(this.nowMs + forMs, null, () => {
      this.brokerIsUp = true
      for (const worker of this.workers) worker.connectSoon()
    })
  }

  at(atMs: number, worker: NetworkWorker | null, act: () => void): void {
    this.#push({ atMs, order: this.#order, worker, act })
    this.#order += 1
  }

  /** Lets everything happen that is due in this time. */
  pass(ms: number): void {
    const untilMs = this.nowMs + ms
    this.run(null, () => {
      for (;;) {
        const next = this.#events[0]
        if (next === undefined || next.atMs > untilMs) break
        this.#pop()
        this.nowMs = Math.max(this.nowMs, next.atMs)
        const { worker, act } = next
        this.#current = worker
        if (worker?.isPaused === true) worker.deferred.push(act)
        else if (worker?.isDead !== true) {
          act()
          drainMicrotasks()
        }
      }
    })
    this.nowMs = untilMs
  }

  /** What the code leaves for later becomes events of this worker. */
  run<T>(worker: NetworkWorker | null, act: () => T): T {
    const { setImmediate, setTimeout } = globalThis
    const before = this.#current
    this.#current = worker
    const later = (then: () => void, afterMs = 0) =>
      this.at(this.nowMs + afterMs, this.#current, then)
    Object.assign(globalThis, {
      setImmediate: (then: () => void) => later(then),
      setTimeout: later,
    })
    try {
      const result = act()
      drainMicrotasks()
      return result
    } finally {
      Object.assign(globalThis, { setImmediate, setTimeout })
      this.#current = before
    }
  }

  bind(worker: NetworkWorker): void {
    this.#queues.set(worker.queue, worker)
  }

  /** The broker has read a message. */
  route({ exchange, routingKey, body, properties }: OutgoingMessage): PublishResult {
    this.published += 1
    if (exchange !== "" && exchange !== "owsla.fleet") return "confirmed"
    const queues = exchange === "" ? [this.#queues.get(routingKey)] : [...this.#queues.values()]
    let isRouted = false
    for (const worker of queues) {
      if (worker === undefined) continue
      isRouted = true
      this.routed += 1
      worker.enqueue({ body, properties })
    }
    return isRouted ? "confirmed" : "returned"
  }

  delayMs(): number {
    return this.options.random() * (this.options.delayMs ?? 5)
  }

  #push(event: Event): void {
    const events = this.#events
    let at = events.push(event) - 1
    while (at > 0) {
      const parent = (at - 1) >> 1
      if (!isBefore(event, events[parent] as Event)) break
      events[at] = events[parent] as Event
      at = parent
    }
    events[at] = event
  }

  #pop(): void {
    const events = this.#events
    const last = events.pop()
    if (last === undefined || events.length === 0) return
    let at = 0
    for (;;) {
      let child = 2 * at + 1
      if (child >= events.length) break
      if (child + 1 < events.length && isBefore(events[child + 1] as Event, events[child] as Event))
        child += 1
      if (!isBefore(events[child] as Event, last)) break
      events[at] = events[child] as Event
      at = child
    }
    events[at] = last
  }
}

function isBefore(a: Event, b: Event): boolean {
  return a.atMs === b.atMs ? a.order < b.order : a.atMs < b.atMs
}

/** A device without a socket, and what the fleet asks of its connection. Small: there may be millions. */
export class NetworkDevice {
  readonly id: string
  readonly worker: NetworkWorker
  readonly connectedAtMs: number
  recipient: Recipient
  closedBecause: CloseReason | null = null
  tape: ConnectionTape | null = null
  #linesIn = 0

  constructor(worker: NetworkWorker, recipient: Recipient) {
    this.id = recipient.connectionId
    this.worker = worker
    this.connectedAtMs = worker.network.nowMs
    this.recipient = recipient
  }

  get connection(): Connection {
    return this as unknown as Connection
  }

  get endpoint() {
    return this
  }

  get peer() {
    return { tlsVersion: "TLSv1.3" }
  }

  get remoteAddress() {
    return "192.0.2.1"
  }

  get linesIn() {
    return this.#linesIn
  }

  /** The device sends a line. @returns its number. */
  send(line: string): number {
    const { lines, network } = this.worker
    const seq = this.#linesIn
    this.#linesIn += 1
    const handler: LineHandler = this.tape ?? lines
    network.run(this.worker, () => handler.take(this.connection, seq, Buffer.from(line), null))
    return seq
  }

  get linesOut() {
    return 0
  }

  get state() {
    return this.closedBecause === null ? "open" : "closed"
  }

  raiseEpoch(epoch: number): void {
    this.recipient = { ...this.recipient, epoch }
  }

  close(reason: CloseReason): void {
    this.worker.close(this, reason)
  }
}

export class NetworkWorker {
  readonly network: FleetNetwork
  readonly self: WorkerProcess
  readonly queue: string
  readonly counters = new Counters()
  readonly fleet: Fleet
  /** Its open connections by device id. */
  readonly devices = new Map<string, NetworkDevice>()
  readonly deferred: (() => void)[] = []
  /** The keepers' answers to registrations. */
  readonly lines = {
    taping: false,
    /** The broker confirms each line after a while. */
    take: (connection: Connection, seq: number) => {
      const confirm = () => {
        if (this.lines.taping) connection.tape?.confirmed(connection, seq)
      }
      this.network.at(this.network.nowMs + this.network.delayMs(), this, confirm)
    },
  }
  readonly answered: { deviceId: string; hasHeld: boolean; atMs: number }[] = []
  isDead = false
  isPaused = false
  isConnected = false
  /** Since when it is neither paused nor cut off. */
  reachableSinceMs = Number.POSITIVE_INFINITY
  readonly #connections = new Connections(NO_DEADLINES)
  readonly #ids: ConnectionIds
  readonly #broker: NetworkBroker
  readonly #skewMs: number
  /** When the broker delivers the last message that it has for this worker. */
  #deliveredUntilMs = 0
  /** Messages in its queue while it is cut off. */
  #queued: Pick<Delivery, "body" | "properties">[] = []

  constructor(network: FleetNetwork, at: number) {
    this.network = network
    this.#skewMs = network.options.skewOf?.(at) ?? 0
    const startedAtMs = Math.round(STARTED_AT_MS + network.nowMs)
    this.self = {
      worker: `gw${at >> 1}.${at & 1}`,
      incarnation: incarnation(startedAtMs, network.options.random()),
    }
    this.#ids = new ConnectionIds(this.self)
    this.queue = fleetQueue(this.self)
    this.#broker = new NetworkBroker(this)
    this.fleet = new Fleet(this.#broker, this.#connections, {
      self: this.self,
      ...noRecords(),
      settings: {},
      shards: network.options.shards,
      keeping: keepingFor(network, () => this.fleet.keepers.kept),
      registrationAnswered: (deviceId, _connectionId, hasHeld) => {
        this.answered.push({ deviceId, hasHeld, atMs: network.nowMs })
      },
      nowMs: () => this.epochNow,
      steadyMs: () => network.nowMs,
      counters: this.counters,
      keys: FLEET_KEYS,
      warn: () => undefined,
      admitsPerS: () => 100,
      flapping: null,
      rulesChanged: () => undefined,
      tapes: { lines: this.lines, started: () => undefined, ended: () => undefined },
    })
    this.#sweep(SWEEP_EVERY_MS * network.options.random())
  }

  /** Its wall clock. */
  get epochNow(): number {
    return Math.round(STARTED_AT_MS + this.network.nowMs + this.#skewMs)
  }

  isReachable(): boolean {
    return !this.isDead && !this.isPaused && this.isConnected
  }

  come(deviceId: string): NetworkDevice {
    const elsewhere = this.fleet.epochElsewhere(deviceId)
    const epoch = this.#connections.nextEpoch(deviceId, this.epochNow, elsewhere)
    const id = this.#ids.mint()
    const device = new NetworkDevice(this, { deviceId, connectionId: id, epoch })
    this.network.run(this, () => {
      const before = this.#connections.enter(device.connection)
      before?.close("taken_over")
      this.devices.set(deviceId, device)
      this.fleet.admitted(device.connection)
    })
    return device
  }

  go(deviceId: string): void {
    const device = this.devices.get(deviceId)
    if (device !== undefined) this.network.run(this, () => this.close(device, "peer_closed"))
  }

  locate(deviceId: string, trusting: boolean, found: (place: Located) => void): void {
    if (this.devices.has(deviceId)) {
      found({ kind: "worker", worker: this.self.worker, connectionId: "" })
    } else this.network.run(this, () => this.fleet.locator.locate(deviceId, trusting, found))
  }

  kill(): void {
    this.isDead = true
    this.devices.clear()
    this.isConnected = false
  }

  pause(): void {
    this.isPaused = true
  }

  resume(): void {
    if (!this.isPaused) return
    this.isPaused = false
    this.reachableSinceMs = this.network.nowMs
    for (const act of this.deferred.splice(0)) this.network.at(this.network.nowMs, this, act)
  }

  cut(): void {
    if (!this.isConnected) return
    this.isConnected = false
    this.network.run(this, () => this.#broker.cut())
  }

  /** Messages wait for a moment, as behind a large one, or can be sent again. */
  block(isBlocked: boolean): void {
    this.network.run(this, () => this.#broker.block(isBlocked))
  }

  connectSoon(): void {
    const afterMs = 50 + 500 * this.network.options.random()
    this.network.at(this.network.nowMs + afterMs, this, () => this.connect())
  }

  connect(): void {
    if (this.isDead || this.isConnected || !this.network.brokerIsUp) return
    this.isConnected = true
    this.reachableSinceMs = this.network.nowMs
    this.network.bind(this)
    for (const message of this.#queued.splice(0)) this.enqueue(message)
    this.network.at(this.network.nowMs, this, () => {
      this.#broker.open()
      this.fleet.connected()
    })
  }

  /** The broker has a message for this worker. */
  enqueue(message: Pick<Delivery, "body" | "properties">): void {
    if (this.isDead) return
    if (!this.isConnected) {
      this.#queued.push(message)
      return
    }
    const atMs = Math.max(this.#deliveredUntilMs, this.network.nowMs + this.network.delayMs())
    this.#deliveredUntilMs = atMs
    this.network.at(atMs, this, () => this.fleet.deliver(message as Delivery))
  }

  close(device: NetworkDevice, reason: CloseReason): void {
    if (device.closedBecause !== null) return
    device.closedBecause = reason
    const { deviceId } = device.recipient
    if (this.devices.get(deviceId) === device) this.devices.delete(deviceId)
    this.#connections.leave(device.connection)
    device.tape?.disconnected(device.connection, reason)
    this.fleet.closed(device.connection, reason)
  }

  #sweep(inMs: number): void {
    this.network.at(this.network.nowMs + inMs, this, () => {
      this.fleet.sweep(this.network.nowMs)
      this.#sweep(SWEEP_EVERY_MS)
    })
  }
}

/** The held commands of a worker: one for each device with some whose shard it keeps. */
function keepingFor(network: FleetNetwork, kept: () => ReadonlySet<number>): KeeperHooks {
  const { shards } = network.options
  return {
    ...NO_HELD_COMMANDS,
    registered: ([deviceId]) => network.held.has(deviceId),
    get count() {
      return [...network.held].filter((name) => kept().has(shardOf(name, shards))).length
    },
  }
}

/** What a fault does to a publish channel. */
interface Switchable {
  isBlocked: boolean
  open(): void
  cut(): void
  unblock(): void
}

class NetworkBroker implements Broker {
  readonly #worker: NetworkWorker
  readonly #channels: Switchable[] = []

  constructor(worker: NetworkWorker) {
    this.#worker = worker
  }

  get state(): BrokerState {
    return this.#worker.isConnected ? { kind: "ready" } : { kind: "away", reason: "cut off" }
  }

  publishChannel<T>(listener: PublishChannelListener<T>): PublishChannel<T> {
    const channel = new NetworkPublishChannel(this.#worker, listener)
    this.#channels.push(channel)
    return channel
  }

  open(): void {
    for (const channel of this.#channels) channel.open()
  }

  cut(): void {
    for (const channel of this.#channels) channel.cut()
  }

  block(isBlocked: boolean): void {
    for (const channel of this.#channels) {
      if (isBlocked) channel.isBlocked = true
      else channel.unblock()
    }
  }

  start(): void {}

  subscribe(): void {}

  unsubscribe(): void {}

  async exists(): Promise<boolean> {
    return false
  }

  async declare(): Promise<void> {}

  redeclare(): void {}

  reset(): void {}

  pauseConsuming(): void {}

  resumeConsuming(): void {}

  async stopConsuming(): Promise<void> {}

  async close(): Promise<void> {}
}

class NetworkPublishChannel<T> implements PublishChannel<T> {
  readonly #worker: NetworkWorker
  readonly #listener: PublishChannelListener<T>
  readonly #unsettled = new Set<T>()
  #connection = 0
  #isOpen = false
  isBlocked = false
  #readUntilMs = 0

  constructor(worker: NetworkWorker, listener: PublishChannelListener<T>) {
    this.#worker = worker
    this.#listener = listener
  }

  get state(): "open" | "blocked" | "closed" {
    if (!this.#isOpen) return "closed"
    return this.isBlocked ? "blocked" : "open"
  }

  unblock(): void {
    this.isBlocked = false
    if (this.#isOpen) this.#listener.opened()
  }

  open(): void {
    this.#isOpen = true
    this.#listener.opened()
  }

  cut(): void {
    this.#isOpen = false
    this.#connection += 1
    const cut = [...this.#unsettled]
    this.#unsettled.clear()
    const { network } = this.#worker
    network.at(network.nowMs, this.#worker, () => {
      for (const item of cut) this.#listener.settled(item, "cut")
    })
  }

  publish(message: OutgoingMessage, item: T): void {
    const { network } = this.#worker
    const connection = this.#connection
    // The gateway refills the objects of some messages.
    const sent = { ...message, properties: { ...message.properties } }
    this.#unsettled.add(item)
    this.#readUntilMs = Math.max(this.#readUntilMs, network.nowMs + network.delayMs())
    // The broker reads it even when its worker is paused or killed.
    network.at(this.#readUntilMs, null, () => {
      if (connection !== this.#connection || !network.brokerIsUp) return
      const result = network.refuses(sent) ? "nacked" : network.route(sent)
      network.at(network.nowMs + network.delayMs(), this.#worker, () => {
        if (this.#unsettled.delete(item)) this.#listener.settled(item, result)
      })
    })
  }
}
