/**
 * The state of an instance at one moment, as the operator page shows it: plain data for JSON, made
 * from the snapshots of all its processes. Pure.
 */

import type { GateState } from "../../fleet/gate.ts"
import type { Gathered, Snapshot, WorkerReport } from "../../process/control.ts"
import type { LabelledCounts, LabelledSample, Sample } from "../../process/samples.ts"
import { shownGate } from "../rules.ts"

export interface WorkerState {
  readonly worker: string
  readonly pid: number
  readonly state: WorkerReport["state"]
  readonly broker: WorkerReport["broker"]
  readonly connections: number
  readonly waiting: number
  readonly handshakes_per_s: number
  readonly estimated_wait_ms: number | null
  /** The reason for which it refuses new devices; null when it does not. */
  readonly refusing: string | null
  readonly consuming_paused: boolean
  readonly resident_bytes: number | null
  readonly lines_per_s: number | null
  /** The number of cores that it uses. */
  readonly cpu: number | null
  /** By how much its event loop is late, of the slowest hundredth. */
  readonly lag_p99_ms: number | null
  /** Milliseconds since 1970: later than the others after it was replaced. */
  readonly started_at: number | null
  /** How often it was replaced since the start of the instance. */
  readonly restarts: number
}

export interface InstanceState {
  /** Milliseconds since 1970. */
  readonly at: number
  readonly uptime_s: number
  readonly sample: Sample
  /** Commands by outcome. */
  readonly commands: LabelledCounts
  /** Ended connections by reason. */
  readonly closed: LabelledCounts
  /** Those that have answered, sorted by name. */
  readonly workers: readonly WorkerState[]
  /** How many there should be. */
  readonly workers_expected: number
  /** The publish windows of all workers together. */
  readonly window_limit: number
  /** The time until the last waiting device is connected; null while it is unknown. */
  readonly estimated_wait_ms: number | null
  readonly draining: { readonly closed: number; readonly left: number } | null
  readonly gate: ReturnType<typeof shownGate>
  readonly bans: number
  /** When the certificate of the device port expires; null when it is not known. */
  readonly certificate_not_after: number | null
}

export interface InstanceFacts {
  readonly atMs: number
  readonly startedAtMs: number
  readonly workers: number
  /** Of one worker. */
  readonly windowLines: number
  readonly gate: GateState
  readonly bans: number
}

const CERTIFICATE = "owsla_certificate_not_after_seconds"
const STARTED = "process_start_time_seconds"

/** @param sampleOf the sample of one worker alone. */
export function instanceState(
  { snapshots, restarts }: Pick<Gathered, "snapshots" | "restarts">,
  { sample, commands, closed }: LabelledSample,
  sampleOf: (worker: string, metrics: Snapshot["metrics"]) => Sample,
  facts: InstanceFacts,
): InstanceState {
  const workers = snapshots.flatMap(({ report, metrics }) => {
    if (report === null) return []
    const sample = sampleOf(report.worker, metrics)
    return [workerState(report, metrics, sample, restarts[report.worker] ?? 0)]
  })
  workers.sort((a, b) => a.worker.localeCompare(b.worker, "en", { numeric: true }))
  const drains = snapshots.flatMap(({ report }) => report?.drain ?? [])
  const ends = snapshots.flatMap((snapshot) => valuesOf(snapshot, CERTIFICATE))
  const waits = workers.map(({ estimated_wait_ms }) => estimated_wait_ms)
  return {
    at: facts.atMs,
    uptime_s: Math.floor((facts.atMs - facts.startedAtMs) / 1_000),
    sample,
    commands,
    closed,
    workers,
    workers_expected: facts.workers,
    window_limit: facts.windowLines * facts.workers,
    estimated_wait_ms: waits.includes(null) ? null : Math.max(0, ...waits.map(Number)),
    draining:
      drains.length === 0
        ? null
        : {
            closed: drains.reduce((sum, { closed }) => sum + closed, 0),
            left: drains.reduce((sum, { left }) => sum + left, 0),
          },
    gate: shownGate(facts.gate),
    bans: facts.bans,
    certificate_not_after: ends.length === 0 ? null : Math.min(...ends) * 1_000,
  }
}

function workerState(
  report: WorkerReport,
  metrics: Snapshot["metrics"],
  sample: Sample,
  restarts: number,
): WorkerState {
  const { worker, pid, state, broker, connections, admission, refusing, consuming_paused } = report
  const { waiting, handshakes_per_s, estimated_wait_ms } = admission
  const { resident_bytes, lines_per_s, cpu, lag_p99_ms } = sample
  const [startedS] = valuesOf({ report, metrics }, STARTED)
  return {
    ...{ worker, pid, state, broker, connections, refusing, consuming_paused },
    ...{ waiting, handshakes_per_s, estimated_wait_ms },
    ...{ resident_bytes, lines_per_s, cpu, lag_p99_ms },
    started_at: startedS === undefined ? null : startedS * 1_000,
    restarts,
  }
}

function valuesOf({ metrics }: Snapshot, name: string): number[] {
  const found = metrics.find((metric) => metric.name === name)
  return found === undefined ? [] : found.values.map(({ value }) => value)
}
