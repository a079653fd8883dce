/**
 * What a fault is made on: a RabbitMQ node of its own, the real gateway, and a herd of devices with
 * a back-end (`bun run simulate`) whose ledgers say afterwards whether a line was lost.
 *
 * Everything is a process of its own and ends with `stop`.
 */

import { afterAll, afterEach, beforeAll, expect } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import type { RunReport } from "../../src/simulator/report.ts"
import type { Verdict } from "../../src/simulator/verdict.ts"
import { AmqpProxy } from "../support/amqp-proxy.ts"
import {
  type GatewayPlace,
  ownQueues,
  residentBytes,
  startGateway,
  type TestGateway,
} from "../support/gateway.ts"
import type { Namespace } from "../support/namespace.ts"
import { type PrivateBroker, startRabbitMq, uniqueNames } from "../support/rabbitmq.ts"
import { until } from "../support/wait.ts"

const SIMULATOR = join(import.meta.dir, "../../src/simulator/main.ts")
const FLOW_TIMEOUT_MS = 60_000
/** Longer than any fault lasts: a herd goes on until it is told to end. */
const HERD_DURATION_S = 3_600
const SETTLE_S = 90

export interface HerdOptions {
  readonly devices: number
  /** Lines a second of each; 0: as fast as its socket takes them. */
  readonly rate: number
  readonly bytes?: number
  /** Further flags of `bun run simulate`. */
  readonly flags?: readonly string[]
}

export class FaultBed {
  readonly broker: PrivateBroker
  /** The address of the broker for the gateway and back-ends, when it is not the node itself. */
  readonly #givenUrl: string | undefined
  readonly queues = ownQueues(uniqueNames("fault"))
  /** Between gateway and broker, where one was asked for. */
  readonly proxy: AmqpProxy | null
  readonly #environment: Record<string, string>
  readonly #place: GatewayPlace
  readonly #brokerHost: string
  readonly #ends: (() => unknown)[] = []
  #gateway: TestGateway | null = null
  #ownsBroker = false

  private constructor(
    broker: PrivateBroker,
    proxy: AmqpProxy | null,
    environment: Record<string, string>,
    namespace: Namespace | null,
    prefix: readonly string[],
    givenUrl: string | undefined,
  ) {
    this.broker = broker
    this.#givenUrl = givenUrl
    this.proxy = proxy
    this.#environment = environment
    this.#brokerHost = namespace?.brokerAddress ?? "127.0.0.1"
    this.#place =
      namespace === null
        ? { prefix }
        : { prefix: [...namespace.prefix, ...prefix], host: namespace.deviceAddress }
  }

  /**
   * @param environment of the gateway, beside broker and queues.
   * @param way with "proxied" the gateway's connections to the broker can be meddled with; in a
   * namespace they are too.
   * @param options `prefix`: a command that runs the gateway, such as one that limits it; `broker`:
   * one that is there already and stays; `url`: where gateway and back-ends reach it, such as a
   * load balancer.
   */
  static async start(
    environment: Record<string, string> = {},
    way: "straight" | "proxied" | Namespace = "straight",
    {
      prefix = [],
      broker: given,
      url,
    }: { prefix?: readonly string[]; broker?: PrivateBroker; url?: string } = {},
  ): Promise<FaultBed> {
    const broker = given ?? (await startRabbitMq())
    const namespace = typeof way === "string" ? null : way
    const proxy =
      way === "straight" ? null : await AmqpProxy.start(broker.port, namespace?.brokerAddress)
    const bed = new FaultBed(broker, proxy, environment, namespace, prefix, url)
    if (given === undefined) bed.#ownsBroker = true
    await bed.startGateway()
    return bed
  }

  get gateway(): TestGateway {
    if (this.#gateway === null) throw new Error("the gateway was not started")
    return this.#gateway
  }

  /** For back-ends. */
  get brokerUrl(): string {
    return this.#givenUrl ?? this.broker.url
  }

  async startGateway(): Promise<TestGateway> {
    const environment = { AMQP_URL: this.#gatewayUrl(), ...this.queues, ...this.#environment }
    this.#gateway = await startGateway(environment, this.#place)
    await this.ready()
    return this.#gateway
  }

  /** A URL that was given may be a list, and leads past the proxy. */
  #gatewayUrl(): string {
    if (this.#givenUrl !== undefined) return this.#givenUrl
    const url = new URL(this.broker.url)
    url.hostname = this.#brokerHost
    if (this.proxy !== null) url.port = String(this.proxy.port)
    return url.href
  }

  /** Waits until devices are accepted and every worker's broker takes messages. */
  ready(timeoutMs = FLOW_TIMEOUT_MS): Promise<void> {
    return this.gateway.ready(timeoutMs)
  }

  /**
   * Waits until one worker at least says that it is not ready; `/health` must go on answering 200.
   */
  async notReady(timeoutMs = FLOW_TIMEOUT_MS): Promise<void> {
    const isNot = async () => (await this.gateway.fetch("/ready")).status === 503
    await until(isNot, { what: "/ready to be 503", timeoutMs })
    expect((await this.gateway.fetch("/health")).status).toBe(200)
  }

  /** Milliseconds until lines are confirmed again, from this call. */
  async flowsAgain(timeoutMs = FLOW_TIMEOUT_MS): Promise<number> {
    const startedAtMs = performance.now()
    const before = await this.confirmed()
    const flows = async () => (await this.confirmed()) > before
    await until(flows, { what: "lines to be confirmed again", timeoutMs })
    return Math.round(performance.now() - startedAtMs)
  }

  confirmed(): Promise<number> {
    return this.gateway.metric("owsla_lines_confirmed_total")
  }

  /** Starts devices and a back-end; resolves when all are connected and lines flow. */
  async herd(options: HerdOptions): Promise<RunningHerd> {
    const herd = new RunningHerd(this, options)
    this.#ends.push(() => herd.kill())
    await herd.flows()
    return herd
  }

  /** Ends something else with the bed, before it. */
  alsoEnd(end: () => unknown): void {
    this.#ends.push(end)
  }

  async stop(): Promise<void> {
    for (const end of this.#ends.reverse()) await end()
    await this.#gateway?.stop()
    this.proxy?.stop()
    if (this.#ownsBroker) await this.broker.dispose()
  }
}

/**
 * For a file of faults that leave the broker alone: one node for all, and of each test a bed of its
 * own, which ends with it.
 */
export function bedsOnOneBroker(limitMs: number) {
  let broker: PrivateBroker
  let bed: FaultBed | null = null
  beforeAll(async () => {
    broker = await startRabbitMq()
  }, limitMs)
  afterEach(async () => {
    await bed?.stop()
    bed = null
  }, limitMs)
  afterAll(() => broker?.dispose(), limitMs)
  return async (
    environment: Record<string, string> = {},
    prefix: readonly string[] = [],
  ): Promise<FaultBed> => {
    bed = await FaultBed.start(environment, "straight", { prefix, broker })
    return bed
  }
}

export interface HerdEnd {
  readonly report: RunReport
  readonly verdict: Verdict
}

export class RunningHerd {
  readonly #bed: FaultBed
  readonly #options: HerdOptions
  readonly #ledger = mkdtempSync(join(tmpdir(), "owsla-ledger-"))
  readonly #process: Bun.Subprocess<"ignore", "pipe", "pipe">

  constructor(bed: FaultBed, options: HerdOptions) {
    const { devices, rate, bytes = 100, flags = [] } = options
    this.#bed = bed
    this.#options = options
    const flag = (name: string, value: string | number) => [`--${name}`, String(value)]
    this.#process = Bun.spawn(
      [
        ...[process.execPath, SIMULATOR],
        ...[...flag("host", bed.gateway.host), ...flag("port", bed.gateway.devicePort)],
        ...[...flag("devices", devices), ...flag("rate", rate), ...flag("bytes", bytes)],
        ...[...flag("ramp", 500), ...flag("duration", HERD_DURATION_S)],
        ...[...flag("settle", SETTLE_S), ...flag("ledger", this.#ledger)],
        ...["--backend", ...flag("amqp-url", bed.brokerUrl)],
        ...flag("from-device", bed.queues.FROM_DEVICE_QUEUE),
        ...flag("to-device", bed.queues.TO_DEVICE_QUEUE),
        ...["--json", ...flags],
      ],
      { stdio: ["ignore", "pipe", "pipe"] },
    )
  }

  async flows(): Promise<void> {
    const { gateway } = this.#bed
    const before = await gateway.metric("owsla_connections_admitted_total")
    const admitted = async () =>
      (await gateway.metric("owsla_connections")) >= this.#options.devices ||
      (await gateway.metric("owsla_connections_admitted_total")) - before >= this.#options.devices
    await until(admitted, { what: "all devices to connect", timeoutMs: FLOW_TIMEOUT_MS })
    await this.#bed.flowsAgain()
  }

  /** Ends sending, lets everything that was sent arrive, and judges. */
  async end(rules: readonly string[] = ["--order", "follow"]): Promise<HerdEnd> {
    this.#process.kill("SIGINT")
    const output = await new Response(this.#process.stdout).text()
    const complaints = await new Response(this.#process.stderr).text()
    if (output === "") throw new Error(`the simulator ended without a report: ${complaints}`)
    const report = JSON.parse(output) as RunReport
    const judged = Bun.spawnSync([
      ...[process.execPath, SIMULATOR, "verify", "--ledger", this.#ledger, "--json", ...rules],
    ])
    const verdict = JSON.parse(judged.stdout.toString()) as Verdict
    return { report, verdict }
  }

  async kill(): Promise<void> {
    this.#process.kill("SIGKILL")
    await this.#process.exited
    rmSync(this.#ledger, { recursive: true, force: true })
  }
}

/** Of the largest worker. */
export function residentMegabytes(gateway: TestGateway): number {
  return Math.round(Math.max(...[...gateway.workers().values()].map(residentBytes)) / 1e6)
}

/**
 * Nothing lost, in order, no device dropped; returns what is worth telling of it.
 * @param unexpected lines of other devices.
 */
export function expectKept(
  { report, verdict }: HerdEnd,
  devices: number,
  unexpected: "none" | "any" = "none",
): Record<string, number> {
  expect(report.faults).toEqual([])
  expect(verdict.examples).toEqual([])
  expect(verdict).toMatchObject({ lost: 0, duplicated: 0, neverInOrder: 0, left: 0 })
  if (unexpected === "none") expect(verdict).toMatchObject({ kept: true, unexpected: 0 })
  expect(report.devices).toMatchObject({ connections: devices, notConnected: 0 })
  const { sent, lost, recovered, lateAgain } = verdict
  const kept = { "lines sent": sent, lost, repeated: recovered }
  return lateAgain === 0 ? kept : { ...kept, "late after the broker took them back": lateAgain }
}
