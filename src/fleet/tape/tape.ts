/**
 * The entries of one tape, oldest first, at the worker that owns it.
 *
 *   add ─► [oldest ... newest]        complete ─► changes an entry, and adds `completed`
 *             └─ beyond `maxBytes` the oldest is dropped
 *   read(from) ─► the entries from this number on, with the number of those dropped before them
 *
 * Readers hold a number and nothing else, so a slow reader costs no memory: what it has not read
 * when it is dropped, it gets as a count. Pure. Bound: `maxBytes`.
 */

import { Fifo } from "../../structures/fifo.ts"
import type { Completion, TapeItem } from "./entry.ts"

interface Slot {
  item: TapeItem
  readonly bytes: number
  /** The entries before it, also those that were dropped. */
  readonly before: number
  /** While it is not complete. */
  readonly key: string | null
}

/** A part of a tape. Items have consecutive numbers. */
export interface TapePart {
  /** The number of the first item. */
  readonly first: number
  /** The entries before the first item, also those that were dropped. */
  readonly before: number
  readonly items: TapeItem[]
  /** The number of the next item that is added. */
  readonly end: number
}

export interface PartLimits {
  readonly maxItems: number
  /** One larger item is read alone. */
  readonly maxBytes: number
}

export class Tape {
  readonly #maxBytes: number
  readonly #slots = new Fifo<Slot>()
  /** The numbers of entries that are not complete. */
  readonly #open = new Map<string, number>()
  #bytes = 0
  #entries = 0

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes
  }

  get bytes(): number {
    return this.#bytes
  }

  /** @param key by which `complete` finds the entry; null when it is complete. */
  add(item: TapeItem, bytes: number, key: string | null = null): void {
    if (key !== null) this.#open.set(key, this.#slots.end)
    this.#slots.push({ item, bytes, before: this.#entries, key })
    this.#entries += entriesIn(item)
    this.#bytes += bytes
    while (this.#bytes > this.#maxBytes) {
      const oldest = this.#slots.shift()
      if (oldest === undefined) break
      this.#bytes -= oldest.bytes
      if (oldest.key !== null) this.#open.delete(oldest.key)
    }
  }

  /** Has no effect when the entry is complete or was dropped. */
  complete(key: string, completion: Completion, bytes: number): void {
    const entry = this.#open.get(key)
    const slot = entry === undefined ? undefined : this.#slots.at(entry)
    if (entry === undefined || slot === undefined) return
    this.#open.delete(key)
    slot.item = { ...slot.item, ...completion } as TapeItem
    this.add({ kind: "completed", entry, ...completion }, bytes)
  }

  read(from: number, { maxItems, maxBytes }: PartLimits): TapePart {
    const { start, end } = this.#slots
    const first = Math.min(Math.max(from, start), end)
    const items: TapeItem[] = []
    let bytes = 0
    for (let at = first; at < end && items.length < maxItems; at += 1) {
      const slot = this.#slots.at(at)
      if (slot === undefined || (items.length > 0 && bytes + slot.bytes > maxBytes)) break
      bytes += slot.bytes
      items.push(slot.item)
    }
    return { first, before: this.#slots.at(first)?.before ?? this.#entries, items, end }
  }
}

/** For how many entries the item stands. */
export function entriesIn(item: TapeItem): number {
  if (item.kind === "dropped") return item.count
  return item.kind === "completed" ? 0 : 1
}
