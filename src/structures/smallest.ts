/**
 * The smallest of many values, in order, without sorting all of them. Pure.
 *
 * Expected time for values in random order: one comparison for each, and `max` × ln(n ÷ `max`)
 * insertions. Bound: `max` values are kept.
 */

export class Smallest<T> {
  readonly #max: number
  readonly #isBefore: (a: T, b: T) => boolean
  readonly #values: T[] = []

  constructor(max: number, isBefore: (a: T, b: T) => boolean) {
    this.#max = max
    this.#isBefore = isBefore
  }

  /** The smallest first. */
  get values(): readonly T[] {
    return this.#values
  }

  add(value: T): void {
    const last = this.#values.at(-1)
    const isFull = this.#values.length >= this.#max
    if (isFull && (last === undefined || !this.#isBefore(value, last))) return
    if (isFull) this.#values.pop()
    let low = 0
    let high = this.#values.length
    while (low < high) {
      const middle = (low + high) >> 1
      if (this.#isBefore(value, this.#values[middle] as T)) high = middle
      else low = middle + 1
    }
    this.#values.splice(low, 0, value)
  }
}
