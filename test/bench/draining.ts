/**
 * A drain: one of two instances is stopped, and all its devices move to the other one, whose own
 * devices send lines that are acknowledged meanwhile. The devices obey the goodbye line.
 *
 * A device goes to the other instance whenever its connection ends (`--other`).
 */

import { join } from "node:path"
import { startGateway } from "../support/gateway.ts"
import { until } from "../support/wait.ts"
import { startChild } from "./child.ts"
import { type BenchResult, makeBedWithBackEnd, round } from "./harness.ts"
import { send } from "./returning.ts"

export interface DrainingParameters {
  readonly devices: number
  /** Processes that drive them; a process may open 20,000 files. */
  readonly herds: number
  /** Of each instance. */
  readonly workers: number
  /** Devices of the instance that stays. */
  readonly connected: number
  readonly linesPerSecond: number
  readonly drainTimeoutMs: number
}

const SIMULATOR = join(import.meta.dir, "../../src/simulator/main.ts")
const SECRET = "a-secret-of-the-benches-0123456789"
const GOODBYE = "BYE {reason} {retry_after_ms}"
const LIMIT_MS = 120_000
const LOOK_EVERY_MS = 200
const WARMING_SECONDS = 2

export async function draining(parameters: DrainingParameters): Promise<BenchResult> {
  const {
    devices,
    herds: processes,
    workers,
    connected,
    linesPerSecond,
    drainTimeoutMs,
  } = parameters
  const settings = {
    ...{ WORKERS: String(workers), DEVICE_ACK: "seq", DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET },
    ...{ GOODBYE_LINE: GOODBYE, DRAIN_TIMEOUT_MS: String(drainTimeoutMs) },
  }
  const bed = await makeBedWithBackEnd(settings)
  const { devicePort: port } = bed.gateway
  const drained = await startGateway({
    ...{ AMQP_URL: bed.broker.url, ...settings },
    FROM_DEVICE_QUEUE: bed.queues.fromDevice,
    TO_DEVICE_QUEUE: bed.queues.toDevice,
  }).catch(async (error: unknown) => {
    await bed.stop()
    throw error
  })
  const named = { port, auth: "hello", secret: SECRET }
  const sender = startChild("crowd.ts", { ...named, connections: connected })
  const each = Math.ceil(devices / processes)
  const all = each * processes
  const herds = Array.from({ length: processes }, (_, at) =>
    Bun.spawn(
      [
        ...[process.execPath, SIMULATOR, "--port", String(drained.devicePort)],
        ...["--other", `127.0.0.1:${port}`],
        ...["--devices", String(each), "--name", `herd${at}`, "--auth", "hello"],
        ...["--secret", SECRET, "--ramp", "0", "--rate", "0.001", "--duration", "3600"],
        ...["--device-ack", "--goodbye", GOODBYE, "--json"],
      ],
      { stdio: ["ignore", "ignore", "inherit"] },
    ),
  )
  try {
    await drained.ready()
    await sender.told("ready")
    sender.say("connect")
    await sender.told("connected")
    const there = async () => (await drained.metric("owsla_connections")) >= all
    await until(there, { what: "all devices to be connected", timeoutMs: LIMIT_MS })
    const seconds = Math.ceil(drainTimeoutMs / 1_000)
    await send(sender, linesPerSecond, Math.min(WARMING_SECONDS, seconds))
    const quiet = await send(sender, linesPerSecond, Math.min(10, seconds))

    const startedAtMs = performance.now()
    const lines = send(sender, linesPerSecond, seconds)
    drained.signal("SIGTERM")
    let drainMs = 0
    void drained.exited.then(() => {
      drainMs = performance.now() - startedAtMs
    })
    const admitted = () => bed.gateway.metric("owsla_connections_admitted_total")
    const curve: (readonly [ms: number, count: number])[] = []
    const first = await admitted()
    const moved = async () => {
      const count = (await admitted()) - first
      curve.push([performance.now() - startedAtMs, count])
      if (count >= all) return true
      await Bun.sleep(LOOK_EVERY_MS)
      return false
    }
    await until(moved, { what: "all devices to have moved", timeoutMs: LIMIT_MS })
    const movedMs = performance.now() - startedAtMs
    const during = await lines
    const status = await drained.exited
    if (status !== 0) throw new Error(`the drained instance ended with ${status}`)
    return {
      bench: "draining",
      parameters: { ...parameters },
      figures: {
        "confirm p50 before, ms": round(quiet.p50),
        "confirm p99 before, ms": round(quiet.p99),
        "confirm p50 during the drain, ms": round(during.p50),
        "confirm p99 during the drain, ms": round(during.p99),
        "most admitted in a second": mostInASecond(curve),
        "drained after, s": round(drainMs / 1_000),
        "all moved after, s": round(movedMs / 1_000),
        "lines sent late by the driver, share": round(during.late),
        ...tenths(curve),
      },
    }
  } finally {
    for (const herd of herds) {
      herd.kill("SIGKILL")
      await herd.exited
    }
    await sender.stop()
    await drained.stop()
    await bed.stop()
  }
}

type Curve = readonly (readonly [ms: number, count: number])[]

function mostInASecond(curve: Curve): number {
  let most = 0
  let from = 0
  for (const [ms, count] of curve) {
    while ((curve[from]?.[0] ?? 0) < ms - 1_000) from += 1
    most = Math.max(most, count - (curve[from]?.[1] ?? 0))
  }
  return most
}

/** When each tenth of the devices had moved. */
function tenths(curve: Curve): Record<string, number> {
  const all = curve.at(-1)?.[1] ?? 0
  const figures: Record<string, number> = {}
  for (let percent = 10; percent <= 90; percent += 20) {
    const at = curve.find(([, count]) => count >= (all * percent) / 100)
    figures[`${percent} % moved after, s`] = round((at?.[0] ?? 0) / 1_000)
  }
  return figures
}
