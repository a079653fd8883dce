/**
 * Lost commands: the commands that a worker had in hand, or had just acknowledged, when its
 * connection to the broker was lost. The worker recognises them when they are redelivered or
 * dead-lettered.
 *
 *   unfinished ──ended──► ended ─┐
 *       └──dropped──► dropped    ├──recognised, or after `REMEMBERED_MS`──► forgotten
 *   acknowledged ────────────────┘
 *
 *   unfinished    bytes were offered to the socket, or its outcome is being stored; it gets its outcome here
 *   ended         its outcome is stored, and its delivery was not acknowledged
 *   dropped       it had no effect, or its outcome is not confirmed; the next delivery decides, with the same outcome if it
 *                 comes here
 *   acknowledged  the broker may have lost the acknowledgement; only commands with an id or a number
 *
 * AMQP messages have no identity, so commands with equal fingerprints (`fingerprint.ts`) are
 * interchangeable. Of several, the broker redelivers those that were not acknowledged, and possibly
 * those whose acknowledgement was lost. So unfinished and ended ones are matched first, then
 * dropped ones, then acknowledged ones. In doubt a command is written twice rather than never.
 *
 * Pure. Time counts only with a connection to the broker: `pass`. Bound: `MAX_REMEMBERED`. Beyond
 * it the oldest that is not unfinished is forgotten.
 */

import type { Decided } from "./queued-command.ts"

/**
 * A broker redelivers at once. This is for a broker that has to detect the loss of the connection
 * first.
 */
export const REMEMBERED_MS = 120_000
export const MAX_REMEMBERED = 65_536

export type LostState = "unfinished" | "ended" | "dropped" | "acknowledged"

export interface LostCommand<C> {
  readonly fingerprint: string
  /**
   * The key of all its copies (`deduplicator.ts`); null when it was not forwarded to this worker.
   */
  readonly copyKey: string | null
  /** Whether its queue may have dead-lettered it as expired. */
  readonly mayExpire: boolean
  /** The command in hand while it is unfinished; null otherwise. */
  command: C | null
  /**
   * The id of its forward from here. A message with this id is the forward, not the lost command.
   */
  readonly forwardedAs: string | null
  /** The number of forwards since it was dead-lettered. */
  readonly forwards: number
  /** The outcome of a dropped command, which the broker may have in part. */
  readonly decided: Decided | null
  state: LostState
}

/** The fields of a forwarded message. */
export interface Forwarded {
  readonly commandId: string
  /** The possible keys of its copies, the likeliest first. */
  readonly copyKeys: readonly string[]
  /** The number of forwards since it was dead-lettered. */
  readonly forwards: number
}

const ORDER: readonly LostState[] = ["unfinished", "ended", "dropped", "acknowledged"]

export class LostCommands<C> {
  readonly #byFingerprint = new Map<string, Set<LostCommand<C>>>()
  /** In order of loss, with the time at which each is forgotten. */
  readonly #all = new Map<LostCommand<C>, number>()
  #nowMs = 0

  get count(): number {
    return this.#all.size
  }

  add(lost: LostCommand<C>): void {
    this.#all.set(lost, this.#nowMs + REMEMBERED_MS)
    const alike = this.#byFingerprint.get(lost.fingerprint)
    if (alike === undefined) this.#byFingerprint.set(lost.fingerprint, new Set([lost]))
    else alike.add(lost)
    if (this.#all.size <= MAX_REMEMBERED) return
    for (const oldest of this.#all.keys()) {
      if (oldest.state === "unfinished") continue
      this.forget(oldest)
      return
    }
  }

  /**
   * Finds and forgets the lost command of this message; null without a match.
   *
   * @param forwarded null when the message was not forwarded to this worker. A command that came
   * from a queue may come forwarded after its loss.
   * @param expired whether the message was dead-lettered as expired.
   */
  recognise(
    fingerprint: string,
    forwarded: Forwarded | null,
    expired: boolean,
  ): LostCommand<C> | null {
    const alike = this.#byFingerprint.get(fingerprint)
    if (alike === undefined) return null
    let best: LostCommand<C> | null = null
    let bestRank = Number.POSITIVE_INFINITY
    for (const lost of alike) {
      const rank = rankOf(lost, forwarded)
      if (rank === null || rank >= bestRank || (expired && !lost.mayExpire)) continue
      best = lost
      bestRank = rank
    }
    if (best !== null) this.forget(best)
    return best
  }

  forget(lost: LostCommand<C>): void {
    this.#all.delete(lost)
    const alike = this.#byFingerprint.get(lost.fingerprint)
    alike?.delete(lost)
    if (alike?.size === 0) this.#byFingerprint.delete(lost.fingerprint)
  }

  /** Adds time with a connection to the broker. */
  pass(ms: number): void {
    this.#nowMs += ms
    for (const [lost, untilMs] of this.#all) {
      if (untilMs > this.#nowMs) return
      if (lost.state !== "unfinished") this.forget(lost)
      else {
        // Moved to the end, which keeps the order of times.
        this.#all.delete(lost)
        this.#all.set(lost, this.#nowMs + REMEMBERED_MS)
      }
    }
  }
}

/** A lower number is a better match; null for none. */
function rankOf(lost: LostCommand<unknown>, forwarded: Forwarded | null): number | null {
  const byState = ORDER.indexOf(lost.state)
  if (forwarded === null) return lost.copyKey === null ? byState : null
  const { commandId, copyKeys, forwards } = forwarded
  // The message is the forward from here, which has its own outcome.
  const isForward = lost.copyKey === null || forwards > lost.forwards
  if (isForward && lost.forwardedAs === commandId) return null
  if (lost.copyKey !== null) {
    const at = copyKeys.indexOf(lost.copyKey)
    return at === -1 ? null : at * ORDER.length + byState
  }
  // The command may have come through another worker.
  return copyKeys.length * ORDER.length + byState
}
