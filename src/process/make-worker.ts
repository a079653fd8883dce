/**
 * Makes a worker with its real parts: the broker of the configuration, a listener on a TLS port and
 * the HTTP sidecar.
 */

import { AmqpBroker } from "../amqp/broker.ts"
import type { Broker } from "../broker/broker.ts"
import { EmbeddedBroker } from "../broker/embedded.ts"
import { lineQueues } from "../broker/topology.ts"
import { CommandIds } from "../commands/forwarding.ts"
import type { Config } from "../config/config.ts"
import type { Counters } from "../counters.ts"
import { incarnation, workerId } from "../device/ids.ts"
import { Listener } from "../device/listener.ts"
import type { TokenVerifier } from "../device/token-verifier.ts"
import type { EventBus } from "../events.ts"
import type { RulesContent } from "../fleet/admission-rules.ts"
import { FleetKeys } from "../fleet/fleet-keys.ts"
import { app } from "../http/app.ts"
import { metricsApp } from "../http/metrics-app.ts"
import { type HttpServer, serve } from "../http/server.ts"
import type { InstanceLogReader } from "../log-entry.ts"
import { CpuDemand } from "../ops/cpu-demand.ts"
import { summed } from "../ops/metrics.ts"
import { connectionsUnder, httpConnectionsUnder, openFilesLimit } from "../ops/open-files.ts"
import { TickClock } from "../tick-clock.ts"
import { VERSION } from "../version.ts"
import type { Gathered, Snapshot } from "./control.ts"
import { Worker } from "./worker.ts"

export interface WorkerOptions {
  readonly config: Config
  readonly slot: number
  /** The ports to share with the other workers; 0 takes a free one. */
  readonly devicePort: number
  readonly httpPort: number
  readonly events: EventBus
  readonly counters: Counters
  /** Null unless devices identify themselves by tokens. */
  readonly tokenVerifier: TokenVerifier | null
  /**
   * The snapshots of all processes of the instance, this worker's included, and its history when
   * it is wanted; null when they cannot be had.
   */
  readonly gather: (own: () => Promise<Snapshot>, wantsHistory: boolean) => Promise<Gathered | null>
  /** The gate and bans at the start; null when they are not known. */
  readonly rules: readonly RulesContent[] | null
  /** Gets the gate and bans after each change. */
  readonly rulesChanged: (rules: readonly RulesContent[]) => void
  /** In place of the broker of the configuration. */
  readonly broker?: Broker
  /** Empties all workers of the instance, or lets them take devices again. */
  readonly empty: (on: boolean) => void
  /** The log of the instance. */
  readonly log: InstanceLogReader
}

export interface MadeWorker {
  readonly worker: Worker
  /** How many device connections it takes. */
  readonly maxConnections: number
}

export function makeWorker(options: WorkerOptions): MadeWorker {
  const { config, slot, devicePort, events, counters, tokenVerifier, rules, rulesChanged } = options
  const id = workerId(config.instanceId, slot)
  const self = { worker: id, incarnation: incarnation(Date.now(), Math.random()) }
  const limit = openFilesLimit()
  const maxHttpConnections = httpConnectionsUnder(limit, config.http.maxConnections)
  const httpPorts = config.metrics === null ? 1 : 2
  const maxConnections =
    config.device.maxConnections ?? connectionsUnder(limit, maxHttpConnections * httpPorts)
  const clock = new TickClock()
  const broker = options.broker ?? configuredBroker(config, id)
  const worker = new Worker({
    ...{ config, self, events, counters, broker, clock, tokenVerifier, rules, rulesChanged },
    maxConnections,
    keys: new FleetKeys(config.fleetSecret ?? crypto.randomUUID()),
    commandIds: new CommandIds(self, randomPart()),
    makeListener: (parts) => {
      const { host, backlog, resumption, minVersion, maxRecordBytes } = config.device
      const tls = { resumption, minVersion, maxRecordBytes }
      const admission = { maxConnections, ...config.device.admission }
      const cpu = new CpuDemand(clock.steadyMs())
      const isBusy = () => cpu.isHigh(clock.steadyMs())
      const { addressLimits, proxyFrom, handshakeTimeoutMs } = config.device
      const options = {
        ...{ host, port: devicePort, backlog, ...tls, admission, isBusy },
        ...{ addressLimits, proxyFrom, handshakeTimeoutMs },
      }
      return new Listener(options, parts)
    },
    serveHttp: (worker) => serveHttp(worker, broker, maxHttpConnections, options),
  })
  return { worker, maxConnections }
}

export function configuredBroker({ amqp, broker }: Config, workerId: string): Broker {
  if (amqp === null) return new EmbeddedBroker()
  return new AmqpBroker(amqp.urls, `owsla ${workerId}`, amqp.ca, broker.gatherMs)
}

/** 64 bits, in letters and digits: it is on the wire with each forwarded command. */
function randomPart(): string {
  return (crypto.getRandomValues(new BigUint64Array(1))[0] ?? 0n).toString(36)
}

/** Serves the HTTP API, and METRICS_PORT when it is set, as one server. */
async function serveHttp(
  worker: Worker,
  broker: Broker,
  maxConnections: number,
  { config, httpPort, events, counters, gather, empty, log }: WorkerOptions,
): Promise<HttpServer> {
  const own = () => worker.snapshot()
  const fault = (error: Error) => {
    counters.faults += 1
    events.emit("fault", { error, where: "http" })
  }
  const { fromDeviceQueue, fromDevicePartitions } = config.broker
  const queues = lineQueues(fromDeviceQueue, fromDevicePartitions)
  const report = () => worker.report()
  const metricsText = async () => {
    const gathered = await gather(own, false)
    return gathered && summed(gathered.snapshots.map(({ metrics }) => metrics))
  }
  const stopping = new AbortController()
  const routes = app({
    tokens: config.http.tokens,
    readTokens: config.http.readTokens,
    framing: config.device.framing,
    maxLineBytes: config.device.maxLineBytes,
    maxReplyMs: config.device.maxReplyMs,
    maxHoldMs: config.hold.maxHoldMs,
    version: VERSION,
    startedAtMs: Date.now(),
    nowMs: Date.now,
    counters,
    report,
    reports: async () =>
      (await gather(own, false))?.snapshots.flatMap(({ report }) => report ?? []) ?? [
        worker.report(),
      ],
    metricsText,
    page: {
      instance: config.instanceId,
      workers: config.workers,
      windowLines: config.broker.windowLines,
      gather: (wantsHistory) => gather(own, wantsHistory),
    },
    fleetView: () => worker.fleet.view(),
    send: (request, caller) => worker.commands.sender.send(request, caller),
    broadcast: (request) => worker.fleet.broadcasts.send(request, config.http.sendTimeoutMs),
    fleetQuery: worker.fleet.fleetQuery,
    heldQuery: worker.fleet.heldQuery,
    tapes: worker.fleet.tapes,
    records: worker.fleet.records,
    log,
    stopping: stopping.signal,
    audited: (entry) => events.emit("audit", { entry }),
    empty,
    rules: worker.fleet.rules,
    reachesFleet: () => worker.fleet.isConnected,
    messages: broker instanceof EmbeddedBroker ? { tap: (tap) => broker.tap(queues, tap) } : null,
    fault,
  })
  const closed = (reason: keyof Counters["httpConnectionsClosed"]) => {
    counters.httpConnectionsClosed[reason] += 1
  }
  const { maxReplyMs } = config.device
  const options = { ...config.http, maxReplyMs, maxConnections, closed, fault }
  const server = await serve(routes, options, httpPort)
  const main = {
    port: server.port,
    get busyCount() {
      return server.busyCount
    },
    stop: () => {
      stopping.abort()
      return server.stop()
    },
  }
  if (config.metrics === null) return main
  const { host, port, isLoopback } = config.metrics
  const metricsRoutes = metricsApp({ isLoopback, counters, report, metricsText, fault })
  const metrics = await serve(metricsRoutes, { ...options, host }, port)
  return {
    port: main.port,
    get busyCount() {
      return main.busyCount + metrics.busyCount
    },
    stop: async () => {
      await Promise.all([main.stop(), metrics.stop()])
    },
  }
}
