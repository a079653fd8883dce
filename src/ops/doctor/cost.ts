/**
 * Measures what a connection and a line cost on one core of this machine, and derives how many
 * devices the machine holds (`capacity.ts`).
 *
 *   devices (a child process: the simulator) ──TLS──► worker (this process) ──► broker
 *                                                     its CPU time is measured
 *
 * The worker is the gateway's own, without authentication, on free loopback ports. With `AMQP_URL`
 * it publishes to a temporary queue of the broker (`diverted-broker.ts`). Otherwise it uses the
 * embedded broker, and the cost of a line contains no AMQP. CPU time is measured, not the rate,
 * because the devices and the broker may share the cores. The first connections and lines only warm
 * the engine up, as in `bun run bench admission-none lines`, which measures the same with a quorum
 * queue.
 *
 * Bound: `COST_MS` in all.
 */

import { availableParallelism, freemem } from "node:os"
import { type Config, inspectConfig } from "../../config/config.ts"
import { Counters } from "../../counters.ts"
import { SWEEP_EVERY_MS } from "../../device/connections.ts"
import { EventBus } from "../../events.ts"
import { configuredBroker, makeWorker } from "../../process/make-worker.ts"
import { ownProgram } from "../../process/own-program.ts"
import type { Worker } from "../../process/worker.ts"
import { readServerCertificate } from "../server-certificate.ts"
import { type Capacity, capacityOf } from "./capacity.ts"
import { missingFiles } from "./certificate.ts"
import { divertedBroker } from "./diverted-broker.ts"
import { type Check, type Finding, ok, skipped } from "./finding.ts"

const CHECK = "cost"
const COST_MS = 120_000
const LOOK_EVERY_MS = 10
/** Waves of lines. The cheapest of the last ones counts: others met something else that ran. */
const LINE_WAVES = 6
const MEASURED_WAVES = 3
const LOOPBACK = "127.0.0.1"
const COMPARE = "bun run bench admission-none lines"

export interface CostOptions {
  readonly config: Config
  /** Devices that a worker accepts by its open files or `MAX_CONNECTIONS`. */
  readonly devicesOfWorker: number
  /** Memory that is available; null when the system does not tell it. */
  readonly memoryBytes: number | null
  /** Connections of the warm-up and of the measurement. */
  readonly connections: number
  /** Of `lineDevices` devices. */
  readonly lineDevices: number
  readonly linesEach: number
}

export const COST_LOAD = { connections: 2_000, lineDevices: 100, linesEach: 1_000 }

export interface Costs {
  readonly connectionUs: number
  readonly lineUs: number
}

export function costCheck(options: CostOptions): Check {
  const run = async () => {
    const missing = missingFiles(options.config)
    if (missing !== null) return [skipped(CHECK, missing)]
    return costFindings(await measureCosts(options), options)
  }
  return { name: CHECK, timeoutMs: COST_MS, run }
}

function costFindings({ connectionUs, lineUs }: Costs, options: CostOptions): Finding[] {
  const { config, devicesOfWorker, memoryBytes } = options
  const { workers } = config
  const capacity = capacityOf({
    ...{ workers, devicesOfWorker, connectionUs },
    cores: availableParallelism(),
    memoryBytes: memoryBytes ?? freemem(),
    hasCertificates: config.device.clientCaFile !== null,
  })
  const without = config.amqp === null ? ", without AMQP" : ""
  return [
    ok(CHECK, `a connection costs ${connectionUs.toFixed(0)} us of CPU: ${perS(connectionUs)}`),
    ok(CHECK, `a line costs ${lineUs.toFixed(1)} us of CPU in a stream${without}: ${perS(lineUs)}`),
    ok(CHECK, capacityText(capacity, workers), `compare with ${COMPARE}`),
  ]
}

function capacityText({ devices, limit, reconnectS }: Capacity, workers: number): string {
  const held = `this machine holds ${number(devices)} devices with ${workers} worker(s), limited by ${limit}`
  return `${held}; after an outage they connect again in ${Math.ceil(reconnectS)} s`
}

function perS(us: number): string {
  return `${number(Math.round(1e6 / us))} per second and core`
}

function number(value: number): string {
  return value.toLocaleString("en")
}

/** Rejects when devices cannot connect, or not all lines are confirmed. */
export async function measureCosts(options: CostOptions): Promise<Costs> {
  const { connections, lineDevices, linesEach } = options
  const measured = await startWorker(options.config)
  try {
    await measured.connections(connections)
    const connectionUs = (await measured.connections(connections)) / connections
    const lines = lineDevices * linesEach
    const waves: number[] = []
    for (let wave = 0; wave < LINE_WAVES; wave += 1) {
      waves.push(await measured.lines(lineDevices, linesEach))
    }
    // The first ones are dearer, until the engine has compiled what they use.
    const us = Math.min(...waves.slice(-MEASURED_WAVES))
    return { connectionUs, lineUs: Math.max(0, us - lineDevices * connectionUs) / lines }
  } finally {
    await measured.stop()
  }
}

interface MeasuredWorker {
  /** CPU time until so many devices were admitted, microseconds. */
  readonly connections: (devices: number) => Promise<number>
  /** CPU time until all lines of so many devices were confirmed, microseconds. */
  readonly lines: (devices: number, each: number) => Promise<number>
  readonly stop: () => Promise<void>
}

async function startWorker(config: Config): Promise<MeasuredWorker> {
  const counters = new Counters()
  const broker = configuredBroker(config, "doctor")
  const { worker } = makeWorker({
    config: withoutEffects(config),
    ...{ slot: 0, devicePort: 0, httpPort: 0, counters },
    broker: config.amqp === null ? broker : divertedBroker(broker),
    events: new EventBus(),
    tokenVerifier: null,
    gather: async (own) => ({ snapshots: [await own()], restarts: {}, history: null }),
    rules: [],
    rulesChanged: () => undefined,
    empty: () => undefined,
    log: { recent: async () => null, follow: () => () => undefined },
  })
  const tls = { ...readServerCertificate(config.tls), clientCaPem: null }
  const { devicePort } = await worker.start(tls)
  const sweeping = setInterval(() => worker.sweep(), SWEEP_EVERY_MS)
  await until(() => worker.report().broker.kind === "ready")
  const run = async (flags: readonly string[], done: () => boolean): Promise<number> => {
    const before = process.cpuUsage()
    const child = startDevices(devicePort, flags)
    // With status 0 it has written all lines, and the worker may still have to read them.
    const hasFailed = () => child.exitCode !== null && child.exitCode !== 0
    await until(() => done() || hasFailed())
    const { user, system } = process.cpuUsage(before)
    const isDone = done()
    child.kill("SIGKILL")
    await child.exited
    if (!isDone) throw new Error("the simulated devices could not connect or send")
    await until(() => worker.report().connections === 0)
    return user + system
  }
  return {
    connections: (devices) =>
      run(
        ["--devices", String(devices), "--rate", "0.001", "--duration", "600"],
        () => worker.report().connections === devices && isAdmitted(worker),
      ),
    lines: (devices, each) => {
      const expected = counters.linesConfirmed + devices * each
      const flags = ["--devices", String(devices), "--rate", "0", "--lines", String(each)]
      return run([...flags, "--bytes", "100"], () => counters.linesConfirmed >= expected)
    },
    stop: async () => {
      clearInterval(sweeping)
      await worker.drain()
    },
  }
}

function isAdmitted(worker: Worker): boolean {
  return worker.report().admission.handshakes_in_progress === 0
}

/** The configuration for a measurement on loopback ports that only this machine can reach. */
function withoutEffects(config: Config): Config {
  const open = inspectConfig({ LOG_LEVEL: "error" }, () => null).config
  const { device, http, metrics, drainTimeoutMs } = open
  return {
    ...config,
    ...{ http, metrics, drainTimeoutMs },
    device: { ...device, host: LOOPBACK, resumption: config.device.resumption },
  }
}

function startDevices(port: number, flags: readonly string[]) {
  const target = ["--host", LOOPBACK, "--port", String(port), "--ramp", "0", "--json"]
  return Bun.spawn([...ownProgram(), "simulate", ...target, ...flags], {
    stdio: ["ignore", "ignore", "ignore"],
  })
}

/** The time-out of the check bounds it. */
async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await Bun.sleep(LOOK_EVERY_MS)
}
