/**
 * A binary min-heap of numbers. `peek` takes constant time, `push` and `pop` logarithmic time.
 * Pure. The caller bounds its size.
 */
export class MinHeap {
  #items: number[] = []

  get size(): number {
    return this.#items.length
  }

  /** The lowest number, or undefined when the heap is empty. */
  peek(): number | undefined {
    return this.#items[0]
  }

  push(item: number): void {
    const items = this.#items
    let at = items.length
    items.push(item)
    while (at > 0) {
      const parent = (at - 1) >> 1
      const above = items[parent] as number
      if (above <= item) break
      items[at] = above
      at = parent
    }
    items[at] = item
  }

  /** Removes the lowest number and returns it, or undefined when the heap is empty. */
  pop(): number | undefined {
    const items = this.#items
    const lowest = items[0]
    const last = items.pop()
    if (lowest === undefined || last === undefined || items.length === 0) return lowest
    let at = 0
    for (;;) {
      const left = 2 * at + 1
      const right = left + 1
      const child = (items[right] ?? Number.POSITIVE_INFINITY) < (items[left] ?? 0) ? right : left
      const below = items[child]
      if (below === undefined || below >= last) break
      items[at] = below
      at = child
    }
    items[at] = last
    return lowest
  }

  clear(): void {
    this.#items = []
  }
}
