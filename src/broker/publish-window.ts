/**
 * The unconfirmed window: messages in the order in which they must reach the broker, from the moment
 * they are accepted until the broker has confirmed them and all before them.
 *
 *   waiting ──sent──► in flight ──confirmed──► done ──all before it too──► released
 *      ▲                  └──returned, nacked, cut──► failed
 *      └────────────goBack────────────────────────────┘
 *
 * After a failure, `goBack` puts back everything that failed, and everything done that came after a
 * failure of the same group (a connection): a back-end that follows the sequence numbers then finds
 * each line after its predecessor. Those are the only repeats.
 *
 * Pure: no broker, no clock. Bounds: `maxCount` messages and `maxBytes` of bodies; no room at either,
 * `relieved` at half of both. `maxInFlight` of them are sent and unconfirmed. One message is always accepted by an empty window, whatever its size.
 */

import { Fifo } from "../structures/fifo.ts"

/** Released entries behind one that is not released are removed when there are this many. */
const MAX_GAPS = 1_024

export interface WindowLimits {
  readonly maxCount: number
  readonly maxBytes: number
  /** How many may be with the broker, unconfirmed, at a time. */
  readonly maxInFlight: number
  /**
   * False: each message is released when it is done, without waiting for those before it, and is not sent again then.
   * True by default.
   */
  readonly ordered?: boolean
}

/** How a message that needs no more sending ended. */
export type FinalResult =
  | "confirmed"
  | "returned"
  | "nacked"
  | "unencodable"
  /** The message was not published, or not again, since it was no longer wanted. */
  | "withdrawn"
  /** The broker did not confirm it in time, while it confirmed others: the message may be stored. */
  | "given_up"

export type EntryState = "waiting" | "in_flight" | "done" | "failed" | "released"

export interface Entry<T> {
  readonly item: T
  readonly bytes: number
  state: EntryState
  /** Meaningful once the state is "done". */
  result: FinalResult
  sentAtMs: number
}

export class PublishWindow<T> {
  readonly #limits: WindowLimits
  readonly #groupOf: (item: T) => unknown
  #entries = new Fifo<Entry<T>>()
  /** The index where sending goes on; none before it waits. */
  #next = 0
  #inFlight = 0
  #failed = 0
  /** Messages that are not released. */
  #count = 0
  #bytes = 0
  /** Whether one more message may enter; a field, since it is read for each line. */
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

  /** The next message to send, now in flight; null when none waits or enough are in flight. */
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

  /** Since when the message that has been in flight longest is there, or null. */
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

  /** The message needs no more sending: appends to `released` those at the front that are done. */
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
    // After going back, `maxInFlight` may have stopped the sending before what was done already.
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

  /** To be called when nothing is in flight. Returns how many will be sent again. */
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
