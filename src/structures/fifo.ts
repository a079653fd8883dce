/**
 * A first-in first-out queue that gives its memory back. An item keeps its index, counted from 0,
 * until it is removed, and an item behind the first can be removed too.
 *
 * The front of the array is cut off `CUT_AFTER` items at a time, since `shift` on a long array
 * costs its length. No item is undefined. Pure. The caller bounds its length.
 */

const CUT_AFTER = 1_024

export class Fifo<T> {
  #items: (T | undefined)[] = []
  /** The index of `#items[0]`. */
  #base = 0
  /** Where in `#items` the first item is. */
  #from = 0

  /** The first item, which stays; undefined when the queue is empty. */
  get first(): T | undefined {
    return this.#items[this.#from]
  }

  /** The index of the first item, or `end` when there is none. */
  get start(): number {
    return this.#base + this.#from
  }

  /** The index of the next item that is added. */
  get end(): number {
    return this.#base + this.#items.length
  }

  /** From the first item to the end, with the items between them that were removed. */
  get length(): number {
    return this.#items.length - this.#from
  }

  push(item: T): void {
    this.#items.push(item)
  }

  /** Undefined for an item that was removed, and beyond the end. */
  at(index: number): T | undefined {
    return this.#items[index - this.#base]
  }

  /** Removes the first item and returns it; undefined when the queue is empty. */
  shift(): T | undefined {
    const item = this.#items[this.#from]
    if (item !== undefined) this.#removeAt(this.#from)
    return item
  }

  /** Removes one item and returns it; undefined when it was removed before. */
  remove(index: number): T | undefined {
    const at = index - this.#base
    const item = this.#items[at]
    if (item !== undefined) this.#removeAt(at)
    return item
  }

  #removeAt(at: number): void {
    const items = this.#items
    items[at] = undefined
    if (at !== this.#from) return
    while (this.#from < items.length && items[this.#from] === undefined) this.#from += 1
    if (this.#from < CUT_AFTER && this.#from < items.length) return
    this.#items = items.slice(this.#from)
    this.#base += this.#from
    this.#from = 0
  }
}
