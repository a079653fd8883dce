/**
 * A list that grows at its end and gives back the memory of its front. Indices never change: the first item has 0, and
 * an item keeps its index until it is removed.
 *
 * The front of the array is cut off `CUT_AFTER` items at a time, since `shift` on a long array costs its length.
 * No item is undefined. Pure. The caller bounds its length.
 */

const CUT_AFTER = 1_024

export class FrontCutList<T> {
  #items: (T | undefined)[] = []
  /** The index of `#items[0]`. */
  #base = 0
  /** Where in `#items` the first item is. */
  #from = 0

  /** The index of the first item, or `end` when there is none. */
  get first(): number {
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

  /** Removes one item and returns it; undefined when it was removed before. */
  remove(index: number): T | undefined {
    const items = this.#items
    const at = index - this.#base
    const item = items[at]
    if (item === undefined) return undefined
    items[at] = undefined
    if (at !== this.#from) return item
    while (this.#from < items.length && items[this.#from] === undefined) this.#from += 1
    if (this.#from < CUT_AFTER && this.#from < items.length) return item
    this.#items = items.slice(this.#from)
    this.#base += this.#from
    this.#from = 0
    return item
  }
}
