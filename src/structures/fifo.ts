/**
 * A first-in first-out queue that gives its memory back: an array whose front is cut off many at a time, since
 * `shift` on a long one costs its length. Pure. Bound: its user's.
 */

const CUT_AFTER = 1_024

export class Fifo<T> {
  #items: (T | undefined)[] = []
  #from = 0

  get length(): number {
    return this.#items.length - this.#from
  }

  /** The oldest, which stays; undefined when it is empty. */
  get first(): T | undefined {
    return this.#items[this.#from]
  }

  push(item: T): void {
    this.#items.push(item)
  }

  /** The oldest, or undefined when it is empty; it stays. */
  peek(): T | undefined {
    return this.#items[this.#from]
  }

  /** The oldest, or undefined when it is empty. */
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
