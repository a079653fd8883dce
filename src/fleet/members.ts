/**
 * The members of the fleet: the other known workers, of this instance and of other instances.
 *
 *   unknown ──message──► heard_of ◄──message── silent      any ──leaving──► left
 *                           └──missed an answer,──►┘       any ──no message for `FORGET_AFTER`──► unknown
 *                              or no message for
 *                              `SILENT_AFTER`
 *
 * A silent member may have died, so the location cache is not used for its devices. But questions
 * still wait for its answer, because it or this worker may only be slow. A member that has left
 * does not count any more, although it still announces the devices that it closes.
 *
 * Pure: the time of a monotonic clock is passed in. Bounds: `MAX_MEMBERS` members, each kept for
 * `FORGET_AFTER_MS` after its last message.
 */

import type { WorkerProcess } from "../device/ids.ts"

/** The interval of a member's `alive` messages in a fleet of up to 100 workers. */
export const ALIVE_EVERY_MS = 2_000
/** In a larger fleet; then a member handles 50 `alive` messages a second. */
const ALIVE_MS_PER_MEMBER = 20
/** In intervals of `alive` messages. */
const SLOW_AFTER = 1.25
const SILENT_AFTER = 3
const FORGET_AFTER = 10
/**
 * Counted from the return of the broker connection. Longer than the longest delay between two
 * connection attempts.
 */
export const REJOIN_MS = 7_000
export const FORGET_AFTER_MS = FORGET_AFTER * ALIVE_EVERY_MS
/** Far more members than one broker has connections for. */
export const MAX_MEMBERS = 4_096

interface Member {
  readonly incarnation: string
  heardAtMs: number
  /** Devices that it can admit in a second; 0 until it has said so. */
  admitsPerS: number
  /** The number of held commands that it keeps. */
  held: number
  state: "heard_of" | "silent" | "left"
}

/** A member as operators see it. */
export interface MemberView {
  readonly worker: string
  readonly state: Member["state"]
  /** The number of held commands that it keeps. */
  readonly held: number
  /** Devices that it can admit in a second; 0 while it takes none. */
  readonly admits_per_s: number
}

export class Members {
  readonly #members = new Map<string, Member>()
  /**
   * Members that were known when the broker connection was lost and have sent no message since its
   * return.
   */
  readonly #unheard = new Set<string>()
  #changes = 0

  get count(): number {
    let count = 0
    for (const { state } of this.#members.values()) if (state !== "left") count += 1
    return count
  }

  /** Differs after a member has come, gone or changed its state. */
  get changes(): number {
    return this.#changes
  }

  heard(worker: string, incarnation: string, steadyMs: number): void {
    this.#unheard.delete(worker)
    const member = this.#members.get(worker)
    if (member?.incarnation === incarnation) {
      member.heardAtMs = steadyMs
      if (member.state === "silent") this.#enter(member, "heard_of")
    } else if (
      member === undefined
        ? this.#members.size < MAX_MEMBERS
        : incarnation > member.incarnation || member.state !== "heard_of"
    ) {
      // Incarnations sort by start time. A message of an older incarnation is late and ignored,
      // unless the newer one may have ended: the clock may have been set back in between.
      this.#members.set(worker, {
        incarnation,
        heardAtMs: steadyMs,
        admitsPerS: 0,
        held: 0,
        state: "heard_of",
      })
      this.#changes += 1
    }
  }

  /**
   * The broker connection has returned. No message could arrive while it was lost, so that time
   * does not count, and all members that were known before are expected to send a message.
   */
  resumed(steadyMs: number): void {
    this.#unheard.clear()
    for (const [worker, member] of this.#members) {
      if (member.state === "left") continue
      member.heardAtMs = steadyMs
      this.#unheard.add(worker)
    }
  }

  /**
   * Whether a member that was known when the broker connection was lost has sent no message since
   * its return.
   */
  get someUnheard(): boolean {
    return this.#unheard.size > 0
  }

  left(worker: string, incarnation: string): void {
    this.#unheard.delete(worker)
    const member = this.#members.get(worker)
    if (member?.incarnation === incarnation) this.#enter(member, "left")
  }

  admits(worker: string, incarnation: string, perS: number): void {
    const member = this.#members.get(worker)
    if (member?.incarnation === incarnation) member.admitsPerS = perS
  }

  /** The member has told how many held commands it keeps. */
  holds(worker: string, incarnation: string, held: number): void {
    const member = this.#members.get(worker)
    if (member?.incarnation === incarnation) member.held = held
  }

  /** The held commands that the members keep which are known to answer. */
  get held(): number {
    let sum = 0
    for (const { state, held } of this.#members.values()) if (state === "heard_of") sum += held
    return sum
  }

  /** Whether any member keeps held commands, or kept some when it was last heard of. */
  get mayHold(): boolean {
    for (const { held } of this.#members.values()) if (held > 0) return true
    return false
  }

  /** Devices that the members in the state `heard_of` can admit in a second, without some. */
  admitPerS(except: (worker: string) => boolean): number {
    let sum = 0
    for (const [worker, { state, admitsPerS }] of this.#members) {
      if (state === "heard_of" && !except(worker)) sum += admitsPerS
    }
    return sum
  }

  /** The member did not answer in time. */
  missed(worker: string): void {
    const member = this.#members.get(worker)
    if (member?.state === "heard_of") this.#enter(member, "silent")
  }

  /**
   * The member did not answer within some hundred milliseconds. It counts as silent only if it has
   * sent nothing for longer than the interval of its `alive` messages: in a storm it may be slow,
   * and its shards must not move then.
   */
  wasSlow(worker: string, steadyMs: number): void {
    const member = this.#members.get(worker)
    if (member === undefined || steadyMs - member.heardAtMs <= SLOW_AFTER * this.aliveEveryMs)
      return
    this.missed(worker)
  }

  sweep(steadyMs: number): void {
    const aliveEveryMs = this.aliveEveryMs
    for (const [worker, member] of this.#members) {
      const quietMs = steadyMs - member.heardAtMs
      if (quietMs > SILENT_AFTER * aliveEveryMs && member.state === "heard_of") {
        this.#enter(member, "silent")
      }
      if (quietMs <= FORGET_AFTER * aliveEveryMs) continue
      this.#members.delete(worker)
      this.#unheard.delete(worker)
      this.#changes += 1
    }
  }

  /**
   * The interval of `alive` messages. It grows with the fleet, since each message goes to all
   * members.
   */
  get aliveEveryMs(): number {
    return Math.max(ALIVE_EVERY_MS, ALIVE_MS_PER_MEMBER * this.#members.size)
  }

  /** Whether any process of the worker is in the state `heard_of`. */
  isHeardOf(worker: string): boolean {
    return this.#members.get(worker)?.state === "heard_of"
  }

  /** Whether this process of the worker is in the state `heard_of`. */
  answers({ worker, incarnation }: WorkerProcess): boolean {
    const member = this.#members.get(worker)
    return member?.incarnation === incarnation && member.state === "heard_of"
  }

  /** Whether this process is in the state `heard_of` and has sent a message since this time. */
  wasHeard({ worker, incarnation }: WorkerProcess, sinceMs: number): boolean {
    const member = this.#members.get(worker)
    if (member?.incarnation !== incarnation || member.state !== "heard_of") return false
    return member.heardAtMs > sinceMs
  }

  /** Whether this process has sent a message within `FORGET_AFTER_MS` and has not left. */
  knows({ worker, incarnation }: WorkerProcess): boolean {
    const member = this.#members.get(worker)
    return member?.incarnation === incarnation && member.state !== "left"
  }

  /** As `knows`, and also for a process that has left. */
  has({ worker, incarnation }: WorkerProcess): boolean {
    return this.#members.get(worker)?.incarnation === incarnation
  }

  /** The process of a worker; null when it is not known or has left. */
  processOf(worker: string): WorkerProcess | null {
    const member = this.#members.get(worker)
    if (member === undefined || member.state === "left") return null
    return { worker, incarnation: member.incarnation }
  }

  /** The processes that have not left. */
  *processes(): Generator<WorkerProcess> {
    for (const [worker, { incarnation, state }] of this.#members) {
      if (state !== "left") yield { worker, incarnation }
    }
  }

  /**
   * Whether any process of the worker has sent a message within `FORGET_AFTER_MS` and has not left.
   */
  isKnown(worker: string): boolean {
    const state = this.#members.get(worker)?.state
    return state !== undefined && state !== "left"
  }

  /** All members, for operators. */
  all(): MemberView[] {
    return [...this.#members].map(([worker, { state, admitsPerS, held }]) => ({
      ...{ worker, state, held },
      admits_per_s: admitsPerS,
    }))
  }

  /** The workers whose answers a question must wait for. */
  known(): string[] {
    return [...this.#members].flatMap(([worker, { state }]) => (state === "left" ? [] : [worker]))
  }

  #enter(member: Member, state: Member["state"]): void {
    member.state = state
    this.#changes += 1
  }
}
