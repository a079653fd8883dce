/**
 * Reads a tape from its beginning on, wherever its entries are, one part at a time.
 *
 *   read ─► the next part ─► its items, after a `dropped` for the entries that are gone
 *
 * It holds numbers only, so a reader that is slow, or waits for the broker, costs no memory. Bound:
 * one part.
 */

import type { QuestionFailure } from "../questions.ts"
import type { TapeItem } from "./entry.ts"
import { entriesIn, type TapePart } from "./tape.ts"

/** Why a tape has no more entries. */
export type TapeEnd =
  /** Its time has passed. */
  | "over"
  /** It was stopped or replaced. */
  | "discarded"
  /** The worker that had its entries has ended. */
  | "lost"

/** A part, with whether all entries have come; or what became of the tape. */
export type PartAnswer =
  | { readonly part: TapePart; readonly isOver: boolean }
  | "discarded"
  | "lost"

export interface NumberedItem {
  /** The number of the entry; null for a `dropped` that this reader has counted. */
  readonly n: number | null
  readonly item: TapeItem
}

export interface TapeRead {
  readonly items: readonly NumberedItem[]
  /** The number of the item that is read next, and of the one that is added next. */
  readonly next: number
  readonly newest: number
  /** Whether no more items are there now. */
  readonly isCaughtUp: boolean
  /** Null while more items may come. */
  readonly end: TapeEnd | null
}

export class TapeReader {
  readonly #ask: (from: number, caller?: AbortSignal) => Promise<PartAnswer | QuestionFailure>
  #next = 0
  /** Entries that were read, or that the reader knows to be dropped. */
  #seen = 0

  constructor(ask: (from: number, caller?: AbortSignal) => Promise<PartAnswer | QuestionFailure>) {
    this.#ask = ask
  }

  /** @param caller aborted when the HTTP client closes its connection. */
  async read(caller?: AbortSignal): Promise<TapeRead | QuestionFailure> {
    const answer = await this.#ask(this.#next, caller)
    if (answer === "discarded" || answer === "lost") {
      return { items: [], next: this.#next, newest: this.#next, isCaughtUp: true, end: answer }
    }
    if (typeof answer === "string") return answer
    const { first, before, items, end: newest } = answer.part
    const read: NumberedItem[] = []
    if (before > this.#seen) {
      read.push({ n: null, item: { kind: "dropped", count: before - this.#seen } })
    }
    this.#seen = before
    for (const [at, item] of items.entries()) {
      read.push({ n: first + at, item })
      this.#seen += entriesIn(item)
    }
    this.#next = first + items.length
    const isCaughtUp = this.#next >= newest
    const end = isCaughtUp && answer.isOver ? "over" : null
    return { items: read, next: this.#next, newest, isCaughtUp, end }
  }
}
