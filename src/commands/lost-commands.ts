/**
 * Lost commands: what a worker remembers of the commands that it had in hand, or had just acknowledged, when its
 * connection to the broker was lost, so that it recognises each when the broker delivers it again or
 * dead-letters it.
 *
 *   unfinished ──ended──► ended ─┐
 *       └──dropped──► dropped    ├──recognised, or after `REMEMBERED_MS`──► forgotten
 *   acknowledged ────────────────┘
 *
 *   unfinished    bytes were offered to the socket, or its outcome is being stored: its one outcome comes here
 *   ended         its outcome is stored, and its delivery was never acknowledged
 *   dropped       nothing was done with it, or its outcome is not known to be stored: the next delivery decides, and has the
 *                 same outcome when it comes here
 *   acknowledged  the broker may have lost the acknowledgement; only commands with an id or a number of some kind
 *
 * A message has no identity of its own in AMQP, so commands that are alike in everything (`fingerprint.ts`) cannot
 * be told apart, and need not be. Of several, the broker delivers again those that were never acknowledged,
 * and possibly those whose acknowledgement it has lost. So the unfinished and ended ones are recognised
 * first, then the dropped ones, and the acknowledged ones last: in doubt a command is written twice rather than
 * never.
 *
 * Pure. Time counts only while the broker is there: `pass`. Bound: `MAX_REMEMBERED`, then the oldest that is
 * not unfinished is forgotten.
 */

import type { Decided } from "./queued-command.ts"

/** A broker delivers again at once; this is for a broker that has to detect the loss of a connection first. */
export const REMEMBERED_MS = 120_000
export const MAX_REMEMBERED = 65_536

export type LostState = "unfinished" | "ended" | "dropped" | "acknowledged"

export interface LostCommand<C> {
  readonly fingerprint: string
  /** The key that its copies share (`deduplicator.ts`); null on a command that was not forwarded to this worker. */
  readonly copyKey: string | null
  /** Whether its queue may have dead-lettered it as expired by now. */
  readonly mayExpire: boolean
  /** The command that is in hand while it is unfinished; null otherwise. */
  command: C | null
  /** The id under which it was forwarded from here: a message with this id is the forward, not the lost command. */
  readonly forwardedAs: string | null
  /** How often it had been forwarded since the broker gave it up. */
  readonly forwards: number
  /** The outcome that a dropped command had here, of which the broker may have something. */
  readonly decided: Decided | null
  state: LostState
}

/** What a message says that one worker forwarded to another. */
export interface Forwarded {
  readonly commandId: string
  /** The keys that its copies may have, the likeliest first. */
  readonly copyKeys: readonly string[]
  /** How often it was forwarded since the broker gave it up. */
  readonly forwards: number
}

const ORDER: readonly LostState[] = ["unfinished", "ended", "dropped", "acknowledged"]

export class LostCommands<C> {
  readonly #byFingerprint = new Map<string, Set<LostCommand<C>>>()
  /** In the order of their losses, with the time at which each is forgotten. */
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
   * The lost command that this message is, forgotten from now on; null when it matches none.
   *
   * @param forwarded null when the message was not forwarded to this worker. One that was not forwarded when it was
   * lost may come by another worker now.
   * @param expired the broker gave the message up because its time was over.
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

  /** Lets time pass; only time with a connection to the broker counts. */
  pass(ms: number): void {
    this.#nowMs += ms
    for (const [lost, untilMs] of this.#all) {
      if (untilMs > this.#nowMs) return
      if (lost.state !== "unfinished") this.forget(lost)
      else {
        // Moved to the end, which keeps the order by time.
        this.#all.delete(lost)
        this.#all.set(lost, this.#nowMs + REMEMBERED_MS)
      }
    }
  }
}

/** The lower, the likelier; null when the message cannot be that command. */
function rankOf(lost: LostCommand<unknown>, forwarded: Forwarded | null): number | null {
  const byState = ORDER.indexOf(lost.state)
  if (forwarded === null) return lost.copyKey === null ? byState : null
  const { commandId, copyKeys, forwards } = forwarded
  // The message is the one that was forwarded from here, and decides for itself.
  const isForward = lost.copyKey === null || forwards > lost.forwards
  if (isForward && lost.forwardedAs === commandId) return null
  if (lost.copyKey !== null) {
    const at = copyKeys.indexOf(lost.copyKey)
    return at === -1 ? null : at * ORDER.length + byState
  }
  // The command may have come by another worker.
  return copyKeys.length * ORDER.length + byState
}
