/**
 * A worker: puts connections, lines, commands and fleet together on a broker, a listener and the
 * HTTP sidecar. `worker-process.ts` makes those parts and ties the worker to its process.
 *
 *   devices ─► listener ─► connection ─► lines ─► broker
 *   broker ─► commands ─► connection ─► devices        HTTP ─► commands ─► connection or broker
 *                  └─► fleet ◄─► the other workers ◄──────────────┘
 *
 * Decides nothing about lines or commands. Starts in the order HTTP, broker, listener, so that
 * nothing waits once devices are let in. Stops in the order listener, HTTP, broker.
 */

import type { Broker } from "../broker/broker.ts"
import { BrokerWatch } from "../broker/broker-watch.ts"
import { brokerSetup, heldOnTheWay, heldPrefetch } from "../broker/setup.ts"
import { broadcastsQueue, isGatewayQueue, lineQueues, workerQueue } from "../broker/topology.ts"
import { BroadcastConsumer } from "../commands/broadcast-consumer.ts"
import { Commands } from "../commands/commands.ts"
import type { CommandIds } from "../commands/forwarding.ts"
import type { Config } from "../config/config.ts"
import { fleetSettings } from "../config/fleet-settings.ts"
import type { Counters } from "../counters.ts"
import { Admitter } from "../device/admitter.ts"
import { Authenticator } from "../device/authenticator.ts"
import { Backpressure } from "../device/backpressure.ts"
import type { CloseDetails, CloseReason } from "../device/close-reason.ts"
import type { Connection, ConnectionContext } from "../device/connection.ts"
import { ConnectionHistory } from "../device/connection-history.ts"
import { Connections, PAUSED_MS, SWEEP_EVERY_MS } from "../device/connections.ts"
import type { Denylist } from "../device/denylist.ts"
import { DeviceRates } from "../device/device-rate.ts"
import { FlushScheduler } from "../device/flush-scheduler.ts"
import { Goodbye } from "../device/goodbye.ts"
import { GracefulClose } from "../device/graceful-close.ts"
import { ConnectionIds, type WorkerProcess } from "../device/ids.ts"
import type { Listener, ListenerParts } from "../device/listener.ts"
import { BATCH_BYTES } from "../device/outgoing.ts"
import { RefusalLog } from "../device/refusal-log.ts"
import { Refusals } from "../device/refusals.ts"
import { WrittenIds } from "../device/remembered-ids.ts"
import type { ListenerTls } from "../device/tls-port.ts"
import type { TokenVerifier } from "../device/token-verifier.ts"
import { UnfinishedLines } from "../device/unfinished-lines.ts"
import { asError } from "../errors.ts"
import type { EventBus } from "../events.ts"
import type { RulesContent } from "../fleet/admission-rules.ts"
import { Fleet } from "../fleet/fleet.ts"
import type { FleetKeys } from "../fleet/fleet-keys.ts"
import { shardOf } from "../fleet/shards.ts"
import type { HttpServer } from "../http/server.ts"
import { LinePublisher } from "../lines/line-publisher.ts"
import { queueByDevice } from "../lines/partitions.ts"
import { LineTraces } from "../lines/traces.ts"
import { type Gauges, WorkerMetrics } from "../ops/metrics.ts"
import { chainNotAfterS } from "../ops/server-certificate.ts"
import { SpanExporter } from "../ops/span-exporter.ts"
import type { Clock } from "../tick-clock.ts"
import type { Snapshot, WorkerReport } from "./control.ts"
import { DRAIN_POLL_MS, drain } from "./drain.ts"
import { Evacuation } from "./evacuation.ts"
import { PacedClosing } from "./paced-closing.ts"

export type DeviceListener = Pick<
  Listener,
  | "port"
  | "refusing"
  | "admission"
  | "bestRatePerS"
  | "sweep"
  | "listen"
  | "renew"
  | "refuseAll"
  | "resume"
  | "stop"
>

/** The other workers send the gate and bans within this time after the broker is connected. */
const RULES_ANSWER_MS = 300
/** Without the broker devices are admitted all the same, after this time. */
const RULES_TIMEOUT_MS = 2_000
/** What a worker is taken to admit in a second until it has shown that it can admit more. */
const MIN_ADMITS_PER_S = 100

export interface WorkerParts {
  readonly config: Config
  readonly self: WorkerProcess
  readonly events: EventBus
  readonly counters: Counters
  readonly clock: Clock
  readonly keys: FleetKeys
  readonly commandIds: CommandIds
  /** The gate and bans at the start; null when they are not known. */
  readonly rules: readonly RulesContent[] | null
  readonly rulesChanged: (rules: readonly RulesContent[]) => void
  readonly broker: Broker
  /** How many device connections it takes. */
  readonly maxConnections: number
  /** Null unless devices identify themselves by tokens. */
  readonly tokenVerifier: TokenVerifier | null
  readonly makeListener: (parts: ListenerParts) => DeviceListener
  readonly serveHttp: (worker: Worker) => Promise<HttpServer>
}

export class Worker {
  readonly #parts: WorkerParts
  readonly fleet: Fleet
  readonly commands: Commands
  readonly #broadcasts: BroadcastConsumer
  readonly #lines: LinePublisher
  /** Null unless lines are traced. */
  readonly #tracing: { readonly traces: LineTraces; readonly spans: SpanExporter } | null = null
  readonly #backpressure: Backpressure
  readonly #unfinishedLines: UnfinishedLines
  readonly #connections: Connections
  readonly #gracefulClose: GracefulClose
  readonly #authenticator: Authenticator
  readonly #listener: DeviceListener
  readonly #refusals = new Refusals()
  readonly #refusalLog: RefusalLog
  readonly #history = new ConnectionHistory()
  readonly #brokerWatch: BrokerWatch
  readonly #metrics: WorkerMetrics
  #http: HttpServer | null = null
  /** When the certificate that devices get expires, seconds since 1970; null before it listens. */
  #certificateNotAfterS: number | null = null
  #sweptAtMs = Number.POSITIVE_INFINITY
  /** Until the gate and bans are known, handshakes wait. */
  #rulesKnownAtMs: number
  #drained: Promise<"done" | "cut_short"> | null = null
  /** Not null while it takes no devices: on request, or because it stops. */
  #evacuating: Evacuation | null = null
  #isStopped = false

  constructor(parts: WorkerParts) {
    const { config, self, events, counters, clock, keys, broker, tokenVerifier } = parts
    const notice = (message: string) => events.emit("notice", { message })
    this.#parts = parts
    this.#rulesKnownAtMs = parts.rules === null ? clock.steadyMs() + RULES_TIMEOUT_MS : 0
    this.#connections = new Connections(config.device)
    this.#unfinishedLines = new UnfinishedLines(config.device)
    this.#refusalLog = new RefusalLog((line) => events.emit("refusals", line))
    this.#authenticator = new Authenticator({ ...config.device, tokenVerifier, nowMs: clock.nowMs })
    const { fromDeviceQueue, fromDevicePartitions } = config.broker
    const queueOf = queueByDevice(lineQueues(fromDeviceQueue, fromDevicePartitions))
    const { steadyMs } = clock
    if (config.traces !== null) {
      const { url, share } = config.traces
      const { worker } = self
      const spans = new SpanExporter({ url, worker, counters, steadyMs, warn: notice })
      this.#tracing = {
        spans,
        traces: new LineTraces({ share, queueOf, steadyMs, ended: spans.add }),
      }
    }
    this.#lines = new LinePublisher(broker, {
      queueOf,
      replyTo: workerQueue(self.worker),
      windowLines: config.broker.windowLines,
      windowBytes: config.broker.windowBytes,
      ...clock,
      counters,
      acknowledges: config.device.ack === "seq",
      traces: this.#tracing?.traces ?? null,
      relieved: () => this.#backpressure.roomAgain(),
    })
    this.#gracefulClose = new GracefulClose({
      taken: () => counters.linesConfirmed + this.#lines.count,
      confirmed: () => counters.linesConfirmed,
    })
    this.#backpressure = new Backpressure(
      config.device.maxHeldBytes,
      this.#lines.window,
      (suspended) => this.#suspend(suspended),
    )
    this.commands = new Commands(broker, {
      ...{ self, ...clock, counters, keys, commandIds: parts.commandIds },
      queues: config.broker,
      maxCommandBytes: config.broker.maxCommandBytes,
      framing: config.device.framing,
      maxLineBytes: config.device.maxLineBytes,
      maxReplyMs: config.device.maxReplyMs,
      sendTimeoutMs: config.http.sendTimeoutMs,
      find: (id) => this.#connections.find(id),
      locate: (deviceId, trusting, found) => this.fleet.locator.locate(deviceId, trusting, found),
      mayServe: (worker) => this.fleet.mayServe(worker),
      mayLive: (process) => this.fleet.mayLive(process),
      maxHoldMs: config.hold.maxHoldMs,
      keeperOf: (deviceId) => this.fleet.keeperOf(deviceId),
      hold: {
        ...config.hold,
        prefetch: heldPrefetch(config.broker.prefetch, config.fleetShards),
        maxOnTheWay: heldOnTheWay(config.broker.prefetch),
        shardOf: (deviceId) => shardOf(deviceId, config.fleetShards),
        claimOf: (deviceId) => this.fleet.claimOf(deviceId),
        heldElsewhere: () => this.fleet.heldElsewhere,
        locate: (deviceId, trusting, found) => this.#locate(deviceId, trusting, found),
        done: (connectionId) => this.fleet.tellHeld(connectionId, "held_done"),
        waits: (connectionId) => this.fleet.tellHeld(connectionId, "held_waits"),
      },
      fault: (error, where) => this.#fault(error, where),
    })
    this.fleet = new Fleet(broker, this.#connections, {
      ...{ self, ...clock, counters, keys, warn: notice, shards: config.fleetShards },
      settings: fleetSettings(config),
      ...{ refusals: this.#refusals, history: this.#history },
      keeping: this.commands.keeper,
      registrationAnswered: (_deviceId, connectionId, hasHeld) =>
        this.#connections.find(connectionId)?.heldAnswered(hasHeld),
      admitsPerS: () => this.#admitsPerS,
      flapping: config.device.flapping,
      rulesChanged: () => parts.rulesChanged(this.fleet.rules.all()),
      tapes: {
        lines: this.#lines,
        started: (tape) => events.emit("tape_started", { tape }),
        ended: (tape, reason) => events.emit("tape_ended", { tape, reason }),
      },
    })
    const { outboundMessages, outcomes } = this.commands
    this.#broadcasts = new BroadcastConsumer(this.fleet.broadcasts, outboundMessages, outcomes, {
      ...{ nowMs: clock.nowMs, counters, keys },
      framing: config.device.framing,
      maxLineBytes: config.device.maxLineBytes,
      isGatewayQueue: (queue) => isGatewayQueue(config.broker, queue),
      fault: (error, queue) => this.#fault(error, queue),
    })
    this.#brokerWatch = new BrokerWatch(broker, {
      ...{ counters, events, steadyMs: clock.exactMs, outboundMessages },
      confirmTimeoutMs: config.broker.confirmTimeoutMs,
      publishers: [this.#lines, outboundMessages, this.fleet.presence],
      fleetConfirmedAtMs: () => this.fleet.confirmedAtMs,
      ready: () => {
        const answeredAtMs = clock.steadyMs() + RULES_ANSWER_MS
        this.#rulesKnownAtMs = Math.min(this.#rulesKnownAtMs, answeredAtMs)
        this.fleet.connected()
        this.commands.keeper.connected()
      },
    })
    this.#listener = parts.makeListener({
      connections: this.#connections,
      context: this.#connectionContext(),
      ids: new ConnectionIds(self),
      authenticator: this.#authenticator,
      admitter: this.#admitter(),
      mayBegin: () => clock.steadyMs() >= this.#rulesKnownAtMs,
      // With a goodbye line devices learn after TLS when to come back.
      isShut: () => this.fleet.rules.isShut && config.device.goodbyeLine === "",
      hooks: {
        refused: (reason, detail, remoteAddress) => {
          counters.connectionsClosed[reason] += 1
          if (detail !== null) this.#refused(reason, detail, remoteAddress, null)
        },
        notice,
        fault: (error) => this.#fault(error, "listener"),
      },
    })
    for (const content of parts.rules ?? []) this.fleet.rules.heard(content)
    this.#metrics = new WorkerMetrics(counters, () => this.#gauges())
  }

  /** Rejects when a port can't be had or the certificate can't be used. */
  async start(tls: ListenerTls): Promise<{ devicePort: number; httpPort: number }> {
    // First, since it is the only step that takes time: a device that is let in is served at once.
    const http = await this.#parts.serveHttp(this)
    this.#http = http
    this.#startBroker()
    this.#listener.listen(tls)
    this.#certificateNotAfterS = chainNotAfterS(tls.certPem)
    return { devicePort: this.#listener.port, httpPort: http.port }
  }

  /** Shows devices a new certificate. One that can't be used is logged, and the old one stays. */
  renew(tls: ListenerTls): void {
    try {
      this.#listener.renew(tls)
      this.#certificateNotAfterS = chainNotAfterS(tls.certPem)
      this.#parts.events.emit("certificate_renewed", {})
    } catch (error) {
      this.#fault(asError(error), "certificate")
    }
  }

  /** Refuses the devices on this list from now on, and closes their connections. */
  deny(denylist: Denylist): void {
    this.#authenticator.denylist = denylist
    this.#connections.closeDenied(denylist)
  }

  report(): WorkerReport {
    return {
      worker: this.#parts.self.worker,
      pid: process.pid,
      state: this.#state,
      broker: this.#parts.broker.state,
      connections: this.#connections.count,
      drain: this.#evacuating && {
        closed: Math.max(0, this.#evacuating.connectionsAtStart - this.#connections.count),
        left: this.#connections.count,
        ends_at: this.#evacuating.startedAtMs + this.#parts.config.drainTimeoutMs,
      },
      consuming_paused: this.commands.unacknowledged.paused,
      refusing: this.#listener.refusing ?? (this.fleet.rules.isShut ? "gated" : null),
      admission: this.#listener.admission,
    }
  }

  async snapshot(): Promise<Snapshot> {
    return { report: this.report(), metrics: await this.#metrics.snapshot() }
  }

  /** To be called every `SWEEP_EVERY_MS` from its start on. */
  sweep(): void {
    if (this.#isStopped) return
    const { clock, broker, counters } = this.#parts
    const atMs = clock.exactMs()
    const sinceMs = atMs - this.#sweptAtMs
    // Not at the first call. A timer may also be early.
    if (sinceMs > 0) counters.eventLoopLag.observe(Math.max(0, sinceMs - SWEEP_EVERY_MS))
    const wasPaused = sinceMs > PAUSED_MS
    this.#sweptAtMs = atMs
    this.#listener.sweep(sinceMs - SWEEP_EVERY_MS)
    this.#broadcasts.sweep(atMs)
    this.commands.sweep(atMs, broker.state.kind === "away" ? 0 : Math.max(0, sinceMs))
    this.#connections.sweep(clock.nowMs(), atMs)
    this.#gracefulClose.sweep(atMs)
    this.#unfinishedLines.sweep(atMs, wasPaused)
    this.fleet.sweep(atMs)
    this.#refusalLog.sweep(atMs)
    this.#brokerWatch.sweep(atMs, wasPaused)
  }

  /** Stops without losing what was accepted; "cut_short" when the time was over first. */
  drain(): Promise<"done" | "cut_short"> {
    this.#drained ??= this.#drain()
    return this.#drained
  }

  /**
   * Takes no more devices and closes those it has, evenly over most of DRAIN_TIMEOUT_MS; commands
   * and HTTP go on. False takes devices again.
   */
  empty(on: boolean): void {
    if (this.#drained !== null || on === (this.#evacuating !== null)) return
    if (on) void this.#empty()
    else {
      this.#evacuating = null
      this.#listener.resume()
    }
  }

  async #empty(): Promise<void> {
    const { config, clock } = this.#parts
    this.#listener.refuseAll()
    const evacuation = this.#evacuate()
    const pace = new PacedClosing(this.#connections.count, config.drainTimeoutMs, clock.exactMs())
    while (this.#evacuating === evacuation) {
      if (evacuation.closeSome(pace.due(clock.exactMs())) === 0) return
      await Bun.sleep(DRAIN_POLL_MS)
    }
  }

  get #state(): WorkerReport["state"] {
    if (this.#drained !== null) return "draining"
    if (this.#evacuating === null) return "serving"
    return this.#connections.count > 0 ? "draining" : "drained"
  }

  get #admitsPerS(): number {
    if (this.#state !== "serving" || this.#listener.refusing !== null) return 0
    return this.#admissionRatePerS
  }

  /** Devices that this worker can admit in a second while it takes devices. */
  get #admissionRatePerS(): number {
    const { perS } = this.#parts.config.device.admission
    const measured = Math.max(MIN_ADMITS_PER_S, this.#listener.bestRatePerS)
    return perS === 0 ? measured : Math.min(perS, measured)
  }

  #evacuate(): Evacuation {
    const { exactMs, nowMs } = this.#parts.clock
    this.#evacuating = new Evacuation(this.#connections, this.#gracefulClose, {
      reason: "drained",
      startedAtMs: nowMs(),
      steadyMs: exactMs,
    })
    return this.#evacuating
  }

  async #drain(): Promise<"done" | "cut_short"> {
    const { config, clock, broker, events } = this.#parts
    let evacuation: Evacuation
    const result = await drain(
      {
        acceptNone: () => {
          this.#listener.stop()
          evacuation = this.#evacuate()
        },
        closeSome: (max) => evacuation.closeSome(max),
        closeAll: () => evacuation.closeAll(),
        stopServing: async () => {
          this.commands.sender.stop()
          this.#broadcasts.stop()
          this.fleet.leave()
          this.commands.leave()
          await broker.stopConsuming()
        },
        confirmed: () => this.#lines.count === 0 && this.#backpressure.waitingCount === 0,
        settled: () => this.#connections.count === 0 && this.commands.settled && this.fleet.settled,
        enter: (phase) => {
          const unconfirmedLines = this.#lines.count
          const connections = this.#connections.count
          events.emit("drain", { phase, unconfirmedLines, connections })
        },
        nowMs: clock.exactMs,
        sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
      },
      config.drainTimeoutMs,
    )
    await Promise.all([this.#http?.stop(), this.#tracing?.spans.stop()])
    this.#isStopped = true
    this.#lines.stop()
    this.commands.stop()
    this.fleet.stop()
    await broker.close()
    return result
  }

  #startBroker(): void {
    const { config, self, broker } = this.#parts
    const { consumer, unacknowledged } = this.commands
    const names = { ...config.broker, shards: config.fleetShards }
    const setup = brokerSetup(names, self, {
      ...{ consumer, unacknowledged, receipts: this.commands, fleet: this.fleet },
      fault: (error, queue) => this.#fault(error, queue),
    })
    const queue = broadcastsQueue(config.broker)
    broker.subscribe(queue, {
      queue: queue.name,
      prefetch: 1,
      deliver: (delivery) => this.#broadcasts.deliver(delivery),
    })
    broker.start(setup, this.#brokerWatch)
  }

  #connectionContext(): ConnectionContext {
    const { config, counters, clock, events } = this.#parts
    const { maxAgeMs } = config.device
    const rates = new DeviceRates(config.device)
    return {
      limits: config.device,
      counters,
      backpressure: this.#backpressure,
      unfinishedLines: this.#unfinishedLines,
      writtenIds: new WrittenIds(),
      scratch: new Uint8Array(BATCH_BYTES),
      ...clock,
      lines: this.#lines,
      flushSoon: new FlushScheduler().soon,
      commandsWait: (connection) => this.#connections.commandsWait(connection),
      repliesWait: (connection) => this.#connections.repliesWait(connection),
      rateOf: (deviceId, isNamed) => rates.of(deviceId, isNamed),
      rateReached: (connection) => this.#connections.rateReached(connection),
      // 20 % more or less, so that devices that came together do not go together.
      lifetimeMs: () =>
        maxAgeMs === 0 ? Number.POSITIVE_INFINITY : maxAgeMs * (0.8 + 0.4 * Math.random()),
      aged: (connection) => this.#gracefulClose.begin(connection, "aged", clock.steadyMs()),
      goodbye: this.#goodbye(),
      closed: (connection, reason, details) => {
        this.#connections.leave(connection)
        this.fleet.closed(connection, reason)
        counters.connectionsClosed[reason] += 1
        this.#remember(connection, reason, details)
        events.emit("connection_closed", { connection, reason })
      },
    }
  }

  /** The connection of a device, on this worker or on another one. */
  #locate(deviceId: string, trusting: boolean, found: (connectionId: string | null) => void): void {
    const here = this.#connections.find(deviceId)
    if (here !== undefined) {
      found(here.id)
      return
    }
    this.fleet.locator.locate(deviceId, trusting, (located) => {
      const meanwhile = this.#connections.find(deviceId)
      found(meanwhile?.id ?? (located.kind === "worker" ? located.connectionId : null))
    })
  }

  #goodbye(): Goodbye | null {
    const { config, clock } = this.#parts
    const { goodbyeLine } = config.device
    if (goodbyeLine === "") return null
    return new Goodbye({
      template: goodbyeLine,
      // The other workers of this instance may close connections too. Without other instances the
      // devices come back to this one.
      returnsPerS: () => this.fleet.othersAdmitPerS / config.workers || this.#admissionRatePerS,
      steadyMs: clock.steadyMs,
      random: Math.random,
    })
  }

  #admitter(): Admitter {
    const { counters, clock, events } = this.#parts
    return new Admitter(this.#connections, {
      nowMs: clock.nowMs,
      counters,
      refusalOf: (deviceId, isNamed) => this.fleet.rules.refusalOf(deviceId, isNamed),
      epochElsewhere: (deviceId) => this.fleet.epochElsewhere(deviceId),
      admitted: (connection) => {
        const { deviceId, connectionId } = connection.endpoint?.recipient ?? {}
        // Its answer may come within `admitted`. Without the broker nothing is held.
        if (deviceId !== connectionId && this.fleet.isConnected) connection.holdBack()
        this.fleet.admitted(connection)
        events.emit("connection_admitted", { connection })
      },
    })
  }

  /** Keeps the end of a connection for `/devices/:id/connections`, or for `/refusals`. */
  #remember(
    { endpoint, remoteAddress: address }: Connection,
    reason: CloseReason,
    { detail = "", deviceId = null }: CloseDetails,
  ): void {
    const { clock } = this.#parts
    if (endpoint === null) {
      this.#refused(reason, detail, address, deviceId)
      return
    }
    const { recipient } = endpoint
    this.#history.add({
      deviceId: recipient.deviceId,
      connectionId: recipient.connectionId,
      address,
      connectedAt: recipient.epoch,
      endedAt: clock.nowMs(),
      reason,
    })
    // A reload of the CAs, which refuses many devices at a time.
    if (reason !== "refused") return
    const ended = { reason, detail, address, deviceId: recipient.deviceId }
    this.#refusalLog.add(ended, clock.steadyMs())
  }

  #refused(reason: CloseReason, detail: string, address: string, deviceId: string | null): void {
    const { clock, events } = this.#parts
    const refusal = { at: clock.nowMs(), address, reason, detail, deviceId }
    this.#refusals.add(refusal)
    this.#refusalLog.add(refusal, clock.steadyMs())
    events.emit("connection_refused", { refusal })
  }

  /** The lines that were read and wait have filled their bound, or half of it is free again. */
  #suspend(suspended: boolean): void {
    const { heldBytes } = this.#backpressure
    this.#parts.events.emit(suspended ? "reading_suspended" : "reading_resumed", { heldBytes })
    this.#connections.forEach((connection) => {
      if (suspended) connection.pause("memory")
      else connection.resume("memory")
    })
  }

  #gauges(): Gauges {
    return {
      connections: this.#connections.count,
      connectionsLimit: this.#parts.maxConnections,
      certificateNotAfterS: this.#certificateNotAfterS,
      waiting: this.#listener.admission.waiting,
      windowLines: this.#lines.count,
      windowBytes: this.#lines.bytes,
      heldBytes: this.#backpressure.heldBytes,
      partialLineBytes: this.#unfinishedLines.bytes,
      waitingForRoom: this.#backpressure.waitingCount,
      unacknowledgedCommands: this.commands.unacknowledged.count,
      heldCommands: this.#connections.heldCommands(),
      keptCommands: this.commands.keeper.count,
      outboundMessages: this.commands.outboundMessages.count,
      brokerReady: this.#parts.broker.state.kind === "ready",
      ...this.fleet.gauges(),
    }
  }

  #fault(error: Error, where: string): void {
    this.#parts.counters.faults += 1
    this.#parts.events.emit("fault", { error, where })
  }
}
