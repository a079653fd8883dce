/**
 * Numbered commands, published to `to_device` in random order and written to their devices in order,
 * whichever worker takes them and whichever holds the device.
 */

import { mulberry32 } from "../support/random.ts"
import { until } from "../support/wait.ts"
import { BackEnd, type BenchResult, LineLedger, Meter, makeBed, startHerd } from "./harness.ts"

export interface CommandsParameters {
  readonly connections: number
  readonly commandsEach: number
  readonly seed: number
}

const LIMIT_MS = 120_000

export async function commands(parameters: CommandsParameters): Promise<BenchResult> {
  const { connections, commandsEach, seed } = parameters
  const total = connections * commandsEach
  // No gap is real here: a command waits for one that is still in the queue.
  const bed = await makeBed({ SEQ_GAP_TIMEOUT_MS: "60000" })
  const backEnd = await BackEnd.connect(bed.broker.url)
  try {
    await bed.gateway.ready()
    const ledger = new LineLedger()
    await backEnd.consume(bed.queues.fromDevice, (message) => ledger.take(message))
    const port = bed.gateway.devicePort
    const herd = await startHerd({ port, connections, linesEach: 1, lineBytes: 20 })
    herd.go()
    await until(() => ledger.count === connections, { what: "every device to be known" })

    const messages = ledger.connectionIds.flatMap((connectionId) =>
      Array.from({ length: commandsEach }, (_, n) => ({
        body: `${n} command`,
        headers: { connection_id: connectionId, to_device_seq: BigInt(n) },
      })),
    )
    shuffle(messages, seed)
    const meter = new Meter(bed.gateway)
    await backEnd.publishAll(bed.queues.toDevice, messages)
    const status = await until(
      async () => {
        const status = await herd.status()
        return status.received >= total ? status : null
      },
      { what: `${total} commands`, timeoutMs: LIMIT_MS },
    )
    const figures = meter.stop(total)
    herd.stop()
    if (status.received !== total || status.disorder > 0 || status.failed > 0) {
      throw new Error(`of ${total} commands: ${JSON.stringify(status)}`)
    }
    return { bench: "commands", parameters: { ...parameters }, figures }
  } finally {
    backEnd.close()
    await bed.stop()
  }
}

/** Fisher-Yates. */
function shuffle<T>(items: T[], seed: number): void {
  const random = mulberry32(seed)
  for (let i = items.length - 1; i > 0; i -= 1) {
    const j = Math.floor(random() * (i + 1))
    const item = items[i] as T
    items[i] = items[j] as T
    items[j] = item
  }
}
