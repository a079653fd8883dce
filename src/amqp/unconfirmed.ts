/**
 * The unconfirmed publishes on one channel by their tags, which count from 1.
 *
 *   add ─► (tag) ─► settle(tag) or settle(all up to tag) ─► handed back, once
 *
 * Pure. Bound: the window of the publisher.
 */

import { Fifo } from "../structures/fifo.ts"

export class Unconfirmed<T> {
  /** The first has tag 1 and index 0. */
  #items = new Fifo<T>()

  /** The next publish on the channel. */
  add(item: T): void {
    this.#items.push(item)
  }

  /**
   * Passes to `each` the publish with this tag or, with `multiple`, all up to it, in order. Each is
   * passed once.
   */
  settle(tag: number, multiple: boolean, each: (item: T) => void): void {
    const items = this.#items
    // A tag may be beyond the last publish if the broker is faulty.
    const end = Math.min(tag, items.end)
    for (let index = multiple ? items.start : tag - 1; index < end; index += 1) {
      const item = items.remove(index)
      if (item === undefined) continue
      each(item)
      // The callback cleared the list, so the tags are of another connection now.
      if (items !== this.#items) return
    }
  }

  /** Removes and returns all unsettled publishes, in order. */
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
