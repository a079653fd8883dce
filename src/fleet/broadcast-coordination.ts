/**
 * One broadcast, as the worker sees it that coordinates it: which workers take part, and what they
 * have reported. Pure: the time is passed in.
 *
 *   matching ──all have answered, or `MATCH_TIMEOUT_MS`──► writing ──all have ended──► ended
 *
 * A worker that answers too late, or not at all because it is of an earlier version, does not take
 * part. A worker that reports nothing for `SILENT_MS` counts as ended, with the rest of its devices
 * unfinished. Bound: the number of workers.
 */

import type { WorkerProcess } from "../device/ids.ts"
import { sharesOf } from "./broadcast-pace.ts"
import { type BroadcastCounts, type LineCounts, MAX_PACED_MS, sumOf } from "./broadcast-request.ts"

const MATCH_TIMEOUT_MS = 1_000
/** Several times the interval of reports. */
const SILENT_MS = 10_000
/** After the last line was due: longer than a socket may take to accept it. */
const MAX_LATE_MS = 300_000

interface Participant {
  readonly member: WorkerProcess
  readonly matched: number
  outcomes: LineCounts
  heardAtMs: number
  ended: boolean
}

export interface Share {
  readonly member: WorkerProcess
  /** Lines a second. */
  readonly perS: number
}

export class BroadcastCoordination {
  readonly #perS: number
  readonly #startedAtMs: number
  readonly #awaited: Set<string>
  readonly #participants = new Map<string, Participant>()
  #state: "matching" | "writing" | "ended" = "matching"
  #isBusy = false

  /** @param awaited the workers whose answers are awaited. */
  constructor(perS: number, awaited: readonly string[], steadyMs: number) {
    this.#perS = perS
    this.#startedAtMs = steadyMs
    this.#awaited = new Set(awaited)
  }

  get state(): "matching" | "writing" | "ended" {
    return this.#state
  }

  /** A worker has no room for another broadcast. */
  get isBusy(): boolean {
    return this.#isBusy
  }

  /** Why the broadcast must not be written; null when it may. */
  get fault(): string | null {
    const paceMs = (this.#left() / this.#perS) * 1_000
    if (paceMs <= MAX_PACED_MS) return null
    const maxS = MAX_PACED_MS / 1_000
    return `${this.#left()} lines take ${Math.ceil(paceMs / 1_000)} s at per_s, at most ${maxS} s are allowed`
  }

  /**
   * A worker answers how many of its devices match.
   * @param matched null when it has no room for another broadcast.
   * @param outcomes of lines that it has written before this worker became the coordinator.
   */
  answered(
    member: WorkerProcess,
    matched: number | null,
    outcomes: LineCounts,
    steadyMs: number,
  ): void {
    if (this.#state !== "matching" || !this.#awaited.delete(member.worker)) return
    if (matched === null) this.#isBusy = true
    else {
      const ended = sumOf(outcomes) >= matched
      const heardAtMs = steadyMs
      this.#participants.set(member.worker, { member, matched, outcomes, heardAtMs, ended })
    }
  }

  /** Whether no more answers are awaited. */
  isMatched(steadyMs: number): boolean {
    return this.#awaited.size === 0 || steadyMs - this.#startedAtMs >= MATCH_TIMEOUT_MS
  }

  /** Ends the matching. @returns the shares of the workers that have lines to write. */
  begin(steadyMs: number): Share[] {
    this.#state = "writing"
    const writing = [...this.#participants.values()].filter(({ ended }) => !ended)
    for (const participant of writing) participant.heardAtMs = steadyMs
    const shares = sharesOf(this.#perS, writing.map(leftOf))
    this.#endWhenAllHave()
    return writing.map(({ member }, at) => ({ member, perS: shares[at] ?? 0 }))
  }

  /** @param ended whether the worker writes no more lines of this broadcast. */
  reported(
    { worker, incarnation }: WorkerProcess,
    outcomes: LineCounts,
    ended: boolean,
    steadyMs: number,
  ): void {
    const participant = this.#participants.get(worker)
    if (participant?.member.incarnation !== incarnation || this.#state !== "writing") return
    participant.outcomes = outcomes
    participant.heardAtMs = steadyMs
    participant.ended ||= ended
    this.#endWhenAllHave()
  }

  /** @param isReading whether reports can arrive. */
  sweep(steadyMs: number, isReading: boolean): void {
    if (this.#state !== "writing") return
    for (const participant of this.#participants.values()) {
      if (!isReading) participant.heardAtMs = steadyMs
      if (steadyMs - participant.heardAtMs >= SILENT_MS) participant.ended = true
    }
    this.#endWhenAllHave()
    if (steadyMs - this.#startedAtMs >= MAX_PACED_MS + MAX_LATE_MS) this.#state = "ended"
  }

  counts(): BroadcastCounts {
    const outcomes: Record<string, number> = { written: 0 }
    let matched = 0
    for (const participant of this.#participants.values()) {
      matched += participant.matched
      for (const [outcome, count] of Object.entries(participant.outcomes)) {
        outcomes[outcome] = (outcomes[outcome] ?? 0) + count
      }
    }
    const unfinished = matched - sumOf(outcomes)
    return { kind: "counts", workers: this.#participants.size, matched, outcomes, unfinished }
  }

  #left(): number {
    let left = 0
    for (const participant of this.#participants.values()) left += leftOf(participant)
    return left
  }

  #endWhenAllHave(): void {
    for (const { ended } of this.#participants.values()) if (!ended) return
    this.#state = "ended"
  }
}

function leftOf({ matched, outcomes }: Participant): number {
  return matched - sumOf(outcomes)
}
