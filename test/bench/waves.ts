/**
 * Waves: all devices come and go again and again. What the gateway's processes hold when all are
 * gone, after the first wave and after the last, a while later.
 */

import { until } from "../support/wait.ts"
import { type Child, startChild } from "./child.ts"
import { type BenchResult, Meter, makeBed, round } from "./harness.ts"
import { gatewaySubject } from "./subject.ts"

export interface WavesParameters {
  readonly devices: number
  readonly workers: number
  readonly waves: number
  /** How long nothing happens before memory is measured, s. */
  readonly rest: number
}

const LIMIT_MS = 120_000

export async function waves(parameters: WavesParameters): Promise<BenchResult> {
  const { devices, workers, waves, rest } = parameters
  const bed = await makeBed({ WORKERS: String(workers), DEVICE_HOST: "0.0.0.0" })
  const subject = gatewaySubject(bed.gateway)
  const each = Math.ceil(devices / workers)
  const crowds = Array.from({ length: workers }, (_, at) =>
    startChild("crowd.ts", { port: subject.port, connections: each, first: at * each, hosts: 2 }),
  )
  let hosts = 0
  try {
    await bed.gateway.ready()
    for (const crowd of crowds) await crowd.told("ready")
    const meter = new Meter(subject.pids())
    const gone = async () => (await subject.open?.()) === 0
    const wave = async () => {
      await Promise.all(
        crowds.map(async (crowd: Child) => {
          // A closed connection keeps its port for a minute.
          hosts += 2
          crowd.say(`connect ${each} 127.0.0.${hosts}`)
          const { connected } = await crowd.told("connected")
          if (connected !== each) throw new Error(`${connected} of ${each} connected`)
          crowd.say("close")
          await crowd.told("closed")
        }),
      )
      await until(gone, { what: "all to be gone", timeoutMs: LIMIT_MS })
    }
    const rested = async () => {
      await Bun.sleep(rest * 1000)
      return meter.resident()
    }
    await wave()
    const afterFirst = await rested()
    for (let at = 1; at < waves; at += 1) await wave()
    const afterLast = await rested()
    meter.stop()
    const inMb = (bytes: number) => round(bytes / 1e6)
    return {
      bench: "waves",
      parameters: { ...parameters },
      figures: {
        "resident before, all processes, MB": inMb(meter.before),
        "resident at its most, MB": inMb(meter.peak),
        "resident after the first wave and a rest, MB": inMb(afterFirst),
        "resident after the last wave and a rest, MB": inMb(afterLast),
        "after the first to before, ratio": round(afterFirst / meter.before),
        "after the last to after the first, ratio": round(afterLast / afterFirst),
      },
    }
  } finally {
    for (const crowd of crowds) await crowd.stop()
    await bed.stop()
  }
}
