/**
 * The members of the fleet: the other known workers, of this instance and of other instances.
 *
 *   unknown ──message──► heard_of ◄──message── silent      any ──leaving──► left
 *                           └──missed an answer,──►┘       any ──no message for `FORGET_AFTER_MS`──► unknown
 *                              or no message for
 *                              `SILENT_AFTER_MS`
 *
 * A silent member may have died, so the location cache is not used for its devices. But questions
 * still wait for its answer, because it or this worker may only be slow. A member that has left
 * does not count any more, although it still announces the devices that it closes.
 *
 * Pure: the time of a monotonic clock is passed in. Bounds: `MAX_MEMBERS` members, each kept for
 * `FORGET_AFTER_MS` after its last message.
 */

import type { WorkerProcess } from "../device/ids.ts"

/** The interval of a member's `alive` messages. */
export const ALIVE_EVERY_MS = 2_000
const SILENT_AFTER_MS = 6_000
/**
 * Counted from the return of the broker connection. Longer than the longest delay between two
 * connection attempts.
 */
export const REJOIN_MS = 7_000
export const FORGET_AFTER_MS = 20_000
/** Far more members than one broker has connections for. */
export const MAX_MEMBERS = 4_096

interface Member {
  readonly incarnation: string
  heardAtMs: number
  /** Devices that it can admit in a second; 0 until it has said so. */
  admitsPerS: number
  state: "heard_of" | "silent" | "left"
}

export class Members {
  readonly #members = new Map<string, Member>()
  /**
   * Members that were known when the broker connection was lost and have sent no message since its
   * return.
   */
  readonly #unheard = new Set<string>()

  get count(): number {
    return this.known().length
  }

  heard(worker: string, incarnation: string, steadyMs: number): void {
    this.#unheard.delete(worker)
    const member = this.#members.get(worker)
    if (member?.incarnation === incarnation) {
      member.heardAtMs = steadyMs
      if (member.state === "silent") member.state = "heard_of"
    } else if (
      member === undefined ? this.#members.size < MAX_MEMBERS : incarnation > member.incarnation
    ) {
      // Incarnations sort by start time. A message of an older incarnation is late and ignored.
      this.#members.set(worker, {
        incarnation,
        heardAtMs: steadyMs,
        admitsPerS: 0,
        state: "heard_of",
      })
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
    if (member?.incarnation === incarnation) member.state = "left"
  }

  admits(worker: string, incarnation: string, perS: number): void {
    const member = this.#members.get(worker)
    if (member?.incarnation === incarnation) member.admitsPerS = perS
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
    if (member?.state === "heard_of") member.state = "silent"
  }

  sweep(steadyMs: number): void {
    for (const [worker, member] of this.#members) {
      const quietMs = steadyMs - member.heardAtMs
      if (quietMs > SILENT_AFTER_MS && member.state === "heard_of") member.state = "silent"
      if (quietMs <= FORGET_AFTER_MS) continue
      this.#members.delete(worker)
      this.#unheard.delete(worker)
    }
  }

  /** Whether this process of the worker is in the state `heard_of`. */
  answers({ worker, incarnation }: WorkerProcess): boolean {
    const member = this.#members.get(worker)
    return member?.incarnation === incarnation && member.state === "heard_of"
  }

  /**
   * Whether any process of the worker has sent a message within `FORGET_AFTER_MS` and has not left.
   */
  isKnown(worker: string): boolean {
    const state = this.#members.get(worker)?.state
    return state !== undefined && state !== "left"
  }

  /** The workers whose answers a question must wait for. */
  known(): string[] {
    return [...this.#members].flatMap(([worker, { state }]) => (state === "left" ? [] : [worker]))
  }
}
