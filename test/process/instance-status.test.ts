/** The status line of an instance: sums over its workers, and the rate since the line before. */

import { expect, test } from "bun:test"
import type { WorkerReport } from "../../src/process/control.ts"
import { InstanceStatus } from "../../src/process/instance-status.ts"

function report(options: Partial<WorkerReport>): WorkerReport {
  return {
    worker: "gw1.0",
    pid: 1,
    state: "serving",
    broker: { kind: "ready" },
    connections: 0,
    drain: null,
    consuming_paused: false,
    refusing: null,
    admission: {
      waiting: 0,
      handshakes_per_s: 0,
      handshakes_in_progress: 0,
      handshake_limit: 1,
      estimated_wait_ms: 0,
    },
    ...options,
  }
}

test("before a worker has reported there are no devices and no broker", () => {
  const line = new InstanceStatus().line({ reports: [], linesConfirmed: 0, workers: 2 }, 5_000)
  expect(line).toBe("0 devices, 0 lines/s, broker ready in 0 of 2 workers")
})

test("devices are summed over the workers, and lines are those since the line before", () => {
  const status = new InstanceStatus()
  const reports = [
    report({ connections: 3 }),
    report({ connections: 4, broker: { kind: "away", reason: "ECONNREFUSED" } }),
  ]
  status.line({ reports, linesConfirmed: 1_000, workers: 2 }, 5_000)
  const line = status.line({ reports, linesConfirmed: 1_300, workers: 2 }, 7_000)
  expect(line).toBe("7 devices, 150 lines/s, broker ready in 1 of 2 workers")
})

test("a drain is said first", () => {
  const drain = { closed: 2, left: 1, ends_at: 0 }
  const summary = { reports: [report({ connections: 1, drain })], linesConfirmed: 0, workers: 1 }
  expect(new InstanceStatus().line(summary, 0)).toStartWith("draining, 1 devices, ")
})
