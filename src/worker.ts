/**
 * A worker: puts listener, connections, publisher, consumers and the HTTP sidecar together. Complete by
 * itself; `worker-process.ts` ties it to a process and, where there is one, to a supervisor.
 *
 *   devices ─► listener ─► connection ─► lines ─► broker
 *   broker ─► consumer ─► connection ─► devices        HTTP ─► sender ─► connection or broker
 *
 * Decides nothing about lines or commands. Starts in the order broker, listener, HTTP, and stops in
 * the reverse of it.
 */

import type { Server } from "bun"
import { AmqpBroker } from "./broker/amqp.ts"
import type { Broker, BrokerState, Delivery, Subscription } from "./broker/broker.ts"
import { Consumer } from "./broker/consumer.ts"
import { EmbeddedBroker } from "./broker/embedded.ts"
import { Lines } from "./broker/lines.ts"
import { Posts } from "./broker/posts.ts"
import { Sender } from "./broker/sender.ts"
import { DEAD_LETTERS, queueDeclarations, replyQueue, workerQueue } from "./broker/topology.ts"
import type { Config } from "./config.ts"
import { isLoopback } from "./config.ts"
import type { Snapshot, WorkerReport } from "./control.ts"
import type { Counters } from "./counters.ts"
import { acknowledgement } from "./device/acknowledgement.ts"
import { Backpressure } from "./device/backpressure.ts"
import type { Connection, ConnectionContext } from "./device/connection.ts"
import { Connections, SWEEP_EVERY_MS } from "./device/connections.ts"
import { ConnectionIds, incarnation, workerId } from "./device/ids.ts"
import { Listener } from "./device/listener.ts"
import { BATCH_BYTES } from "./device/outgoing.ts"
import { drain } from "./drain.ts"
import type { EventBus } from "./events.ts"
import { app } from "./http/app.ts"
import type { PemPair } from "./ops/certificates.ts"
import { type Gauges, summed, WorkerMetrics } from "./ops/metrics.ts"
import { connectionsUnder, openFilesLimit } from "./ops/open-files.ts"
import { VERSION } from "./version.ts"

export interface WorkerOptions {
  readonly config: Config
  readonly slot: number
  /** The ports to share with the other workers; 0 takes a free one. */
  readonly devicePort: number
  readonly httpPort: number
  readonly certificate: PemPair
  readonly events: EventBus
  readonly counters: Counters
  /** The snapshots of all processes of the instance, this worker's included. */
  readonly gather: (own: () => Promise<Snapshot>) => Promise<readonly Snapshot[]>
}

export class Worker {
  readonly id: string
  readonly counters: Counters
  readonly #options: WorkerOptions
  readonly #events: EventBus
  readonly #broker: Broker
  readonly #lines: Lines
  readonly #posts: Posts
  readonly #consumer: Consumer
  readonly #sender: Sender
  readonly #backpressure: Backpressure
  readonly #connections: Connections
  readonly #listener: Listener
  readonly #metrics: WorkerMetrics
  readonly #maxConnections: number
  readonly #incarnation = incarnation(Date.now(), Math.random())
  readonly #flushing = new Set<Connection>()
  readonly #startedAtMs = Date.now()
  #http: Server<undefined> | null = null
  #sweeping: ReturnType<typeof setInterval> | null = null
  #state: "serving" | "draining" = "serving"
  /** Since when the broker takes messages: what waited through an alarm is not overdue at once. */
  #readySinceMs = 0

  constructor(options: WorkerOptions) {
    const { config, events } = options
    const nowMs = Date.now
    this.#options = options
    this.#events = events
    this.counters = options.counters
    this.id = workerId(config.instanceId, options.slot)
    this.#maxConnections = config.device.maxConnections ?? connectionsUnder(openFilesLimit())
    this.#broker =
      config.amqpUrl === null
        ? new EmbeddedBroker()
        : new AmqpBroker(config.amqpUrl, `owsla ${this.id}`)

    const { counters } = options
    this.#connections = new Connections(config.device)
    const find = (id: string) => this.#connections.find(id)
    this.#lines = new Lines(this.#broker, {
      queue: config.broker.fromDeviceQueue,
      replyTo: workerQueue(this.id),
      windowLines: config.broker.windowLines,
      windowBytes: config.broker.windowBytes,
      nowMs,
      counters,
      confirmed: ({ connection, seq }) => {
        if (config.device.ack === "seq") connection.offer(acknowledgement(connection, seq))
      },
      relieved: () => this.#backpressure.roomAgain(),
    })
    this.#posts = new Posts(this.#broker, counters, nowMs)
    this.#consumer = new Consumer(this.#broker, this.#posts, {
      workerId: this.id,
      maxLineBytes: config.device.maxLineBytes,
      maxHeldBytes: config.broker.maxCommandBytes,
      undeliveredQueue: config.broker.undeliveredQueue,
      nowMs,
      counters,
      find,
    })
    this.#sender = new Sender(this.#broker, this.#posts, this.#consumer.outcomes, {
      workerId: this.id,
      replyQueue: replyQueue(this.id, this.#incarnation),
      timeoutMs: config.http.sendTimeoutMs,
      nowMs,
      counters,
      find,
    })
    this.#backpressure = new Backpressure(
      config.device.maxHeldBytes,
      () => this.#lines.hasRoom,
      (suspended) => this.#suspend(suspended),
    )
    const context: ConnectionContext = {
      limits: config.device,
      counters,
      backpressure: this.#backpressure,
      scratch: new Uint8Array(BATCH_BYTES),
      nowMs,
      takeLine: (connection, seq, line) => this.#lines.take(connection, seq, line),
      flushSoon: (connection) => this.#flushSoon(connection),
      commandsWait: (connection) => this.#connections.commandsWait(connection),
      closed: (connection, reason) => {
        counters.connectionsClosed[reason] += 1
        events.emit("connection_closed", { connection, reason })
      },
    }
    this.#listener = new Listener(
      {
        host: config.device.host,
        port: options.devicePort,
        certificatePem: options.certificate.certPem,
        keyPem: options.certificate.keyPem,
        maxConnections: this.#maxConnections,
      },
      this.#connections,
      context,
      new ConnectionIds(this.id, this.#incarnation),
      {
        identify: (connection) => connection.id,
        admitted: (connection) => events.emit("connection_admitted", { connection }),
        refused: (reason) => {
          counters.connectionsClosed[reason] += 1
          events.emit("connection_refused", { reason })
        },
        fault: (error) => this.#fault(error, "listener"),
      },
    )
    this.#metrics = new WorkerMetrics(counters, () => this.#gauges())
  }

  /** @throws when a port can't be had or the certificate can't be used. */
  start(): { devicePort: number; httpPort: number } {
    const { config } = this.#options
    this.#warn()
    this.#startBroker()
    this.#listener.listen()
    this.#http = this.#serveHttp()
    this.#sweeping = setInterval(() => this.#sweep(), SWEEP_EVERY_MS)
    const ports = { devicePort: this.#listener.port, httpPort: this.#http.port ?? 0 }
    this.#events.emit("listening", { ...ports, maxConnections: this.#maxConnections })
    if (config.amqpUrl === null) {
      const message = "embedded broker: nothing is kept, for a first try only; set AMQP_URL"
      this.#events.emit("notice", { message })
    }
    return ports
  }

  report(): WorkerReport {
    return {
      worker: this.id,
      pid: process.pid,
      state: this.#state,
      broker: this.#broker.state,
      connections: this.#connections.count,
      refusing: this.#listener.refusing,
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
          this.#connections.forEach((connection) => {
            if (connection.state === "handshaking") connection.close("drained")
            else connection.pause("drain")
          })
          await this.#broker.stopConsuming()
        },
        confirmed: () => this.#lines.count === 0 && this.#backpressure.waitingCount === 0,
        closeSome: (most) => this.#closeSome(most),
        settled: () =>
          this.#connections.count === 0 &&
          this.#consumer.heldCount === 0 &&
          this.#sender.pendingCount === 0 &&
          this.#posts.count === 0,
        enter: (phase) => {
          const unconfirmedLines = this.#lines.count
          const connections = this.#connections.count
          this.#events.emit("drain", { phase, unconfirmedLines, connections })
        },
        nowMs: Date.now,
        sleep: Bun.sleep,
      },
      this.#options.config.drainTimeoutMs,
    )
    await this.#http?.stop(true)
    if (this.#sweeping !== null) clearInterval(this.#sweeping)
    this.#lines.stop()
    this.#posts.stop()
    await this.#broker.close()
    return result === "done" ? 0 : 1
  }

  #startBroker(): void {
    const { broker } = this.#options.config
    const { prefetch } = broker
    const subscribe = (queue: string, take: (delivery: Delivery) => void): Subscription => ({
      queue,
      prefetch,
      deliver: (delivery) => {
        try {
          take(delivery)
        } catch (error) {
          this.#fault(error instanceof Error ? error : new Error(String(error)), queue)
        }
      },
    })
    const deliver = (delivery: Delivery) => this.#consumer.deliver(delivery)
    const setup = {
      queues: queueDeclarations(broker, this.id, this.#incarnation),
      subscriptions: [
        subscribe(broker.toDeviceQueue, deliver),
        // Exclusive, so that two instances with one INSTANCE_ID do not take each other's commands.
        { ...subscribe(workerQueue(this.id), deliver), exclusive: true },
        subscribe(DEAD_LETTERS, (delivery) => this.#consumer.deliverDeadLetter(delivery)),
        {
          ...subscribe(replyQueue(this.id, this.#incarnation), (delivery) =>
            this.#sender.deliverReceipt(delivery),
          ),
          untilClose: true,
        },
      ],
    }
    let before: BrokerState = { is: "away", reason: "" }
    this.#broker.start(setup, {
      stateChanged: (state) => {
        if (state.is === "ready" && before.is === "away") this.counters.brokerConnects += 1
        if (state.is === "away" && before.is !== "away") this.counters.brokerLosses += 1
        // Each try that fails for the same reason is no news.
        if (!Bun.deepEquals(state, before)) this.#events.emit("broker_state", { state })
        if (state.is === "ready" && before.is !== "ready") this.#readySinceMs = Date.now()
        before = state
      },
      warning: (message) => this.#events.emit("broker_warning", { message }),
    })
  }

  #serveHttp(): Server<undefined> {
    const { config, httpPort, gather } = this.#options
    const own = () => this.snapshot()
    const broker = this.#broker
    const routes = app({
      tokens: config.http.tokens,
      maxLineBytes: config.device.maxLineBytes,
      version: VERSION,
      startedAtMs: this.#startedAtMs,
      nowMs: Date.now,
      counters: this.counters,
      report: () => this.report(),
      reports: async () =>
        (await gather(own)).flatMap(({ report }) => (report === null ? [] : [report])),
      metricsText: async () => summed((await gather(own)).map(({ metrics }) => metrics)),
      send: (request) => this.#sender.send(request),
      messages:
        broker instanceof EmbeddedBroker
          ? { tap: (tap) => broker.tap(config.broker.fromDeviceQueue, tap) }
          : null,
      fault: (error) => this.#fault(error, "http"),
    })
    return Bun.serve({
      hostname: config.http.host,
      port: httpPort,
      reusePort: true,
      // Longer than a send may take and than the keep-alives of event streams are apart.
      idleTimeout: Math.ceil(config.http.sendTimeoutMs / 1000) + 10,
      // The routes have their own, lower bound and answer with an error that says so.
      maxRequestBodySize: Number.MAX_SAFE_INTEGER,
      fetch: routes.fetch,
    })
  }

  #sweep(): void {
    const nowMs = Date.now()
    this.#connections.sweep(nowMs)
    if (this.#broker.state.is !== "ready") return
    const oldest = [this.#lines.oldestSentAtMs(), this.#posts.oldestSentAtMs()]
    const sentAtMs = Math.min(...oldest.filter((atMs) => atMs !== null))
    const unconfirmedMs = nowMs - Math.max(sentAtMs, this.#readySinceMs)
    if (unconfirmedMs < this.#options.config.broker.confirmTimeoutMs) return
    this.#events.emit("broker_mute", { unconfirmedMs })
    this.#broker.reset(`nothing confirmed for ${unconfirmedMs} ms`)
  }

  /** One write a turn for each connection, whatever the number of commands. */
  #flushSoon(connection: Connection): void {
    if (this.#flushing.size === 0) setImmediate(() => this.#flush())
    this.#flushing.add(connection)
  }

  #flush(): void {
    const due = [...this.#flushing]
    this.#flushing.clear()
    for (const connection of due) connection.flush()
  }

  #suspend(suspended: boolean): void {
    const { heldBytes } = this.#backpressure
    this.#events.emit(suspended ? "reading_suspended" : "reading_resumed", { heldBytes })
    this.#connections.forEach((connection) => {
      if (suspended) connection.pause("memory")
      else connection.resume("memory")
    })
  }

  #closeSome(most: number): number {
    let closed = 0
    let left = 0
    this.#connections.forEach((connection) => {
      if (connection.state !== "open") return
      if (closed === most) left += 1
      else {
        connection.close("drained")
        closed += 1
      }
    })
    return left
  }

  #gauges(): Gauges {
    return {
      connections: this.#connections.count,
      windowLines: this.#lines.count,
      windowBytes: this.#lines.bytes,
      heldBytes: this.#backpressure.heldBytes,
      waitingForRoom: this.#backpressure.waitingCount,
      unacknowledgedCommands: this.#consumer.heldCount,
      heldCommands: this.#connections.heldCommands(),
      posts: this.#posts.count,
      brokerReady: this.#broker.state.is === "ready",
    }
  }

  #warn(): void {
    const { auth, host } = this.#options.config.device
    if (auth === "none" && !isLoopback(host)) {
      const message = `DEVICE_AUTH=none on ${host}: whoever reaches the port is admitted`
      this.#events.emit("notice", { message })
    }
  }

  #fault(error: Error, where: string): void {
    this.counters.faults += 1
    this.#events.emit("fault", { error, where })
  }
}
