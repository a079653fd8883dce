/**
 * A map of at most `max` entries: the one that was added first makes room for the next. Pure.
 *
 * A JavaScript `Map` keeps its entries in the order of their addition, and a new value keeps the
 * place of its key.
 */

export class BoundedMap<K, V> {
  readonly #max: number
  readonly #entries = new Map<K, V>()

  constructor(max: number) {
    this.#max = max
  }

  get size(): number {
    return this.#entries.size
  }

  get(key: K): V | undefined {
    return this.#entries.get(key)
  }

  /** Adds an entry, or gives an entry a new value in its place. */
  set(key: K, value: V): void {
    this.#entries.set(key, value)
    if (this.#entries.size <= this.#max) return
    for (const oldest of this.#entries.keys()) {
      this.#entries.delete(oldest)
      return
    }
  }

  /** Adds an entry as the newest, in place of one with its key. */
  add(key: K, value: V): void {
    this.#entries.delete(key)
    this.set(key, value)
  }

  values(): MapIterator<V> {
    return this.#entries.values()
  }

  delete(key: K): void {
    this.#entries.delete(key)
  }

  clear(): void {
    this.#entries.clear()
  }
}
