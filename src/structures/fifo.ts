/**
 * A first-in first-out queue that releases its memory. It removes items from the front of an array in blocks, because
 * the time of `Array.shift` grows with the length of the array. Pure. The caller bounds its size.
 */

const CUT_AFTER = 1_024

export class Fifo<T> {
  #items: (T | undefined)[] = []
  #from = 0

  get length(): number {
    return this.#items.length - this.#from
  }

  /** The oldest item, or undefined when the queue is empty. Does not remove it. */
  get first(): T | undefined {
    return this.#items[this.#from]
  }

  push(item: T): void {
    this.#items.push(item)
  }

  /** The oldest item, or undefined when the queue is empty. Does not remove it. */
  peek(): T | undefined {
    return this.#items[this.#from]
  }

  /** Removes the oldest item and returns it, or undefined when the queue is empty. */
  shift(): T | undefined {
    const item = this.#items[this.#from]
    if (this.length === 0) return undefined
    this.#items[this.#from] = undefined
    this.#from += 1
    if (this.#from === this.#items.length || this.#from >= CUT_AFTER) {
      this.#items = this.#items.slice(this.#from)
      this.#from = 0
    }
    return item
  }
}
