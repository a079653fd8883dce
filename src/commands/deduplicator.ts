/**
 * Recognises copies of forwarded commands: a worker that loses the broker while it forwards publishes again, and
 * the command can be in the queue twice. It still has one outcome.
 *
 *   new ──► in hand ──ended──► ended
 *              └──dropped──► new
 *
 * Pure. Bounds: the commands in hand; the last `REMEMBERED_ENDS` that have ended.
 */

/** More than the commands that all workers together have in flight to one worker when a connection is lost. */
const REMEMBERED_ENDS = 65_536

export class Deduplicator {
  readonly #inHand = new Set<string>()
  readonly #ended = new Set<string>()
  /** The keys of ended commands, oldest first: a Set whose first entry is deleted again and again is slow to find the next. */
  readonly #endings: string[] = []
  #oldest = 0

  /** @param hops a command that follows its device may pass a worker twice, and is then no copy. */
  static key(commandId: string, hops: number): string {
    // Most commands are forwarded once; this saves a string for each.
    return hops === 1 ? commandId : `${commandId} ${hops}`
  }

  /** False when the command is in hand or has ended: this one is a copy. */
  take(key: string): boolean {
    if (this.#inHand.has(key) || this.#ended.has(key)) return false
    this.#inHand.add(key)
    return true
  }

  /** The command counts as new although its copies counted as ended: it was delivered again after it was dropped. */
  reopen(key: string): void {
    this.#ended.delete(key)
    this.#inHand.add(key)
  }

  /** The command is no longer in hand and has no outcome: it counts as new when it comes again. */
  drop(key: string): void {
    this.#inHand.delete(key)
  }

  ended(key: string): void {
    this.#inHand.delete(key)
    if (this.#ended.has(key)) return
    const oldest = this.#endings[this.#oldest]
    if (oldest !== undefined) this.#ended.delete(oldest)
    this.#ended.add(key)
    this.#endings[this.#oldest] = key
    this.#oldest = (this.#oldest + 1) % REMEMBERED_ENDS
  }
}
