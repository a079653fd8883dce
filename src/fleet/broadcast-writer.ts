/**
 * The broadcasts that this worker writes: to those devices that it holds at the moment at which the
 * coordinating worker asks, at its share of the rate.
 *
 *   prepare ─► prepared ──go──► writing ──all lines have outcomes──► ended ──`REMEMBER_MS`──► forgotten
 *                 │                └──stop, `MAX_WRITING_MS`─────────►│
 *                 └──cancelled, no go for `GO_TIMEOUT_MS`──► forgotten
 *
 * Once it writes, it goes on to the end, whatever happens to the coordinator. When the broker
 * delivers the message of a broadcast again, another worker coordinates it. Then a broadcast with
 * the same key goes on from where it is, or reports its outcomes, and no connection gets the line
 * twice.
 *
 * Bounds: `MAX_BROADCASTS` that have not ended, each with the connection ids of its devices;
 * `MAX_REMEMBERED` that have ended, with their counts; `MAX_LINES_A_TICK` lines in one tick of all
 * broadcasts together.
 */

import type { Counters } from "../counters.ts"
import type { Outcome } from "../device/command.ts"
import type { Connection } from "../device/connection.ts"
import type { Connections } from "../device/connections.ts"
import type { WorkerProcess } from "../device/ids.ts"
import { BroadcastCommand } from "./broadcast-command.ts"
import { BroadcastPace } from "./broadcast-pace.ts"
import {
  type Audience,
  type BroadcastRequest,
  type LineCounts,
  MAX_BROADCASTS,
  MAX_PACED_MS,
} from "./broadcast-request.ts"

/** Longer than the coordinator waits for answers and for the first report of a slow worker. */
const GO_TIMEOUT_MS = 15_000
/** The coordinator waits several times as long before it takes a worker for dead. */
const REPORT_EVERY_MS = 1_000
/** Longer than a broker needs to deliver the message of a dead worker again. */
const REMEMBER_MS = 120_000
const MAX_REMEMBERED = 64
/** After the last line was due, all sockets have accepted it or were closed long before. */
const MAX_WRITING_MS = MAX_PACED_MS + 300_000
/** A few milliseconds of writes. */
const MAX_LINES_A_TICK = 500
const MIN_WAIT_MS = 10
const MAX_WAIT_MS = 1_000

const NO_TARGETS: readonly string[] = []
const NO_LINE = new Uint8Array(0)

interface Writing {
  /** Given by the coordinator; another coordinator gives another one. */
  id: string
  /** Null when nobody waits for reports. */
  coordinator: WorkerProcess | null
  readonly key: string | null
  /** Empty once it has ended, like `targets`. */
  line: Uint8Array
  readonly supersedeKey: string | null
  readonly matched: number
  /** Connection ids, which hold no connection in memory. */
  targets: readonly string[]
  next: number
  readonly outcomes: Record<string, number>
  settled: number
  pace: BroadcastPace | null
  state: "prepared" | "writing" | "ended"
  /** When it entered its state. */
  sinceMs: number
  reportedAtMs: number
}

/** What a worker reports to the coordinator. */
export interface BroadcastReport {
  readonly id: string
  readonly outcomes: LineCounts
  readonly ended: boolean
}

export interface BroadcastWriterOptions {
  readonly steadyMs: () => number
  readonly counters: Pick<Counters, "commandsSettled">
  /** @param gone to be called when the coordinator's process has ended. */
  readonly report: (to: WorkerProcess, report: BroadcastReport, gone: () => void) => void
}

export class BroadcastWriter {
  readonly #connections: Pick<Connections, "find" | "forEach">
  readonly #options: BroadcastWriterOptions
  /** In the order in which they were prepared. */
  readonly #all = new Set<Writing>()
  #timer: ReturnType<typeof setTimeout> | null = null

  constructor(connections: Pick<Connections, "find" | "forEach">, options: BroadcastWriterOptions) {
    this.#connections = connections
    this.#options = options
  }

  /**
   * Finds the devices of a broadcast.
   *
   * @param key of the message of the broadcast; null when it cannot be delivered again.
   * @param again whether the message may have been delivered before.
   * @returns null when there is no room.
   */
  prepare(
    id: string,
    coordinator: WorkerProcess,
    request: Omit<BroadcastRequest, "perS">,
    key: string | null,
    again: boolean,
  ): { readonly matched: number; readonly outcomes: LineCounts } | null {
    const steadyMs = this.#options.steadyMs()
    const known = again && key !== null ? this.#withKey(key) : undefined
    if (known !== undefined) {
      Object.assign(known, { id, coordinator, reportedAtMs: steadyMs })
      if (known.state === "prepared") known.sinceMs = steadyMs
      return known
    }
    if (this.#count("prepared") + this.#count("writing") >= MAX_BROADCASTS) return null
    const targets = this.#targetsOf(request.audience)
    const { line, supersedeKey } = request
    const writing: Writing = {
      ...{ id, coordinator, key, line, supersedeKey, targets },
      ...{ matched: targets.length, next: 0, outcomes: {}, settled: 0, pace: null },
      ...{ state: "prepared", sinceMs: steadyMs, reportedAtMs: steadyMs },
    }
    this.#all.add(writing)
    return writing
  }

  /** @param perS the share of this worker. */
  go(id: string, coordinator: WorkerProcess, perS: number): void {
    const writing = this.#find(id, coordinator)
    if (writing === undefined || writing.state === "ended") return
    const steadyMs = this.#options.steadyMs()
    writing.pace = new BroadcastPace(perS, steadyMs)
    if (writing.state === "prepared") this.#enter(writing, "writing")
    this.#endIfSettled(writing)
    this.#schedule()
  }

  /** The coordinator waits for no more reports. Cancels a broadcast that is not being written. */
  coordinated(id: string, coordinator: WorkerProcess): void {
    const writing = this.#find(id, coordinator)
    if (writing === undefined) return
    writing.coordinator = null
    if (writing.state === "prepared") this.#all.delete(writing)
  }

  /** To be called periodically. */
  sweep(): void {
    const steadyMs = this.#options.steadyMs()
    let remembered = this.#count("ended")
    for (const writing of this.#all) {
      const { state, coordinator } = writing
      const inStateMs = steadyMs - writing.sinceMs
      if (state === "prepared" && inStateMs >= GO_TIMEOUT_MS) this.#all.delete(writing)
      if (state === "writing" && inStateMs >= MAX_WRITING_MS) this.#end(writing)
      if (state !== "prepared" && steadyMs - writing.reportedAtMs >= REPORT_EVERY_MS) {
        this.#report(writing)
      }
      if (state !== "ended") continue
      // The report may have been lost, so it is repeated while the coordinator may wait for it.
      const isOver = inStateMs >= REMEMBER_MS || (writing.key === null && coordinator === null)
      if (!isOver && remembered <= MAX_REMEMBERED) continue
      this.#all.delete(writing)
      remembered -= 1
    }
  }

  /** Writes no more lines. */
  stop(): void {
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.#timer = null
    for (const writing of this.#all) if (writing.state !== "ended") this.#end(writing)
  }

  #count(state: Writing["state"]): number {
    let count = 0
    for (const writing of this.#all) if (writing.state === state) count += 1
    return count
  }

  #find(id: string, { worker, incarnation }: WorkerProcess): Writing | undefined {
    for (const writing of this.#all) {
      const { coordinator } = writing
      if (writing.id !== id || coordinator?.worker !== worker) continue
      return coordinator.incarnation === incarnation ? writing : undefined
    }
    return undefined
  }

  #withKey(key: string): Writing | undefined {
    let last: Writing | undefined
    for (const writing of this.#all) if (writing.key === key) last = writing
    return last
  }

  #targetsOf(audience: Audience): string[] {
    if (audience.kind === "ids") {
      const found = audience.ids.map((id) => this.#connections.find(id)?.id)
      return [...new Set(found.filter((id) => id !== undefined))]
    }
    const prefix = audience.kind === "all" ? "" : audience.prefix
    const targets: string[] = []
    this.#connections.forEach((connection) => {
      if (isNamed(connection, prefix)) targets.push(connection.id)
    })
    return targets
  }

  readonly #tick = (): void => {
    this.#timer = null
    const steadyMs = this.#options.steadyMs()
    const writing = [...this.#all].filter(hasLines)
    const max = Math.ceil(MAX_LINES_A_TICK / writing.length)
    for (const each of writing) {
      const left = each.targets.length - each.next
      const due = each.pace?.due(Math.min(max, left), steadyMs) ?? 0
      for (let n = 0; n < due; n += 1) this.#writeNext(each)
    }
    this.#schedule()
  }

  #schedule(): void {
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.#timer = null
    const steadyMs = this.#options.steadyMs()
    let waitMs = Number.POSITIVE_INFINITY
    for (const writing of this.#all) {
      if (!hasLines(writing)) continue
      waitMs = Math.min(waitMs, writing.pace?.waitMs(steadyMs) ?? MAX_WAIT_MS)
    }
    if (waitMs === Number.POSITIVE_INFINITY) return
    this.#timer = setTimeout(this.#tick, Math.min(MAX_WAIT_MS, Math.max(MIN_WAIT_MS, waitMs)))
  }

  #writeNext(writing: Writing): void {
    const target = writing.targets[writing.next] ?? ""
    writing.next += 1
    const settle = (outcome: Outcome) => this.#settled(writing, outcome)
    const connection = this.#connections.find(target)
    if (connection === undefined) settle("closed")
    else connection.offer(new BroadcastCommand(writing.line, writing.supersedeKey, settle))
  }

  #settled(writing: Writing, outcome: Outcome): void {
    this.#options.counters.commandsSettled[outcome] += 1
    writing.outcomes[outcome] = (writing.outcomes[outcome] ?? 0) + 1
    writing.settled += 1
    this.#endIfSettled(writing)
  }

  #endIfSettled(writing: Writing): void {
    if (writing.state === "writing" && writing.settled === writing.matched) this.#end(writing)
  }

  #end(writing: Writing): void {
    this.#enter(writing, "ended")
    writing.targets = NO_TARGETS
    writing.line = NO_LINE
    this.#report(writing)
  }

  #enter(writing: Writing, state: Writing["state"]): void {
    writing.state = state
    writing.sinceMs = this.#options.steadyMs()
  }

  #report(writing: Writing): void {
    const { id, coordinator, outcomes, state } = writing
    if (coordinator === null) return
    writing.reportedAtMs = this.#options.steadyMs()
    const report = { id, outcomes: { ...outcomes }, ended: state === "ended" }
    this.#options.report(coordinator, report, () => {
      if (writing.coordinator === coordinator) writing.coordinator = null
    })
  }
}

function hasLines({ state, next, targets }: Writing): boolean {
  return state === "writing" && next < targets.length
}

function isNamed({ state, endpoint }: Connection, prefix: string): boolean {
  return state === "open" && endpoint?.recipient.deviceId.startsWith(prefix) === true
}
