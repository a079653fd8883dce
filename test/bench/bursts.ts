/**
 * Bursts of lines far faster than the broker takes them, since it is stopped every other quarter of
 * a second: what one worker holds in memory meanwhile and after.
 */

import { until } from "../support/wait.ts"
import { type BenchResult, Meter, makeBedWithBackEnd, round, startHerd } from "./harness.ts"

export interface BurstsParameters {
  readonly bursts: number
  readonly connections: number
  readonly linesEach: number
  readonly lineBytes: number
}

const LIMIT_MS = 300_000
const PAUSE_MS = 250

export async function bursts(parameters: BurstsParameters): Promise<BenchResult> {
  const { bursts, connections, linesEach, lineBytes } = parameters
  const total = connections * linesEach
  const bed = await makeBedWithBackEnd({ WORKERS: "1" })
  const { ledger } = bed
  try {
    const meter = new Meter([...bed.gateway.workers().values()])
    const after: number[] = []
    for (let burst = 1; burst <= bursts; burst += 1) {
      const herd = await startHerd({
        port: bed.gateway.devicePort,
        ...{ connections, linesEach, lineBytes },
      })
      herd.go()
      const run = pauseNowAndThen(bed.broker)
      const all = () => ledger.count >= burst * total
      await until(all, { what: `${total} lines`, timeoutMs: LIMIT_MS }).finally(run)
      after.push(meter.resident())
      herd.stop()
    }
    meter.stop()
    if (ledger.count !== bursts * total || ledger.disorder > 0) {
      throw new Error(`${ledger.count} lines, ${ledger.disorder} out of order`)
    }
    return {
      bench: "bursts",
      parameters: { ...parameters },
      figures: {
        "worker before, MB": round(meter.before / 1e6),
        "worker after the first burst, MB": round((after[0] ?? Number.NaN) / 1e6),
        "worker after the last burst, MB": round((after.at(-1) ?? Number.NaN) / 1e6),
        "worker at its most, MB": round(meter.peak / 1e6),
        "CPU a line, us": round((meter.cpu / (bursts * total)) * 1e6),
      },
    }
  } finally {
    await bed.stop()
  }
}

/** Returns how to end it, with the broker running. */
function pauseNowAndThen(broker: { pause(): void; resume(): void }): () => void {
  let paused = false
  const turn = () => {
    if (paused) broker.resume()
    else broker.pause()
    paused = !paused
  }
  turn()
  const timer = setInterval(turn, PAUSE_MS)
  return () => {
    clearInterval(timer)
    if (paused) turn()
  }
}
