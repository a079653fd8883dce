/**
 * Sends the denylist from the supervisor, which reads the file, to the workers. Each worker has a
 * copy.
 *
 *   file ─► replace ─► parts: reset, add …, complete, add and remove …, complete ─┬─► worker 0
 *                                                                                └─► worker n
 *
 * The parts, applied in order, give the current list. A change of the file appends parts with the
 * differences. A worker that starts gets all parts, later only new ones. It acknowledges each part,
 * and at most `MAX_UNACKNOWLEDGED` are in flight, so a stopped worker delays no other worker and
 * uses little memory. This is a replicated log with compaction, as in Kafka.
 *
 * Bounds: `PART_LINES` for a part. When the parts have more than twice the lines of the list, new
 * parts are made from the list, and workers start again with them. `replace` yields to the event
 * loop after each part.
 */

import { Denylist } from "../device/denylist.ts"
import type { DenylistPart } from "./control.ts"

const PART_LINES = 500
const MAX_UNACKNOWLEDGED = 32
/** Shorter lists are not compacted. */
const MIN_COMPACTED_LINES = 10_000

interface Reader {
  readonly send: (part: DenylistPart) => void
  /** The index of the next part for it. */
  next: number
  unacknowledged: number
}

const EMPTY: readonly string[] = []

export class DenylistFeed {
  #list = Denylist.none
  #parts: DenylistPart[] = []
  /** Lines in all parts. */
  #lines = 0
  readonly #readers = new Map<number, Reader>()

  /** @param key of a worker that has just started. */
  attach(key: number, send: (part: DenylistPart) => void): void {
    const reader = { send, next: 0, unacknowledged: 0 }
    this.#readers.set(key, reader)
    this.#feed(reader)
  }

  detach(key: number): void {
    this.#readers.delete(key)
  }

  acknowledged(key: number): void {
    const reader = this.#readers.get(key)
    if (reader === undefined) return
    reader.unacknowledged -= 1
    this.#feed(reader)
  }

  get isEmpty(): boolean {
    return this.#parts.length === 0
  }

  /** To be called one at a time. @param next must not change afterwards. */
  async replace(next: Denylist): Promise<void> {
    const before = this.#list
    this.#list = next
    if (this.isEmpty) {
      for await (const part of wholeOf(next)) this.#append(part)
      return
    }
    let isChanged = false
    // Lines are added before others are removed, so that a device that stays denied is never
    // admitted in between.
    for await (const part of partsOf(next, (line) => !before.has(line), "add")) {
      isChanged = true
      this.#append(part)
    }
    for await (const part of partsOf(before, (line) => !next.has(line), "remove")) {
      isChanged = true
      this.#append(part)
    }
    if (!isChanged) return
    this.#append({ reset: false, add: EMPTY, remove: EMPTY, isComplete: true })
    if (this.#lines > Math.max(2 * next.size, MIN_COMPACTED_LINES)) await this.#compact()
  }

  async #compact(): Promise<void> {
    const parts: DenylistPart[] = []
    for await (const part of wholeOf(this.#list)) parts.push(part)
    for (const reader of this.#readers.values()) {
      reader.next = reader.next === this.#parts.length ? parts.length : 0
    }
    this.#parts = parts
    this.#lines = this.#list.size
    for (const reader of this.#readers.values()) this.#feed(reader)
  }

  #append(part: DenylistPart): void {
    this.#parts.push(part)
    this.#lines += part.add.length + part.remove.length
    for (const reader of this.#readers.values()) this.#feed(reader)
  }

  #feed(reader: Reader): void {
    while (reader.unacknowledged < MAX_UNACKNOWLEDGED) {
      const part = this.#parts[reader.next]
      if (part === undefined) return
      reader.next += 1
      reader.unacknowledged += 1
      reader.send(part)
    }
  }
}

/** The worker's end: builds the list from the parts. */
export class FedDenylist {
  #list = new Denylist()

  /** @returns the list when it is complete with this part, else null. */
  take({ reset, add, remove, isComplete }: DenylistPart): Denylist | null {
    if (reset) this.#list = new Denylist()
    for (const line of add) this.#list.add(line)
    for (const line of remove) this.#list.remove(line)
    return isComplete ? this.#list : null
  }
}

async function* wholeOf(list: Denylist): AsyncGenerator<DenylistPart> {
  yield { reset: true, add: EMPTY, remove: EMPTY, isComplete: false }
  yield* partsOf(list, () => true, "add")
  yield { reset: false, add: EMPTY, remove: EMPTY, isComplete: true }
}

async function* partsOf(
  list: Denylist,
  belongs: (line: string) => boolean,
  what: "add" | "remove",
): AsyncGenerator<DenylistPart> {
  const partOf = (lines: readonly string[]): DenylistPart => ({
    reset: false,
    add: what === "add" ? lines : EMPTY,
    remove: what === "remove" ? lines : EMPTY,
    isComplete: false,
  })
  let lines: string[] = []
  let looked = 0
  for (const line of list.lines()) {
    if (belongs(line)) lines.push(line)
    if (lines.length === PART_LINES) {
      yield partOf(lines)
      lines = []
    }
    looked += 1
    if (looked % PART_LINES === 0) await nextTick()
  }
  if (lines.length > 0) yield partOf(lines)
}

function nextTick(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}
