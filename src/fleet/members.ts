/**
 * The members of the fleet: the other workers, of this instance and of others, as far as they have been
 * heard of.
 *
 *   unknown ──heard──► heard_of ◄──heard── silent       any ──leaves──► left
 *                          └──owed an answer,──►┘       any ──not heard for long──► unknown
 *                             not heard for a while
 *
 * Nothing is sent after a device to a silent member, which may have died, but its "no" is still waited
 * for: it may also be slow, or we may. One that has left is no member any more, though it goes on telling
 * of the devices that it closes. Pure: the time is passed in, by a clock that never jumps. Bounds: those that were heard within
 * `FORGET_AFTER_MS`, `MAX_MEMBERS` of them.
 */

import type { WorkerProcess } from "../device/ids.ts"

/** How often a member tells that it is alive. */
export const ALIVE_EVERY_MS = 2_000
const SILENT_AFTER_MS = 6_000
/** Counted from the broker's return; longer than the longest wait between two tries to connect to it. */
export const REJOIN_MS = 7_000
export const FORGET_AFTER_MS = 20_000
/** Far more than one broker has connections for. */
export const MAX_MEMBERS = 4_096

interface Member {
  readonly incarnation: string
  heardAtMs: number
  state: "heard_of" | "silent" | "left"
}

export class Members {
  readonly #members = new Map<string, Member>()
  /** Members that were known when the broker was lost, and not heard since its return. */
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
      // Incarnations sort by their start; what one says that was replaced comes late.
      this.#members.set(worker, { incarnation, heardAtMs: steadyMs, state: "heard_of" })
    }
  }

  /**
   * The broker is back. No member could be heard while it was away, so that time does not count, and members that were
   * known before are expected to be heard again.
   */
  resumed(steadyMs: number): void {
    this.#unheard.clear()
    for (const [worker, member] of this.#members) {
      if (member.state === "left") continue
      member.heardAtMs = steadyMs
      this.#unheard.add(worker)
    }
  }

  /** Whether a member that was known when the broker was lost has not been heard since its return. */
  get someUnheard(): boolean {
    return this.#unheard.size > 0
  }

  left(worker: string, incarnation: string): void {
    this.#unheard.delete(worker)
    const member = this.#members.get(worker)
    if (member?.incarnation === incarnation) member.state = "left"
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

  /** Whether this very process of the worker was heard lately. */
  answers({ worker, incarnation }: WorkerProcess): boolean {
    const member = this.#members.get(worker)
    return member?.incarnation === incarnation && member.state === "heard_of"
  }

  /** Whether some process of the worker was heard within `FORGET_AFTER_MS` and has not left. */
  isKnown(worker: string): boolean {
    const state = this.#members.get(worker)?.state
    return state !== undefined && state !== "left"
  }

  /** The workers whose answers are to be waited for. */
  known(): string[] {
    return [...this.#members].flatMap(([worker, { state }]) => (state === "left" ? [] : [worker]))
  }
}
