/**
 * Sends items to another process of the instance, in batches: the next one after the last was
 * acknowledged.
 *
 *   push ─► idle ──sent at once──► in flight ──acknowledged──► idle, or the items that wait
 *
 * The channel between processes buffers without a bound when its reader has stopped. So at most one
 * batch is in it, and `MAX_WAITING` items wait; more are dropped and counted, and the next batch
 * has their number. Pure.
 */

export const MAX_WAITING = 200

export class AcknowledgedFeed<T> {
  readonly #send: (items: readonly T[], missed: number) => void
  #waiting: T[] = []
  #missed = 0
  #isInFlight = false

  constructor(send: (items: readonly T[], missed: number) => void) {
    this.#send = send
  }

  readonly push = (item: T): void => {
    if (this.#waiting.length >= MAX_WAITING) {
      this.#missed += 1
      return
    }
    this.#waiting.push(item)
    this.#sendWaiting()
  }

  /** Items were dropped before they came here. */
  missed(count: number): void {
    this.#missed += count
    this.#sendWaiting()
  }

  /** The reader has handled the batch in flight. */
  acknowledged(): void {
    this.#isInFlight = false
    this.#sendWaiting()
  }

  #sendWaiting(): void {
    if (this.#isInFlight || this.#waiting.length + this.#missed === 0) return
    const items = this.#waiting
    const missed = this.#missed
    this.#waiting = []
    this.#missed = 0
    this.#isInFlight = true
    this.#send(items, missed)
  }
}
