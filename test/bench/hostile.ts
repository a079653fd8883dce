/**
 * Good devices beside hostile ones: how long the confirms of the good devices' lines take without
 * the hostile connections and with them, in turn (A B A B) in one run. The hostile devices are
 * those of the simulator, in processes of their own; `src/simulator/hostile.ts` says what each kind
 * does.
 *
 * The hostile ones connect all at once; measuring begins when those that stay are connected.
 */

import { join } from "node:path"
import { HOSTILE_KINDS, type HostileKind } from "../../src/simulator/hostile-kinds.ts"
import type { RunReport } from "../../src/simulator/report.ts"
import { until } from "../support/wait.ts"
import { type Child, startChild } from "./child.ts"
import { type BenchResult, Meter, makeBedWithBackEnd, median, ratio, round } from "./harness.ts"
import { processIds } from "./subject.ts"

export interface HostileParameters {
  readonly good: number
  /** Of all good devices together. */
  readonly linesPerSecond: number
  /** Divided over the kinds by `SHARES`. */
  readonly hostile: number
  readonly seconds: number
  readonly rounds: number
}

/** The share of each kind. A slow reader sends 20 lines a second; with many, these are the load. */
const SHARES: Readonly<Record<HostileKind, number>> = {
  silent: 0.25,
  "half-handshake": 0.25,
  garbage: 0.2,
  "byte-at-a-time": 0.125,
  "endless-line": 0.1,
  flapping: 0.05,
  "slow-reader": 0.025,
  // Needs named devices.
  "duplicate-id": 0,
}
/** Kinds whose connections stay. */
const STAYING: readonly HostileKind[] = ["silent", "byte-at-a-time", "slow-reader"]
const SIMULATOR = join(import.meta.dir, "../../src/simulator/main.ts")
/** Each has half of every kind; one alone could be the bottleneck. */
const DRIVERS = 2
const LIMIT_MS = 60_000

interface Sent {
  readonly p50: number
  readonly p99: number
  readonly missing: number
  readonly late: number
  /** CPU of the gateway, as a share of one core. */
  readonly gateway: number
}

export async function hostile(parameters: HostileParameters): Promise<BenchResult> {
  const { good, rounds } = parameters
  const bed = await makeBedWithBackEnd({
    ...{ WORKERS: "1", DEVICE_HOST: "0.0.0.0", DEVICE_ACK: "seq" },
  })
  const { devicePort: port } = bed.gateway
  const crowd = startChild("crowd.ts", { port, connections: good })
  const open = () => bed.gateway.metric("owsla_connections")
  const send = () => sendLines(crowd, processIds(bed.gateway), parameters)
  const quiet: Sent[] = []
  const beside: Sent[] = []
  let opened = 0
  let failed = 0
  let closedByGateway = 0
  try {
    await crowd.told("ready")
    crowd.say("connect")
    const { connected } = await crowd.told("connected")
    if (connected !== good) throw new Error(`${connected} of ${good} connected`)
    await send()
    for (let at = 0; at < rounds; at += 1) {
      quiet.push(await send())
      const drivers = startHostile(port, at, parameters)
      try {
        const staying = STAYING.reduce((sum, kind) => sum + DRIVERS * eachOf(kind, parameters), 0)
        const all = async () => (await open()) >= good + staying
        await until(all, { what: "the hostile devices to connect", timeoutMs: LIMIT_MS })
        beside.push(await send())
      } finally {
        for (const { stop } of drivers) stop()
      }
      for (const { report } of drivers) {
        for (const one of (await report()).hostile) {
          if (one.opened === 0) throw new Error(`no ${one.kind} device connected`)
          opened += one.opened
          failed += one.failed
          closedByGateway += one.closedByGateway
        }
      }
      const gone = async () => (await open()) <= good
      await until(gone, { what: "the hostile devices to be gone", timeoutMs: LIMIT_MS })
    }
    crowd.say("close")
    const { closed = 0 } = await crowd.told("closed")
    const of = (sent: readonly Sent[], field: keyof Sent) => median(sent.map((one) => one[field]))
    return {
      bench: "hostile",
      parameters: { ...parameters },
      figures: {
        "confirm p50 quiet, ms": round(of(quiet, "p50")),
        "confirm p99 quiet, ms": round(of(quiet, "p99")),
        "confirm p50 with hostile devices, ms": round(of(beside, "p50")),
        "confirm p99 with hostile devices, ms": round(of(beside, "p99")),
        ...ratio("hostile to quiet p99, ratio", of(beside, "p99"), of(quiet, "p99")),
        "good connections lost": good - closed,
        "good lines not acknowledged": [...quiet, ...beside].reduce((a, b) => a + b.missing, 0),
        "hostile connections opened": opened,
        "hostile connections closed by the gateway": closedByGateway,
        "hostile connections that failed": failed,
        "CPU of the gateway quiet, share of a core": round(of(quiet, "gateway")),
        "CPU of the gateway with hostile devices, share of a core": round(of(beside, "gateway")),
        "lines sent late by the driver, share": round(of(beside, "late")),
      },
    }
  } finally {
    await crowd.stop()
    await bed.stop()
  }
}

/** Devices of this kind in each driver. */
function eachOf(kind: HostileKind, { hostile }: HostileParameters): number {
  if (SHARES[kind] === 0) return 0
  return Math.max(1, Math.round((SHARES[kind] * hostile) / DRIVERS))
}

function startHostile(port: number, round: number, parameters: HostileParameters) {
  const kinds = HOSTILE_KINDS.filter((kind) => SHARES[kind] > 0)
  const flags = kinds.flatMap((kind) => ["--hostile", `${kind}:${eachOf(kind, parameters)}`])
  return Array.from({ length: DRIVERS }, (_, at) => {
    // An address of its own each time: closed connections keep their ports for a minute.
    const host = `127.0.0.${2 + round * DRIVERS + at}`
    const child = Bun.spawn(
      [
        // At the lowest priority: in the world they do not share the gateway's cores.
        ...[
          "nice",
          "-n",
          "19",
          process.execPath,
          SIMULATOR,
          "--host",
          host,
          "--port",
          String(port),
        ],
        ...["--devices", "0", "--duration", "600", "--json", ...flags],
      ],
      { stdio: ["ignore", "pipe", "inherit"] },
    )
    return {
      stop: () => child.kill("SIGINT"),
      /** After it was stopped. */
      report: async (): Promise<RunReport> => JSON.parse(await new Response(child.stdout).text()),
    }
  })
}

async function sendLines(
  crowd: Child,
  pids: readonly number[],
  { linesPerSecond, seconds }: HostileParameters,
): Promise<Sent> {
  const meter = new Meter(pids)
  crowd.say(`send ${linesPerSecond} ${seconds}`)
  const report = await crowd.told("acknowledged")
  const gateway = meter.cpu / meter.seconds
  meter.stop()
  const { sent = 0, acknowledged = 0, p50 = Number.NaN, p99 = Number.NaN, late = 0 } = report
  return { p50, p99, missing: sent - acknowledged, late, gateway }
}
