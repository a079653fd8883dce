/**
 * What supervisor and workers tell each other over the channel between them: JSON messages, one closed
 * list for each direction. Types only.
 */

import type { Config } from "../config/config.ts"
import type { CloseReason } from "../device/close-reason.ts"
import type { AdmissionReport } from "../device/handshakes.ts"
import type { ListenerTls } from "../device/listener.ts"
import type { MetricsSnapshot } from "../ops/metrics.ts"

/** What one worker says of itself. */
export interface WorkerReport {
  readonly worker: string
  readonly pid: number
  readonly state: "serving" | "draining"
  /** The broker's state and, unless it is ready, the reason. */
  readonly broker: {
    readonly kind: "away" | "blocked" | "ready" | "closed"
    readonly reason?: string
  }
  readonly connections: number
  readonly admission?: AdmissionReport
  /** True while the commands in hand fill `MAX_COMMAND_BYTES` and no further ones are taken. */
  readonly consuming_paused?: boolean
  /** Why a device that came now would be refused. */
  readonly refusing?: CloseReason | null
}

export interface Snapshot {
  /** Null: the supervisor's own, or the counters of workers that have died or do not answer. */
  readonly report: WorkerReport | null
  readonly metrics: MetricsSnapshot
}

export type ToSupervisor =
  | { readonly kind: "listening"; readonly devicePort: number; readonly httpPort: number }
  /** It cannot serve, and trying again will not help. */
  | { readonly kind: "unable"; readonly message: string }
  /** Asks for the snapshots of all. */
  | { readonly kind: "gather"; readonly id: number }
  | { readonly kind: "snapshot"; readonly id: number; readonly snapshot: Snapshot }
  /** Acknowledges a part of the denylist. */
  | { readonly kind: "denylist_taken" }

/**
 * The first message: all that a worker needs, as the supervisor read and checked it. A worker reads no file that could
 * be missing or broken by the time it is replaced.
 */
export interface WorkerOrders {
  readonly kind: "serve"
  readonly config: Config
  readonly tls: ListenerTls
}

/** A piece of the denylist; see `denylist-feed.ts`. With `DENYLIST_FILE` no device is admitted before the first list is complete. */
export interface DenylistPart {
  /** The list begins again, without lines. */
  readonly reset: boolean
  readonly add: readonly string[]
  readonly remove: readonly string[]
  /** The list is in force with this part. */
  readonly isComplete: boolean
}

export type ToWorker =
  | WorkerOrders
  | { readonly kind: "certificate"; readonly tls: ListenerTls }
  | { readonly kind: "denylist"; readonly part: DenylistPart }
  | { readonly kind: "drain" }
  | { readonly kind: "snapshot_wanted"; readonly id: number }
  | { readonly kind: "gathered"; readonly id: number; readonly snapshots: readonly Snapshot[] }

/** How long the supervisor waits for the workers' snapshots before it answers without the missing ones. */
export const GATHER_TIMEOUT_MS = 500
