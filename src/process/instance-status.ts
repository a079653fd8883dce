/**
 * The state of the instance in one line, for `systemctl status`:
 *
 *   1204 devices, 310 lines/s, broker ready in 2 of 2 workers
 *
 * Pure: takes the last reports of the workers, the count of lines and the time. The rate is the
 * mean since the line before. Bound: one count and its time.
 */

import type { WorkerReport } from "./control.ts"

export interface InstanceSummary {
  /** The last report of each running worker that has sent one. */
  readonly reports: readonly WorkerReport[]
  readonly linesConfirmed: number
  /** Workers that the instance should have. */
  readonly workers: number
}

export class InstanceStatus {
  #linesConfirmed = 0
  #atMs: number | null = null

  /** @param nowMs of a clock that never goes back. */
  line({ reports, linesConfirmed, workers }: InstanceSummary, nowMs: number): string {
    const sinceS = this.#atMs === null ? 0 : (nowMs - this.#atMs) / 1_000
    const perS = sinceS > 0 ? Math.round((linesConfirmed - this.#linesConfirmed) / sinceS) : 0
    this.#linesConfirmed = linesConfirmed
    this.#atMs = nowMs
    const devices = reports.reduce((sum, { connections }) => sum + connections, 0)
    const ready = reports.filter(({ broker }) => broker.kind === "ready").length
    const isDraining = reports.some(({ drain }) => drain !== null)
    return [
      ...(isDraining ? ["draining"] : []),
      `${devices} devices`,
      `${perS} lines/s`,
      `broker ready in ${ready} of ${workers} workers`,
    ].join(", ")
  }
}
