/** A first-in first-out queue that gives its memory back; see `front-cut-list.ts`. Pure. The caller bounds its length. */

import { FrontCutList } from "./front-cut-list.ts"

export class Fifo<T> {
  readonly #items = new FrontCutList<T>()

  get length(): number {
    return this.#items.length
  }

  /** The oldest, which stays; undefined when the queue is empty. */
  get first(): T | undefined {
    return this.#items.at(this.#items.first)
  }

  push(item: T): void {
    this.#items.push(item)
  }

  /** Removes the oldest; undefined when the queue is empty. */
  shift(): T | undefined {
    return this.#items.remove(this.#items.first)
  }
}
