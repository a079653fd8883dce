/**
 * Publishes on one channel that the broker has not confirmed, by their tags: 1 for the first, and so on.
 *
 *   add ─► (tag) ─► settle(tag) or settle(all up to tag) ─► handed back, once
 *
 * Pure. Bound: its publish channel's publisher.
 */

/** Settled ones are cut off the front this many at a time, or when none is left. */
const CUT_OFF_AFTER = 1_024

export class Unconfirmed<T> {
  /** The tag of `#items[0]`. */
  #base = 1
  #first = 0
  #items: (T | undefined)[] = []

  /** The next publish on the channel. */
  add(item: T): void {
    this.#items.push(item)
  }

  /** Hands back the one with this tag, or, with `multiple`, all up to it, in order; none that was settled before. */
  settle(tag: number, multiple: boolean, each: (item: T) => void): void {
    const items = this.#items
    const at = tag - this.#base
    // Beyond what was published there is nothing, whatever the broker says.
    const last = Math.min(at, items.length - 1)
    for (let i = multiple ? this.#first : at; i <= last; i += 1) {
      const item = items[i]
      if (item === undefined) continue
      items[i] = undefined
      each(item)
      // The callback cleared the list: the tags are those of another connection now.
      if (items !== this.#items) return
    }
    this.#cutOff()
  }

  /** Takes out all that are not settled, in order. */
  clear(): T[] {
    const left = this.#items.filter((item) => item !== undefined)
    this.#items = []
    this.#base = 1
    this.#first = 0
    return left
  }

  #cutOff(): void {
    while (this.#first < this.#items.length && this.#items[this.#first] === undefined) {
      this.#first += 1
    }
    if (this.#first < CUT_OFF_AFTER && this.#first < this.#items.length) return
    this.#items = this.#items.slice(this.#first)
    this.#base += this.#first
    this.#first = 0
  }
}
