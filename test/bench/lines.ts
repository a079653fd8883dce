/**
 * Lines from devices to a confirmed place in RabbitMQ: CPU for each, beside a bare TLS server that
 * only counts the bytes of the same lines, in turn (A B A B) in one run. The first wave of each
 * only warms the engine up.
 */

import { residentBytes } from "../support/gateway.ts"
import { until } from "../support/wait.ts"
import {
  type BenchResult,
  Meter,
  makeBedWithBackEnd,
  median,
  ratio,
  round,
  startHerd,
} from "./harness.ts"
import {
  type Beside,
  bareServer,
  besideSubject,
  gatewaySubject,
  type Subject,
  untilIdle,
} from "./subject.ts"

export interface LinesParameters {
  readonly connections: number
  readonly linesEach: number
  readonly lineBytes: number
  readonly rounds: number
}

interface Wave {
  readonly cpuUs: number
  readonly perSecond: number
  readonly driver: number
}

const LIMIT_MS = 300_000
/** A process that used less than this of a core for `QUIET_MS` has no more to read. */
const QUIET_SHARE = 0.05
const QUIET_MS = 400

export async function lines(
  parameters: LinesParameters,
  beside: Beside | null,
): Promise<BenchResult> {
  const { connections, linesEach, lineBytes, rounds } = parameters
  const total = connections * linesEach
  const bare = await bareServer()
  const bed = await makeBedWithBackEnd()
  const { ledger } = bed
  try {
    const gateway = gatewaySubject(bed.gateway)
    const arrived = new Map<Subject, () => number | Promise<number>>([
      [gateway, () => ledger.count * (lineBytes + 1)],
      [bare, bare.bytes],
    ])
    const subjects = [gateway, bare, ...(beside === null ? [] : [besideSubject(beside)])]
    const waves = new Map<Subject, Wave[]>(subjects.map((subject) => [subject, []]))
    for (let at = -1; at < rounds; at += 1) {
      for (const subject of subjects) {
        const bytes = arrived.get(subject) ?? null
        const before = (await bytes?.()) ?? 0
        const { port } = subject
        const herd = await startHerd({ port, connections, linesEach, lineBytes })
        const meter = new Meter(subject.pids(), [herd.pid])
        herd.go()
        if (bytes === null) {
          await herd.sent()
          await quiet(subject)
        } else {
          const all = async () => (await bytes()) - before >= total * (lineBytes + 1)
          await until(all, { what: `${total} lines`, timeoutMs: LIMIT_MS })
        }
        const { cpu, seconds, driver } = meter
        meter.stop()
        herd.stop()
        if (at < 0) continue
        const wave = { cpuUs: (cpu / total) * 1e6, perSecond: total / seconds, driver }
        waves.get(subject)?.push(wave)
      }
    }
    if (ledger.count !== total * (rounds + 1) || ledger.disorder > 0) {
      throw new Error(`${ledger.count} lines, ${ledger.disorder} out of order`)
    }
    const of = (subject: Subject, what: keyof Wave) =>
      median(waves.get(subject)?.map((wave) => wave[what]) ?? [])
    const figures: Record<string, number> = {
      "CPU a line, us": round(of(gateway, "cpuUs")),
      "rate, 1/s": Math.round(of(gateway, "perSecond")),
      "busiest driver, share of a core": round(of(gateway, "driver")),
      "largest process after it, MB": round(Math.max(...gateway.pids().map(residentBytes)) / 1e6),
    }
    for (const subject of subjects.slice(1)) {
      figures[`CPU a line, ${subject.name}, us`] = round(of(subject, "cpuUs"))
    }
    const toBare = ratio("CPU ratio to bare", of(gateway, "cpuUs"), of(bare, "cpuUs"))
    return { bench: "lines", parameters: { ...parameters }, figures: { ...figures, ...toBare } }
  } finally {
    await bare.stop()
    await bed.stop()
  }
}

/** For a server that can't be asked: it has read what was sent when it does nothing more. */
function quiet(subject: Subject): Promise<void> {
  return untilIdle(subject.pids(), { share: QUIET_SHARE, forMs: QUIET_MS, timeoutMs: LIMIT_MS })
}
