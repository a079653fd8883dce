/**
 * Publishes on one channel that the broker has not confirmed, by their tags: 1 for the first, and so on.
 *
 *   add ─► (tag) ─► settle(tag) or settle(all up to tag) ─► handed back, once
 *
 * Pure. Bound: its publish channel's publisher.
 */

import { Fifo } from "../structures/fifo.ts"

export class Unconfirmed<T> {
  /** The first has tag 1 and index 0. */
  #items = new Fifo<T>()

  /** The next publish on the channel. */
  add(item: T): void {
    this.#items.push(item)
  }

  /** Hands back the one with this tag, or, with `multiple`, all up to it, in order; none that was settled before. */
  settle(tag: number, multiple: boolean, each: (item: T) => void): void {
    const items = this.#items
    // Beyond what was published there is nothing, whatever the broker says.
    const end = Math.min(tag, items.end)
    for (let index = multiple ? items.start : tag - 1; index < end; index += 1) {
      const item = items.remove(index)
      if (item === undefined) continue
      each(item)
      // The callback cleared the list: the tags are those of another connection now.
      if (items !== this.#items) return
    }
  }

  /** Takes out all that are not settled, in order. */
  clear(): T[] {
    const items = this.#items
    this.#items = new Fifo()
    const left: T[] = []
    for (let index = items.start; index < items.end; index += 1) {
      const item = items.at(index)
      if (item !== undefined) left.push(item)
    }
    return left
  }
}
