/**
 * Commands from a queue to their devices: CPU for each, where the worker that takes it holds the
 * device, where another one does, and numbered ones in random order of which about half go each
 * way. Beside it, in turn (A B A B) in one run, a bare TLS server that writes as many lines to as
 * many connections. The first wave only warms the engine up.
 */

import { workerQueue } from "../../src/broker/topology.ts"
import { workerOfConnection } from "../../src/device/ids.ts"
import { mulberry32 } from "../support/random.ts"
import { until } from "../support/wait.ts"
import {
  type BenchResult,
  Meter,
  makeBedWithBackEnd,
  median,
  round,
  startHerd,
  startKnownHerd,
} from "./harness.ts"
import { bareServer, processIds } from "./subject.ts"

export interface CommandsParameters {
  readonly connections: number
  readonly commandsEach: number
  readonly rounds: number
}

export type CommandsWay = "here" | "elsewhere" | "shuffled"

interface Message {
  readonly body: string
  readonly headers: Record<string, string | bigint>
}

const LIMIT_MS = 120_000
const SEED = 1

export async function commands(
  way: CommandsWay,
  parameters: CommandsParameters,
): Promise<BenchResult> {
  const { connections, commandsEach, rounds } = parameters
  const total = connections * commandsEach
  const bare = await bareServer()
  // No gap is real here: a command waits for one that is still in the queue.
  const workers = way === "here" ? "1" : "2"
  const environment = { SEQ_GAP_TIMEOUT_MS: "60000", WORKERS: workers }
  const bed = await makeBedWithBackEnd(
    // In shuffled order the next number of a connection may come after nearly all commands of the
    // round.
    way === "shuffled" ? { ...environment, PREFETCH: "65535" } : environment,
  )
  const { ledger } = bed
  const bareHerd = await startHerd({ port: bare.port, connections, linesEach: 0, lineBytes: 20 })
  try {
    const herd = await startKnownHerd(bed, connections)

    const cpuUs: number[] = []
    const bareUs: number[] = []
    const perSecond: number[] = []
    const random = mulberry32(SEED)
    for (let at = -1; at < rounds; at += 1) {
      const messages = numbered(ledger.connectionIds, (at + 1) * commandsEach, commandsEach)
      if (way === "shuffled") shuffle(messages, random)
      const queues = byQueue(messages, way, bed.queues.toDevice)
      const meter = new Meter(processIds(bed.gateway), [process.pid])
      await Promise.all([...queues].map(([queue, some]) => bed.backEnd.publishAll(queue, some)))
      const all = async () => (await herd.status()).received >= total * (at + 2)
      await until(all, { what: `${total} commands`, timeoutMs: LIMIT_MS })
      const { cpu, seconds } = meter
      meter.stop()
      const bareMeter = new Meter(bare.pids())
      await bare.write(commandsEach)
      const bareCpu = bareMeter.cpu
      bareMeter.stop()
      if (at < 0) continue
      cpuUs.push((cpu / total) * 1e6)
      bareUs.push((bareCpu / total) * 1e6)
      perSecond.push(total / seconds)
    }
    const status = await herd.status()
    herd.stop()
    if (status.received !== total * (rounds + 1) || status.disorder > 0 || status.failed > 0) {
      throw new Error(`of ${total} commands a round: ${JSON.stringify(status)}`)
    }
    const forwarded = await bed.gateway.metric("owsla_commands_forwarded_total")
    return {
      bench: `commands-${way}`,
      parameters: { ...parameters },
      figures: {
        "CPU a command, us": round(median(cpuUs)),
        "CPU a line that a bare server writes, us": round(median(bareUs)),
        "forwarded to another worker, share": round(forwarded / (total * (rounds + 1))),
        "rate, 1/s": Math.round(median(perSecond)),
      },
    }
  } finally {
    bareHerd.stop()
    await bare.stop()
    await bed.stop()
  }
}

/** The next commands of all connections, in turn. */
function numbered(connectionIds: readonly string[], from: number, each: number): Message[] {
  const numbers = Array.from({ length: each }, (_, n) => from + n)
  return numbers.flatMap((n) =>
    connectionIds.map((connectionId) => ({
      body: `${n} command`,
      headers: { connection_id: connectionId, to_device_seq: BigInt(n) },
    })),
  )
}

/**
 * Where each is published: `elsewhere` names the queue of the worker that does not hold the device.
 */
function byQueue(
  messages: readonly Message[],
  way: CommandsWay,
  toDevice: string,
): ReadonlyMap<string, readonly Message[]> {
  if (way !== "elsewhere") return new Map([[toDevice, messages]])
  return Map.groupBy(messages, ({ headers }) => {
    const holder = workerOfConnection(String(headers["connection_id"])) ?? ""
    return workerQueue(holder.replace(/\d$/, (slot) => (slot === "0" ? "1" : "0")))
  })
}

/** Fisher-Yates. */
function shuffle<T>(items: T[], random: () => number): void {
  for (let i = items.length - 1; i > 0; i -= 1) {
    const j = Math.floor(random() * (i + 1))
    const item = items[i] as T
    items[i] = items[j] as T
    items[j] = item
  }
}
