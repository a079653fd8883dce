/**
 * The newest `max` items: a ring in which each new item takes the place of the oldest. It grows up
 * to `max` and never moves an item. Pure.
 */

export class Ring<T> {
  readonly #max: number
  readonly #items: T[] = []
  /** Where the next item goes. */
  #next = 0

  constructor(max: number) {
    this.#max = max
  }

  get length(): number {
    return this.#items.length
  }

  push(item: T): void {
    this.#items[this.#next] = item
    this.#next += 1
    if (this.#next === this.#max) this.#next = 0
  }

  /** At most `count` items, the newest first. */
  newest(count: number): T[] {
    const { length } = this.#items
    const found: T[] = []
    for (let back = 1; back <= Math.min(count, length); back += 1) {
      found.push(this.#items[(this.#next - back + length) % length] as T)
    }
    return found
  }
}
