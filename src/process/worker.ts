/**
 * A worker: puts listener, connections, publisher, consumers and the HTTP sidecar together. Complete by
 * itself; `worker-process.ts` ties it to a process and, where there is one, to a supervisor.
 *
 *   devices ─► listener ─► connection ─► lines ─► broker
 *   broker ─► consumer ─► connection ─► devices        HTTP ─► sender ─► connection or broker
 *                  └─► fleet ◄─► the other workers ◄──────────────┘
 *
 * Decides nothing about lines or commands. Starts in the order HTTP, broker, listener, so that nothing waits once devices are let in.
 * Stops in the order listener, HTTP, broker.
 */

import { AmqpBroker } from "../amqp/broker.ts"
import type { Broker, BrokerState } from "../broker/broker.ts"
import { EmbeddedBroker } from "../broker/embedded.ts"
import { OutboundMessages } from "../broker/outbound-messages.ts"
import { silentSinceMs } from "../broker/publisher.ts"
import { brokerSetup } from "../broker/setup.ts"
import { fleetQueue, isGatewayQueue, workerQueue } from "../broker/topology.ts"
import { Consumer } from "../commands/consumer.ts"
import { CommandIds } from "../commands/forwarding.ts"
import { HttpSender } from "../commands/http-sender.ts"
import { Outcomes } from "../commands/outcomes.ts"
import { CommandRouter } from "../commands/router.ts"
import { UnacknowledgedCommands } from "../commands/unacknowledged-commands.ts"
import { type Config, risks } from "../config/config.ts"
import type { Counters } from "../counters.ts"
import { Admitter } from "../device/admitter.ts"
import { Authenticator } from "../device/authenticator.ts"
import { Backpressure } from "../device/backpressure.ts"
import type { ConnectionContext } from "../device/connection.ts"
import { Connections, PAUSED_MS, SWEEP_EVERY_MS } from "../device/connections.ts"
import type { Denylist } from "../device/denylist.ts"
import { FlushScheduler } from "../device/flush-scheduler.ts"
import { ConnectionIds, incarnation, type WorkerProcess, workerId } from "../device/ids.ts"
import { Listener, type ListenerTls } from "../device/listener.ts"
import { BATCH_BYTES } from "../device/outgoing.ts"
import { RefusalSummary } from "../device/refusal-summary.ts"
import { UnfinishedLines } from "../device/unfinished-lines.ts"
import type { EventBus } from "../events.ts"
import { Fleet } from "../fleet/fleet.ts"
import { FleetKeys } from "../fleet/fleet-keys.ts"
import { app } from "../http/app.ts"
import { type HttpServer, serve } from "../http/server.ts"
import { acknowledgement } from "../lines/acknowledgement.ts"
import { LinePublisher } from "../lines/line-publisher.ts"
import { type Gauges, summed, WorkerMetrics } from "../ops/metrics.ts"
import { connectionsUnder, httpConnectionsUnder, openFilesLimit } from "../ops/open-files.ts"
import { TickClock } from "../tick-clock.ts"
import { VERSION } from "../version.ts"
import type { Snapshot, WorkerReport } from "./control.ts"
import { drain } from "./drain.ts"

export interface WorkerOptions {
  readonly config: Config
  readonly slot: number
  /** The ports to share with the other workers; 0 takes a free one. */
  readonly devicePort: number
  readonly httpPort: number
  readonly events: EventBus
  readonly counters: Counters
  /** The snapshots of all processes of the instance, this worker's included; null when they cannot be had. */
  readonly gather: (own: () => Promise<Snapshot>) => Promise<readonly Snapshot[] | null>
}

/** 64 bits, in letters and digits: it is on the wire with each forwarded command. */
function randomPart(): string {
  return (crypto.getRandomValues(new BigUint64Array(1))[0] ?? 0n).toString(36)
}

/** Never jumps, as the clock may that others read too. */
const steadyMs = () => performance.now()

export class Worker {
  readonly id: string
  readonly #self: WorkerProcess
  readonly counters: Counters
  readonly #options: WorkerOptions
  readonly #events: EventBus
  readonly #broker: Broker
  readonly #lines: LinePublisher
  readonly #outboundMessages: OutboundMessages
  readonly #unacknowledged: UnacknowledgedCommands
  readonly #outcomes: Outcomes
  readonly #consumer: Consumer
  readonly #sender: HttpSender
  readonly #fleet: Fleet
  readonly #backpressure: Backpressure
  readonly #unfinishedLines: UnfinishedLines
  readonly #connections: Connections
  readonly #authenticator: Authenticator
  readonly #listener: Listener
  readonly #refusals = new RefusalSummary((message) => this.#events.emit("notice", { message }))
  readonly #metrics: WorkerMetrics
  readonly #maxConnections: number
  readonly #maxHttpConnections: number
  readonly #startedAtMs = Date.now()
  #http: HttpServer | null = null
  #sweeping: ReturnType<typeof setInterval> | null = null
  #sweptAtMs = Number.POSITIVE_INFINITY
  #state: "serving" | "draining" = "serving"
  /**
   * Since when the broker takes messages and we read its answers: what waited through an alarm, or a pause of this
   * process, is not overdue at once.
   */
  #readySinceMs = 0

  constructor(options: WorkerOptions) {
    const { config, events, counters } = options
    const clock = new TickClock()
    const keys = new FleetKeys(config.fleetSecret ?? crypto.randomUUID())
    this.#options = options
    this.#events = events
    this.counters = counters
    this.id = workerId(config.instanceId, options.slot)
    const limit = openFilesLimit()
    this.#maxHttpConnections = httpConnectionsUnder(limit, config.http.maxConnections)
    this.#maxConnections =
      config.device.maxConnections ?? connectionsUnder(limit, this.#maxHttpConnections)
    this.#broker =
      config.amqp === null
        ? new EmbeddedBroker()
        : new AmqpBroker(config.amqp.urls, `owsla ${this.id}`, config.amqp.ca)

    this.#connections = new Connections(config.device)
    this.#self = { worker: this.id, incarnation: incarnation(Date.now(), Math.random()) }
    this.#lines = new LinePublisher(this.#broker, {
      queue: config.broker.fromDeviceQueue,
      replyTo: workerQueue(this.id),
      windowLines: config.broker.windowLines,
      windowBytes: config.broker.windowBytes,
      ...clock,
      counters,
      confirmed: ({ connection, seq }) => {
        if (config.device.ack === "seq") connection.offer(acknowledgement(connection, seq))
      },
      relieved: () => this.#backpressure.roomAgain(),
    })
    this.#outboundMessages = new OutboundMessages(this.#broker, counters, clock.steadyMs)
    const router = new CommandRouter(this.#outboundMessages, {
      workerId: this.id,
      nowMs: clock.nowMs,
      counters,
      find: (id) => this.#connections.find(id),
      locate: (deviceId, trusting, found) => this.#fleet.locator.locate(deviceId, trusting, found),
      commandIds: new CommandIds(this.#self, randomPart()),
      commandKey: keys.commandKey,
    })
    this.#unacknowledged = new UnacknowledgedCommands(
      this.#broker,
      config.broker.maxCommandBytes,
      counters,
    )
    const { undeliveredQueue } = config.broker
    this.#outcomes = new Outcomes(
      this.#outboundMessages,
      this.#unacknowledged,
      counters,
      undeliveredQueue,
      clock.nowMs,
    )
    this.#consumer = new Consumer(router, this.#outcomes, this.#unacknowledged, {
      workerId: this.id,
      nowMs: clock.nowMs,
      counters,
      keys,
      maxLineBytes: config.device.maxLineBytes,
      mayServe: (worker) => this.#fleet.mayServe(worker),
      isGatewayQueue: (queue) => isGatewayQueue(config.broker, queue),
      fault: (error, queue) => this.#fault(error, queue),
    })
    this.#sender = new HttpSender(this.#broker, this.#outboundMessages, router, this.#outcomes, {
      nowMs: clock.nowMs,
      counters,
      replyQueue: fleetQueue(this.#self),
      timeoutMs: config.http.sendTimeoutMs,
    })
    this.#fleet = new Fleet(this.#broker, this.#connections, {
      self: this.#self,
      ...clock,
      counters,
      keys,
      warn: (message) => events.emit("notice", { message }),
    })
    this.#backpressure = new Backpressure(
      config.device.maxHeldBytes,
      this.#lines.window,
      (suspended) => this.#suspend(suspended),
    )
    this.#unfinishedLines = new UnfinishedLines(config.device)
    const context: ConnectionContext = {
      limits: config.device,
      counters,
      backpressure: this.#backpressure,
      unfinishedLines: this.#unfinishedLines,
      scratch: new Uint8Array(BATCH_BYTES),
      ...clock,
      takeLine: (connection, seq, line) => this.#lines.take(connection, seq, line),
      flushSoon: new FlushScheduler().soon,
      commandsWait: (connection) => this.#connections.commandsWait(connection),
      closed: (connection, reason) => {
        this.#connections.leave(connection)
        this.#fleet.closed(connection, reason)
        counters.connectionsClosed[reason] += 1
        events.emit("connection_closed", { connection, reason })
      },
    }
    this.#authenticator = new Authenticator({ ...config.device, nowMs: clock.nowMs })
    const admitter = new Admitter(this.#connections, {
      nowMs: clock.nowMs,
      counters,
      epochElsewhere: (deviceId) => this.#fleet.epochElsewhere(deviceId),
      admitted: (connection) => {
        this.#fleet.admitted(connection)
        events.emit("connection_admitted", { connection })
      },
      rejected: (connection, reason, detail, remoteAddress) => {
        events.emit("connection_unidentified", { connection, detail })
        this.#refusals.add(reason, detail, remoteAddress, steadyMs())
      },
    })
    this.#listener = new Listener(
      {
        host: config.device.host,
        port: options.devicePort,
        backlog: config.device.backlog,
        admission: { maxConnections: this.#maxConnections, ...config.device.admission },
      },
      this.#connections,
      context,
      new ConnectionIds(this.#self),
      this.#authenticator,
      admitter,
      {
        refused: (reason) => {
          counters.connectionsClosed[reason] += 1
          events.emit("connection_refused", { reason })
        },
        notice: (message) => events.emit("notice", { message }),
        fault: (error) => this.#fault(error, "listener"),
      },
    )
    this.#metrics = new WorkerMetrics(counters, () => this.#gauges())
  }

  /** Rejects when a port can't be had or the certificate can't be used. */
  async start(tls: ListenerTls): Promise<{ devicePort: number; httpPort: number }> {
    // First, since it is the only step that takes time: a device that is let in is served at once.
    this.#http = await this.#serveHttp()
    this.#startBroker()
    this.#listener.listen(tls)
    this.#sweeping = setInterval(() => this.#sweep(), SWEEP_EVERY_MS)
    const ports = { devicePort: this.#listener.port, httpPort: this.#http.port }
    // Before "listening", so that a program that waits for that event has the warnings.
    for (const message of risks(this.#options.config)) this.#events.emit("notice", { message })
    this.#events.emit("listening", { ...ports, maxConnections: this.#maxConnections })
    return ports
  }

  /** Shows devices a new certificate. One that can't be used is logged, and the old one stays. */
  renew(tls: ListenerTls): void {
    try {
      this.#listener.renew(tls)
      this.#events.emit("certificate_renewed", {})
    } catch (error) {
      this.#fault(error instanceof Error ? error : new Error(String(error)), "certificate")
    }
  }

  /** Refuses the devices on this list from now on, and closes their connections. */
  deny(denylist: Denylist): void {
    this.#authenticator.denylist = denylist
    this.#connections.closeDenied(denylist)
  }

  report(): WorkerReport {
    return {
      worker: this.id,
      pid: process.pid,
      state: this.#state,
      broker: this.#broker.state,
      connections: this.#connections.count,
      consuming_paused: this.#unacknowledged.paused,
      refusing: this.#listener.refusing,
      admission: this.#listener.admission,
    }
  }

  async snapshot(): Promise<Snapshot> {
    return { report: this.report(), metrics: await this.#metrics.snapshot() }
  }

  /** Stops without losing what was accepted. Resolves with the process's exit status. */
  async drain(): Promise<0 | 1> {
    if (this.#state === "draining") return 0
    this.#state = "draining"
    const result = await drain(
      {
        acceptNone: async () => {
          this.#listener.stop()
          this.#sender.stop()
          this.#fleet.leave()
          this.#connections.forEach((connection) => {
            if (connection.state === "open") connection.pause("drain")
            else connection.close("drained")
          })
          await this.#broker.stopConsuming()
        },
        confirmed: () => this.#lines.count === 0 && this.#backpressure.waitingCount === 0,
        closeSome: (most) => this.#connections.closeSome(most, "drained"),
        settled: () =>
          this.#connections.count === 0 &&
          this.#unacknowledged.count === 0 &&
          this.#sender.pendingCount === 0 &&
          this.#outboundMessages.count === 0 &&
          this.#outcomes.late.count === 0 &&
          this.#fleet.told,
        enter: (phase) => {
          const unconfirmedLines = this.#lines.count
          const connections = this.#connections.count
          this.#events.emit("drain", { phase, unconfirmedLines, connections })
        },
        nowMs: steadyMs,
        sleep: Bun.sleep,
      },
      this.#options.config.drainTimeoutMs,
    )
    await this.#http?.stop()
    if (this.#sweeping !== null) clearInterval(this.#sweeping)
    this.#lines.stop()
    this.#outboundMessages.stop()
    this.#fleet.stop()
    await this.#broker.close()
    return result === "done" ? 0 : 1
  }

  #startBroker(): void {
    let before: BrokerState = { kind: "away", reason: "" }
    const setup = brokerSetup(this.#options.config.broker, this.#self, {
      command: (delivery, prefetch) => this.#consumer.deliver(delivery, prefetch),
      deadLetter: (delivery, prefetch) => this.#consumer.deliverDeadLetter(delivery, prefetch),
      commandsLost: () => this.#unacknowledged.lost(),
      fleetMessage: (delivery) => this.#fleet.deliver(delivery),
      receipt: (delivery) => this.#sender.deliverReceipt(delivery),
      fault: (error, queue) => this.#fault(error, queue),
    })
    this.#broker.start(setup, {
      stateChanged: (state) => {
        const up = state.kind === "ready" || state.kind === "blocked"
        if (up && before.kind === "away") this.counters.brokerConnects += 1
        // After an alarm too: announcements during it were dropped.
        if (state.kind === "ready" && before.kind !== "ready") this.#fleet.connected()
        if (state.kind === "away" && before.kind !== "away") this.counters.brokerLosses += 1
        // A try that fails for the same reason as the last one is not reported again.
        if (!Bun.deepEquals(state, before)) this.#events.emit("broker_state", { state })
        if (state.kind === "ready" && before.kind !== "ready") this.#readySinceMs = steadyMs()
        before = state
      },
      warning: (message) => this.#events.emit("broker_warning", { message }),
    })
  }

  #serveHttp(): Promise<HttpServer> {
    const { config, httpPort, gather } = this.#options
    const own = () => this.snapshot()
    const { fromDeviceQueue } = config.broker
    const broker = this.#broker
    const routes = app({
      tokens: config.http.tokens,
      readTokens: config.http.readTokens,
      maxLineBytes: config.device.maxLineBytes,
      version: VERSION,
      startedAtMs: this.#startedAtMs,
      nowMs: Date.now,
      counters: this.counters,
      report: () => this.report(),
      reports: async () =>
        (await gather(own))?.flatMap(({ report }) => report ?? []) ?? [this.report()],
      metricsText: async () => {
        const snapshots = await gather(own)
        return snapshots && summed(snapshots.map(({ metrics }) => metrics))
      },
      send: (request, caller) => this.#sender.send(request, caller),
      fleetQuery: this.#fleet.fleetQuery,
      messages:
        broker instanceof EmbeddedBroker
          ? { tap: (tap) => broker.tap(fromDeviceQueue, tap) }
          : null,
      fault: (error) => this.#fault(error, "http"),
    })
    return serve(
      routes,
      {
        ...config.http,
        maxConnections: this.#maxHttpConnections,
        closed: (reason) => {
          this.counters.httpConnectionsClosed[reason] += 1
        },
        fault: (error) => this.#fault(error, "http"),
      },
      httpPort,
    )
  }

  #sweep(): void {
    const atMs = steadyMs()
    const sinceMs = atMs - this.#sweptAtMs
    this.#listener.sweep(sinceMs - SWEEP_EVERY_MS)
    this.#sweptAtMs = atMs
    if (sinceMs > PAUSED_MS) this.#readySinceMs = atMs
    if (this.#broker.state.kind !== "away") this.#unacknowledged.pass(Math.max(0, sinceMs))
    this.#consumer.sweep()
    this.#outcomes.late.sweep(atMs)
    this.#connections.sweep(Date.now(), atMs)
    this.#unfinishedLines.sweep(atMs, sinceMs > PAUSED_MS)
    this.#fleet.sweep(atMs)
    this.#refusals.sweep(atMs)
    // Away, it may be the other connection alone that is lost, and this one as deaf.
    if (this.#broker.state.kind === "blocked" || this.#broker.state.kind === "closed") return
    const { confirmTimeoutMs } = this.#options.config.broker
    const sentByMs = atMs - confirmTimeoutMs
    if (sentByMs >= this.#readySinceMs)
      this.#outboundMessages.giveUp(sentByMs, this.#fleet.confirmedAtMs)
    const silentMs = silentSinceMs([this.#lines, this.#outboundMessages, this.#fleet.presence])
    const unconfirmedMs = Math.round(atMs - Math.max(silentMs, this.#readySinceMs))
    if (unconfirmedMs < confirmTimeoutMs) return
    this.#events.emit("broker_mute", { unconfirmedMs })
    this.#broker.reset(`nothing confirmed for ${unconfirmedMs} ms`)
  }

  #suspend(suspended: boolean): void {
    const { heldBytes } = this.#backpressure
    this.#events.emit(suspended ? "reading_suspended" : "reading_resumed", { heldBytes })
    this.#connections.forEach((connection) => {
      if (suspended) connection.pause("memory")
      else connection.resume("memory")
    })
  }

  #gauges(): Gauges {
    return {
      connections: this.#connections.count,
      waiting: this.#listener.admission.waiting,
      windowLines: this.#lines.count,
      windowBytes: this.#lines.bytes,
      heldBytes: this.#backpressure.heldBytes,
      partialLineBytes: this.#unfinishedLines.bytes,
      waitingForRoom: this.#backpressure.waitingCount,
      unacknowledgedCommands: this.#unacknowledged.count,
      heldCommands: this.#connections.heldCommands(),
      outboundMessages: this.#outboundMessages.count,
      brokerReady: this.#broker.state.kind === "ready",
      ...this.#fleet.gauges(),
    }
  }

  #fault(error: Error, where: string): void {
    this.counters.faults += 1
    this.#events.emit("fault", { error, where })
  }
}
