/**
 * Lines from devices to a confirmed place in RabbitMQ: CPU for each, memory, and with `paused` the
 * broker stopped half of the time, so that devices are faster than it by far.
 */

import { until } from "../support/wait.ts"
import { BackEnd, type BenchResult, LineLedger, Meter, makeBed, startHerd } from "./harness.ts"

export interface LinesParameters {
  readonly connections: number
  readonly linesEach: number
  readonly lineBytes: number
}

const LIMIT_MS = 300_000
const PAUSE_MS = 250

export async function lines(parameters: LinesParameters, paused: boolean): Promise<BenchResult> {
  const { connections, linesEach, lineBytes } = parameters
  const total = connections * linesEach
  const bed = await makeBed()
  const backEnd = await BackEnd.connect(bed.broker.url)
  try {
    await bed.gateway.ready()
    const ledger = new LineLedger()
    await backEnd.consume(bed.queues.fromDevice, (message) => ledger.take(message))
    const port = bed.gateway.devicePort
    const herd = await startHerd({ port, connections, linesEach, lineBytes })
    const meter = new Meter(bed.gateway)
    herd.go()
    const pausing = paused ? pauseNowAndThen(bed.broker) : null
    await until(() => ledger.count >= total, { what: `${total} lines`, timeoutMs: LIMIT_MS })
    const figures = meter.stop(total)
    pausing?.()
    herd.stop()
    if (ledger.count !== total || ledger.disorder > 0) {
      throw new Error(`${ledger.count} of ${total} lines, ${ledger.disorder} out of order`)
    }
    return { bench: paused ? "lines-slow-broker" : "lines", parameters: { ...parameters }, figures }
  } finally {
    backEnd.close()
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
  const timer = setInterval(turn, PAUSE_MS)
  return () => {
    clearInterval(timer)
    if (paused) turn()
  }
}
