/**
 * A set of line numbers as sorted ranges that neither overlap nor touch, so that a ledger of
 * millions of lines fits into memory. Pure. Bound: one entry for each gap.
 */

/** With both ends. */
export interface Range {
  readonly from: number
  readonly to: number
}

export class Ranges {
  #list: Range[] = []

  get list(): readonly Range[] {
    return this.#list
  }

  /** The number of elements. */
  get size(): number {
    return sizeOf(this.#list)
  }

  /** Adds `from` to `to`, and returns the part that is new. */
  add(from: number, to: number): Range[] {
    if (to < from) return []
    const last = this.#list.at(-1)
    // Nearly all lines come in order.
    if (last === undefined || from > last.to + 1) {
      this.#list.push({ from, to })
      return [{ from, to }]
    }
    const added = this.without(from, to)
    const first = this.#firstReaching(from - 1)
    let end = first
    let merged = { from, to }
    for (let next = this.#list[end]; next && next.from <= to + 1; next = this.#list[end]) {
      merged = { from: Math.min(merged.from, next.from), to: Math.max(merged.to, next.to) }
      end += 1
    }
    this.#list.splice(first, end - first, merged)
    return added
  }

  has(number: number): boolean {
    const range = this.#list[this.#firstReaching(number)]
    return range !== undefined && range.from <= number
  }

  /** The part of `from` to `to` that is in the set. */
  within(from: number, to: number): Range[] {
    const found: Range[] = []
    let at = this.#firstReaching(from)
    for (let range = this.#list[at]; range && range.from <= to; range = this.#list[at]) {
      found.push({ from: Math.max(from, range.from), to: Math.min(to, range.to) })
      at += 1
    }
    return found
  }

  /** The part of `from` to `to` that is not in the set. */
  without(from: number, to: number): Range[] {
    const gaps: Range[] = []
    let next = from
    for (const range of this.within(from, to)) {
      if (next < range.from) gaps.push({ from: next, to: range.from - 1 })
      next = range.to + 1
    }
    if (next <= to) gaps.push({ from: next, to })
    return gaps
  }

  /** The index of the first range that ends at `number` or after it. */
  #firstReaching(number: number): number {
    let low = 0
    let high = this.#list.length
    while (low < high) {
      const middle = (low + high) >> 1
      if ((this.#list[middle]?.to ?? 0) < number) low = middle + 1
      else high = middle
    }
    return low
  }
}

export function sizeOf(ranges: readonly Range[]): number {
  return ranges.reduce((size, { from, to }) => size + to - from + 1, 0)
}

/**
 * The count of numbers that lie in two or more of the ranges, and the count of all their
 * occurrences beyond the first.
 */
export function overlaps(ranges: readonly Range[]): { numbers: number; extra: number } {
  const edges = ranges.flatMap(({ from, to }) => [
    { at: from, by: 1 },
    { at: to + 1, by: -1 },
  ])
  edges.sort((a, b) => a.at - b.at)
  let depth = 0
  let previous = 0
  let numbers = 0
  let extra = 0
  for (const { at, by } of edges) {
    if (depth > 1) {
      numbers += at - previous
      extra += (at - previous) * (depth - 1)
    }
    depth += by
    previous = at
  }
  return { numbers, extra }
}
