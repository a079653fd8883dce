/**
 * The publish window: messages in the order in which they must reach the broker. A message stays in
 * it until the broker has confirmed it and all messages before it.
 *
 *   waiting ──sent──► in flight ──confirmed──► done ──all before it done──► released
 *      ▲                  └──returned, nacked, cut──► failed
 *      └────────────goBack────────────────────────────┘
 *
 * This is go-back-N for each group (a connection): `goBack` returns the failed messages to
 * "waiting", and the done ones that came after a failed message of their group. So a back-end that
 * follows the sequence numbers gets each line after its predecessor, and no other message is
 * repeated.
 *
 * Pure: no broker, no clock. Bounds: `maxCount` messages and `maxBytes` of bodies. At either there
 * is no room; at half of both the window is `relieved`. `maxInFlight` messages are in flight. An
 * empty window accepts a message of any size.
 */

import { Fifo } from "../structures/fifo.ts"

/** Released entries behind one that is not released are removed when there are this many. */
const MAX_GAPS = 1_024

export interface WindowLimits {
  readonly maxCount: number
  readonly maxBytes: number
  /** The limit of messages in flight. */
  readonly maxInFlight: number
  /**
   * False: a message is released as soon as it is done, and is never repeated then. True by
   * default.
   */
  readonly ordered?: boolean
}

/** The last result of a message. */
export type FinalResult =
  | "confirmed"
  | "returned"
  | "nacked"
  | "unencodable"
  /** The message was not published, or not again, because it was no longer wanted. */
  | "withdrawn"
  /** The broker confirmed other messages but not this one in time. It may be stored. */
  | "given_up"

export type EntryState = "waiting" | "in_flight" | "done" | "failed" | "released"

export interface Entry<T> {
  readonly item: T
  readonly bytes: number
  state: EntryState
  /** Valid once the state is "done". */
  result: FinalResult
  sentAtMs: number
}

export class PublishWindow<T> {
  readonly #limits: WindowLimits
  readonly #groupOf: (item: T) => unknown
  #entries = new Fifo<Entry<T>>()
  /** The index of the next entry to send. No entry before it waits. */
  #next = 0
  #inFlight = 0
  #failed = 0
  /** The number of messages that are not released. */
  #count = 0
  #bytes = 0
  /** Whether one more message may be added. A field, because it is read for each line. */
  hasRoom = true

  constructor(limits: WindowLimits, groupOf: (item: T) => unknown) {
    this.#limits = limits
    this.#groupOf = groupOf
  }

  get count(): number {
    return this.#count
  }

  get bytes(): number {
    return this.#bytes
  }

  get inFlight(): number {
    return this.#inFlight
  }

  /** True when a message may wait to be sent. */
  get waiting(): boolean {
    return this.#next < this.#entries.end
  }

  /** True when a message has failed since the last `goBack`. */
  get failed(): boolean {
    return this.#failed > 0
  }

  get relieved(): boolean {
    return this.#count <= this.#limits.maxCount / 2 && this.#bytes <= this.#limits.maxBytes / 2
  }

  add(item: T, bytes: number): Entry<T> {
    const entry: Entry<T> = {
      item,
      bytes,
      state: "waiting",
      result: "confirmed",
      sentAtMs: 0,
    }
    this.#entries.push(entry)
    this.#account(1, bytes)
    return entry
  }

  /** Puts the next message in flight; null when none waits or `maxInFlight` is reached. */
  send(nowMs: number): Entry<T> | null {
    while (this.#inFlight < this.#limits.maxInFlight) {
      const entry = this.#entries.at(this.#next)
      if (entry === undefined) return null
      this.#next += 1
      if (entry.state !== "waiting") continue
      entry.state = "in_flight"
      entry.sentAtMs = nowMs
      this.#inFlight += 1
      return entry
    }
    return null
  }

  /** The time at which the oldest message in flight was sent, or null. */
  oldestSentAtMs(): number | null {
    for (let i = this.#entries.start; i < this.#next; i += 1) {
      const entry = this.#entries.at(i)
      if (entry?.state === "in_flight") return entry.sentAtMs
    }
    return null
  }

  /** The messages in flight that were sent at this time or before, oldest first. */
  sentBy(atMs: number): Entry<T>[] {
    const sent: Entry<T>[] = []
    for (let i = this.#entries.start; i < this.#next; i += 1) {
      const entry = this.#entries.at(i)
      if (entry?.state === "in_flight" && entry.sentAtMs <= atMs) sent.push(entry)
    }
    return sent
  }

  /** Marks the message as done, and appends to `released` the done messages at the front. */
  done(entry: Entry<T>, result: FinalResult, released: Entry<T>[]): void {
    if (entry.state !== "in_flight") return
    this.#inFlight -= 1
    entry.state = "done"
    entry.result = result
    if (this.#limits.ordered === false) {
      this.#release(entry, released)
    }
    for (;;) {
      const { first } = this.#entries
      if (first?.state === "done") this.#release(first, released)
      else if (first?.state !== "released") break
      this.#entries.shift()
    }
    // After `goBack`, `maxInFlight` may have stopped the sending before an entry that was done
    // already.
    this.#next = Math.max(this.#next, this.#entries.start)
    if (this.#entries.length - this.#count >= MAX_GAPS) this.#closeGaps()
  }

  #release(entry: Entry<T>, released: Entry<T>[]): void {
    entry.state = "released"
    this.#account(-1, -entry.bytes)
    released.push(entry)
  }

  #account(count: number, bytes: number): void {
    const { maxCount, maxBytes } = this.#limits
    this.#count += count
    this.#bytes += bytes
    this.hasRoom = this.#count < maxCount && this.#bytes < maxBytes
  }

  /** Removes the released entries that are behind one that is not released. */
  #closeGaps(): void {
    const entries = this.#entries
    const kept = new Fifo<Entry<T>>()
    let next = 0
    for (let i = entries.start; i < entries.end; i += 1) {
      if (i === this.#next) next = kept.end
      const entry = entries.at(i)
      if (entry !== undefined && entry.state !== "released") kept.push(entry)
    }
    this.#next = this.#next === entries.end ? kept.end : next
    this.#entries = kept
  }

  notConfirmed(entry: Entry<T>): void {
    if (entry.state !== "in_flight") return
    this.#inFlight -= 1
    this.#failed += 1
    entry.state = "failed"
  }

  /** To be called when nothing is in flight. Returns the number of messages to repeat. */
  goBack(): number {
    if (this.#inFlight > 0) throw new Error("goBack while messages are in flight")
    const failedGroups = new Set<unknown>()
    let again = 0
    for (let i = this.#entries.start; i < this.#next; i += 1) {
      const entry = this.#entries.at(i)
      if (entry === undefined || entry.state === "released") continue
      const group = this.#groupOf(entry.item)
      if (entry.state === "failed") failedGroups.add(group)
      else if (!failedGroups.has(group)) continue
      entry.state = "waiting"
      again += 1
    }
    this.#next = this.#entries.start
    this.#failed = 0
    return again
  }
}
