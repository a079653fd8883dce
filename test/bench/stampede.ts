/**
 * The stampede: all devices of several crowds connect at the same instant, while others are
 * connected and send lines that are acknowledged to them. Beside it, the same devices as quickly as
 * the gateway takes them when it is not hurried: its capacity.
 */

import { join } from "node:path"
import type { RunReport } from "../../src/simulator/report.ts"
import { until } from "../support/wait.ts"
import { type Child, startChild } from "./child.ts"
import { type BenchResult, makeBed, round } from "./harness.ts"

export interface StampedeParameters {
  readonly devices: number
  readonly crowds: number
  /** Devices that are connected before, and send. */
  readonly connected: number
}

const SIMULATOR = join(import.meta.dir, "../../src/simulator/main.ts")
const LIMIT_MS = 120_000
const UNHURRIED = 32

interface Wave {
  readonly ms: number
  readonly medianMs: number
  readonly slowestMs: number
}

export async function stampede(parameters: StampedeParameters): Promise<BenchResult> {
  const { devices, crowds, connected } = parameters
  const bed = await makeBed({
    DEVICE_ACK: "seq",
    DEVICE_HOST: "0.0.0.0",
    // All may wait in one worker: the kernel does not share them out evenly.
    MAX_WAITING: String(devices),
  })
  const { devicePort: port } = bed.gateway
  const each = Math.ceil(devices / crowds)
  // An address for each crowd: one alone has too few ports for all waves, closed connections keep
  // theirs for a minute.
  let hosts = 1
  const start = (atOnce: number) =>
    Array.from({ length: crowds }, (_, at) => {
      hosts += 1
      const where = { host: `127.0.0.${hosts}`, port, first: at * each }
      return startChild("crowd.ts", { ...where, connections: each, "at-once": atOnce })
    })
  const atOnce = Math.ceil(UNHURRIED / crowds)
  let line: Awaited<ReturnType<typeof linesBefore>> | null = null
  const [warming, unhurried, hurried] = [start(atOnce), start(atOnce), start(each)]
  try {
    await bed.gateway.ready()
    for (const crowd of [...warming, ...unhurried, ...hurried]) await crowd.told("ready")
    const open = () => bed.gateway.metric("owsla_connections")
    const gone = () =>
      until(async () => (await open()) === 0, { what: "all gone", timeoutMs: LIMIT_MS })
    // Once to warm the engines up.
    await wave(warming, each)
    await gone()
    const calm = await wave(unhurried, each)
    await gone()
    line = await linesBefore(port, connected)
    const storm = await wave(hurried, each)
    const report = await line.end()
    if (report.devices.connections !== connected) throw new Error("connected devices were dropped")
    return {
      bench: "stampede",
      parameters: { ...parameters },
      figures: {
        "capacity unhurried, 1/s": Math.round((each * crowds) / (calm.ms / 1_000)),
        "all in, s": round(storm.ms / 1_000),
        "all in over devices by capacity, ratio": round(storm.ms / calm.ms),
        "median, ms": round(storm.medianMs),
        "slowest, ms": round(storm.slowestMs),
        "slowest over median, ratio": round(storm.slowestMs / storm.medianMs),
        "confirm p50 of connected devices, ms": report.latencyMs.confirm.p50 ?? Number.NaN,
        "confirm p99 of connected devices, ms": report.latencyMs.confirm.p99 ?? Number.NaN,
      },
    }
  } finally {
    line?.kill()
    for (const crowd of [...warming, ...unhurried, ...hurried]) await crowd.stop()
    await bed.stop()
  }
}

/** Connects all crowds, and lets them go again; the figures of the slowest crowd. */
async function wave(crowds: readonly Child[], each: number): Promise<Wave> {
  for (const crowd of crowds) crowd.say("connect")
  const told = await Promise.all(crowds.map((crowd) => crowd.told("connected")))
  for (const { connected } of told) {
    if (connected !== each) throw new Error(`${connected} of ${each} connected`)
  }
  for (const crowd of crowds) crowd.say("close")
  await Promise.all(crowds.map((crowd) => crowd.told("closed")))
  const most = (field: string) => Math.max(...told.map((report) => report[field] ?? 0))
  return { ms: most("ms"), medianMs: most("medianMs"), slowestMs: most("slowestMs") }
}

/** Devices that are connected and send until they are told to end. */
async function linesBefore(port: number, devices: number) {
  const child = Bun.spawn(
    [
      ...[process.execPath, SIMULATOR, "--port", String(port), "--devices", String(devices)],
      ...["--rate", "20", "--ramp", "0", "--duration", "600", "--device-ack", "--json"],
    ],
    { stdio: ["ignore", "pipe", "inherit"] },
  )
  // Long enough for some hundred lines; the storm then meets them.
  await Bun.sleep(1_000)
  return {
    end: async (): Promise<RunReport> => {
      child.kill("SIGINT")
      return JSON.parse(await new Response(child.stdout).text())
    },
    kill: () => child.kill("SIGKILL"),
  }
}
