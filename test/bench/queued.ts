/**
 * What a command costs by how many wait in the queue: one at a time, a few, and very many, which
 * the gateway finds when it goes on after it was stopped. In turn, in one run; the first wave only
 * warms the engine up.
 */

import { until } from "../support/wait.ts"
import {
  type BenchResult,
  type Herd,
  Meter,
  makeBedWithBackEnd,
  median,
  ratio,
  round,
  startKnownHerd,
} from "./harness.ts"
import { processIds } from "./subject.ts"

export interface QueuedParameters {
  readonly connections: number
  readonly few: number
  readonly many: number
  readonly rounds: number
}

const LIMIT_MS = 120_000

export async function queued(parameters: QueuedParameters): Promise<BenchResult> {
  const { connections, few, many, rounds } = parameters
  const bed = await makeBedWithBackEnd({ WORKERS: "1" })
  const { ledger } = bed
  try {
    const herd = await startKnownHerd(bed, connections)
    const pids = processIds(bed.gateway)
    const numbers = new Map(ledger.connectionIds.map((id) => [id, 0]))
    let sent = 0

    /** CPU for each of so many that are found in the queue at once, us. */
    const cost = async (count: number): Promise<number> => {
      const messages = commandsFor(numbers, count)
      const meter = new Meter(pids)
      for (const pid of pids) process.kill(pid, "SIGSTOP")
      await bed.backEnd.publishAll(bed.queues.toDevice, messages)
      for (const pid of pids) process.kill(pid, "SIGCONT")
      sent += count
      await arrived(herd, sent)
      const { cpu } = meter
      meter.stop()
      return (cpu / count) * 1e6
    }

    await cost(many)
    const measured: Record<"few" | "many", number[]> = { few: [], many: [] }
    for (let at = 0; at < rounds; at += 1) {
      // As many commands either way.
      const several: number[] = []
      for (let done = 0; done < many; done += few) several.push(await cost(few))
      measured.few.push(several.reduce((a, b) => a + b, 0) / several.length)
      measured.many.push(await cost(many))
    }
    const status = await herd.status()
    herd.stop()
    if (status.received !== sent || status.disorder > 0 || status.failed > 0) {
      throw new Error(`of ${sent} commands: ${JSON.stringify(status)}`)
    }
    const [fewUs, manyUs] = [median(measured.few), median(measured.many)]
    return {
      bench: "commands-queued",
      parameters: { ...parameters },
      figures: {
        "CPU a command, few queued, us": round(fewUs),
        "CPU a command, many queued, us": round(manyUs),
        ...ratio("ratio of many to few", manyUs, fewUs),
      },
    }
  } finally {
    await bed.stop()
  }
}

function arrived(herd: Herd, sent: number) {
  const all = async () => (await herd.status()).received >= sent
  return until(all, { what: `${sent} commands`, timeoutMs: LIMIT_MS })
}

/** For all connections in turn; the body has the number that the device expects. */
function commandsFor(numbers: Map<string, number>, count: number) {
  const ids = [...numbers.keys()]
  return Array.from({ length: count }, (_, n) => {
    const id = ids[n % ids.length] ?? ""
    const number = numbers.get(id) ?? 0
    numbers.set(id, number + 1)
    return { body: `${number} command`, headers: { connection_id: id } }
  })
}
