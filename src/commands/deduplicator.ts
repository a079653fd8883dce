/**
 * Recognises copies of forwarded commands. A worker that loses its connection while it forwards a
 * command publishes it again, so the queue may have two copies, and the command must still have one
 * outcome.
 *
 *   new ──► in hand ──ended──► ended
 *              └──dropped──► new
 *
 * Pure. Bounds: the unacknowledged commands, and the last `REMEMBERED_ENDS` that have ended.
 */

/** More than the commands in flight from all workers to one worker when a connection is lost. */
export const REMEMBERED_ENDS = 65_536

export class Deduplicator {
  readonly #inHand = new Set<string>()
  readonly #ended = new Set<string>()
  /**
   * The keys of ended commands in a ring. A `Set` is slow at finding its first entry after many
   * deletions.
   */
  readonly #endings: string[] = []
  #oldest = 0

  /**
   * @param hops a command that follows its device may pass a worker twice, which makes it no copy.
   */
  static key(commandId: string, hops: number): string {
    // Saves a string for each command, since most are forwarded once.
    return hops === 1 ? commandId : `${commandId} ${hops}`
  }

  /** False when the command is in hand or has ended, so that this one is a copy. */
  take(key: string): boolean {
    if (this.#inHand.has(key) || this.#ended.has(key)) return false
    this.#inHand.add(key)
    return true
  }

  /**
   * The command was redelivered after it was dropped, so it counts as new although its copies have
   * ended.
   */
  reopen(key: string): void {
    this.#ended.delete(key)
    this.#inHand.add(key)
  }

  /** The command has no outcome here, so it counts as new when it is delivered again. */
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
