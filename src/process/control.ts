/**
 * The messages between supervisor and workers: JSON, one closed list for each direction. Types
 * only.
 */

import type { Config } from "../config/config.ts"
import type { CloseReason } from "../device/close-reason.ts"
import type { AdmissionReport } from "../device/handshakes.ts"
import type { ListenerTls } from "../device/tls-port.ts"
import type { RulesContent } from "../fleet/admission-rules.ts"
import type { LogEntry, NumberedEntry, RecentEntries } from "../log-entry.ts"
import type { MetricsSnapshot } from "../ops/metrics.ts"
import type { SampleColumns } from "./samples.ts"

/** The status of one worker. */
export interface WorkerReport {
  readonly worker: string
  readonly pid: number
  /** drained: it has no devices left and takes none, until `DELETE /drain`. */
  readonly state: "serving" | "draining" | "drained"
  /** The state of the broker and, unless it is ready, the reason. */
  readonly broker: {
    readonly kind: "away" | "blocked" | "ready" | "closed"
    readonly reason?: string
  }
  readonly connections: number
  /** How far a drain is; null while there is none. */
  readonly drain: {
    readonly closed: number
    readonly left: number
    /** When it should be over at the latest, milliseconds since 1970. */
    readonly ends_at: number
  } | null
  readonly admission: AdmissionReport
  /**
   * True while unacknowledged commands fill `MAX_COMMAND_BYTES` and no other commands are consumed.
   */
  readonly consuming_paused: boolean
  /** The reason for which new devices are refused now; null when they are not. */
  readonly refusing: CloseReason | null
}

export interface Snapshot {
  /** Null for the supervisor, and for workers that have died or do not answer. */
  readonly report: WorkerReport | null
  readonly metrics: MetricsSnapshot
}

/** What any worker can report for the whole instance. */
export interface Gathered {
  readonly snapshots: readonly Snapshot[]
  /**
   * How often each worker was replaced since the start of the instance, by worker id. A worker that
   * was never replaced is absent.
   */
  readonly restarts: Readonly<Record<string, number>>
  /** The last 15 minutes; null unless they were asked for. */
  readonly history: SampleColumns | null
}

/** The log, from a worker; see `worker-log.ts`. `missed` entries were dropped. */
export type LogToSupervisor =
  | { readonly kind: "log"; readonly entries: readonly LogEntry[]; readonly missed: number }
  /** The worker gets the entries of the instance from now on; false: no more. */
  | { readonly kind: "follow"; readonly on: boolean }
  /** Acknowledges "events". */
  | { readonly kind: "events_taken" }
  | { readonly kind: "recent_wanted"; readonly id: number }

/** The log, to a worker. */
export type LogToWorker =
  /** Acknowledges "log". */
  | { readonly kind: "log_taken" }
  | { readonly kind: "events"; readonly entries: readonly NumberedEntry[]; readonly missed: number }
  | { readonly kind: "recent"; readonly id: number; readonly recent: RecentEntries }

export type ToSupervisor =
  | LogToSupervisor
  | { readonly kind: "listening"; readonly devicePort: number; readonly httpPort: number }
  /** The worker cannot serve, and another attempt would fail too. */
  | { readonly kind: "unable"; readonly message: string }
  /** The gate and bans, after each change. */
  | { readonly kind: "rules"; readonly rules: readonly RulesContent[] }
  /** All workers of the instance must close their devices and take none; false: take them again. */
  | { readonly kind: "empty"; readonly on: boolean }
  /** Requests the snapshots of all workers, and the history of the instance when it is wanted. */
  | { readonly kind: "gather"; readonly id: number; readonly history: boolean }
  | { readonly kind: "snapshot"; readonly id: number; readonly snapshot: Snapshot }
  /** Acknowledges a part of the denylist. */
  | { readonly kind: "denylist_taken" }

/**
 * The first message: the configuration, the certificate and the keys of tokens, as the supervisor
 * has read and checked them. A worker reads no files, since a file could be missing or invalid when
 * the worker is replaced later.
 */
export interface WorkerOrders {
  readonly kind: "serve"
  readonly config: Config
  readonly tls: ListenerTls
  /** The text of `TOKEN_KEYS_FILE`; null unless devices identify themselves by tokens. */
  readonly tokenKeys: string | null
  /** The gate and bans; null when the instance does not know them yet. */
  readonly rules: readonly RulesContent[] | null
}

/**
 * A part of the denylist; see `denylist-feed.ts`. With `DENYLIST_FILE` no device is admitted before
 * the first list is complete.
 */
export interface DenylistPart {
  /** The list starts again, empty. */
  readonly reset: boolean
  readonly add: readonly string[]
  readonly remove: readonly string[]
  /** With this part the list is complete and applies. */
  readonly isComplete: boolean
}

export type ToWorker =
  | LogToWorker
  | WorkerOrders
  | { readonly kind: "certificate"; readonly tls: ListenerTls }
  | { readonly kind: "denylist"; readonly part: DenylistPart }
  /** The new text of `TOKEN_KEYS_FILE`. */
  | { readonly kind: "token_keys"; readonly text: string }
  | { readonly kind: "drain" }
  | { readonly kind: "empty"; readonly on: boolean }
  | { readonly kind: "snapshot_wanted"; readonly id: number }
  | { readonly kind: "gathered"; readonly id: number; readonly gathered: Gathered }

/** After this time the supervisor answers without the missing snapshots. */
export const GATHER_TIMEOUT_MS = 500
