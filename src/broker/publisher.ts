/**
 * The publisher: publishes the messages of one publish window on one publish channel, in order,
 * until each is confirmed.
 *
 *              ┌──────────── the channel opened ─────────────┐
 *              ▼                                             │
 *   flowing ──a message failed──► settling ──nothing in flight, closed──► waiting for the channel
 *      ▲                              │
 *      │                              └──nothing in flight──► backing off ──timer──┐
 *      └───────────────────── go back: failed messages first ◄─────────────────────┘
 *
 * It drops no message and keeps the order within a group. Bounds: those of the window; its callers
 * check `window.hasRoom` first. Waits between tries: `BROKER_BACKOFF`.
 */

import { BROKER_BACKOFF, backoffMs } from "../backoff.ts"
import type {
  Broker,
  OutgoingMessage,
  PublishChannel,
  PublishChannelListener,
  PublishResult,
} from "./broker.ts"
import { type Entry, type FinalResult, PublishWindow, type WindowLimits } from "./publish-window.ts"

export interface PublisherOptions<T> {
  readonly limits: WindowLimits
  /** Milliseconds of a monotonic clock. */
  readonly steadyMs: () => number
  /** Messages of one group reach the broker in order, also after failures. */
  readonly groupOf: (item: T) => unknown
  /** The message to publish. It is read at once, so each call may return the same object. */
  readonly describe: (item: T) => OutgoingMessage
  /** Called once for each message, in the order of publishing. */
  readonly done: (item: T, result: FinalResult) => void
  /** Whether a returned message is published again ("again") or is done ("final"). */
  readonly whenReturned: (item: T) => "again" | "final"
  /** The same for a nacked message; default "again". */
  readonly whenNacked?: (item: T) => "again" | "final"
  /** Called before each publish. False ends the message as "withdrawn". Default: true. */
  readonly wanted?: (item: T) => boolean
  /** Called when the window was full and is relieved. */
  readonly relieved?: () => void
  /** Called for each failed publish, for counters. */
  readonly failed?: (item: T, result: "returned" | "nacked" | "cut") => void
  /** Called with the number of messages that are published again. */
  readonly repeating?: (count: number) => void
}

export class Publisher<T> implements PublishChannelListener<Entry<T>> {
  readonly #options: PublisherOptions<T>
  readonly #window: PublishWindow<T>
  readonly #publishChannel: PublishChannel<Entry<T>>
  #state: "flowing" | "settling" | "backing_off" | "waiting_for_channel" = "flowing"
  #timer: ReturnType<typeof setTimeout> | null = null
  #attempt = 0
  #confirmedAtMs = Number.NEGATIVE_INFINITY
  #confirmedSentAtMs = Number.NEGATIVE_INFINITY
  #wasFull = false
  /**
   * Empty between calls of `#done`. They are never nested, because a publish channel settles after
   * `publish` returns.
   */
  readonly #released: Entry<T>[] = []

  constructor(broker: Pick<Broker, "publishChannel">, options: PublisherOptions<T>) {
    this.#options = options
    this.#window = new PublishWindow(options.limits, options.groupOf)
    this.#publishChannel = broker.publishChannel(this)
  }

  /** The publish window, for callers that wait for room. */
  get window(): { readonly hasRoom: boolean } {
    return this.#window
  }

  get count(): number {
    return this.#window.count
  }

  get bytes(): number {
    return this.#window.bytes
  }

  /**
   * The time since which no confirm has arrived, or null when nothing is in flight. A slow broker
   * still confirms: over a slow network a full window takes long, and a new connection would only
   * start it again.
   */
  silentSinceMs(): number | null {
    const sentAtMs = this.#window.oldestSentAtMs()
    return sentAtMs === null ? null : Math.max(sentAtMs, this.#confirmedAtMs)
  }

  /** Accepts one message, which is kept until it is done. */
  publish(item: T, bytes: number): void {
    this.#window.add(item, bytes)
    if (!this.#window.hasRoom) this.#wasFull = true
    this.#send()
  }

  opened(): void {
    if (this.#state === "waiting_for_channel" || this.#state === "backing_off") this.#goBack()
    else this.#send()
  }

  idOf({ item }: Entry<T>): string {
    return this.#options.describe(item).id
  }

  /**
   * The time at which the newest confirmed message was sent; `-Infinity` before the first confirm.
   */
  get confirmedSentAtMs(): number {
    return this.#confirmedSentAtMs
  }

  /**
   * Ends as "given_up" the unconfirmed messages that were sent at `sentByMs` or before: their queue
   * accepts nothing while the broker confirms others. A later confirm of such a message has no
   * effect.
   */
  giveUp(sentByMs: number, mayEnd: (entry: Entry<T>) => boolean): void {
    const given = this.#window.sentBy(sentByMs).filter(mayEnd)
    for (const entry of given) this.settled(entry, "given_up")
  }

  /** Stops the timer. Messages stay in the window. */
  stop(): void {
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.#timer = null
  }

  #send(): void {
    const publishChannel = this.#publishChannel
    if (this.#state !== "flowing") return
    while (publishChannel.state === "open") {
      const entry = this.#window.send(this.#options.steadyMs())
      if (entry === null) return
      if (this.#options.wanted?.(entry.item) === false) {
        queueMicrotask(() => this.settled(entry, "withdrawn"))
        continue
      }
      publishChannel.publish(this.#options.describe(entry.item), entry)
    }
  }

  settled(entry: Entry<T>, result: PublishResult | "withdrawn" | "given_up"): void {
    switch (result) {
      case "given_up":
        this.#done(entry, "given_up")
        break
      case "confirmed":
        this.#attempt = 0
        this.#confirmedAtMs = this.#options.steadyMs()
        this.#confirmedSentAtMs = Math.max(this.#confirmedSentAtMs, entry.sentAtMs)
        this.#done(entry, result)
        break
      case "unencodable":
      case "withdrawn":
        this.#done(entry, result)
        break
      case "returned":
        this.#options.failed?.(entry.item, result)
        if (this.#options.whenReturned(entry.item) === "final") this.#done(entry, result)
        else this.#window.notConfirmed(entry)
        break
      case "nacked":
        this.#options.failed?.(entry.item, result)
        if (this.#options.whenNacked?.(entry.item) === "final") this.#done(entry, result)
        else this.#window.notConfirmed(entry)
        break
      case "cut":
        this.#options.failed?.(entry.item, result)
        this.#window.notConfirmed(entry)
        break
    }
    if (this.#window.failed) this.#recover()
  }

  #done(entry: Entry<T>, result: FinalResult): void {
    const released = this.#released
    this.#window.done(entry, result, released)
    for (const { item, result } of released) this.#options.done(item, result)
    released.length = 0
    if (this.#window.waiting) this.#send()
    if (!this.#wasFull || !this.#window.relieved) return
    this.#wasFull = false
    this.#options.relieved?.()
  }

  #recover(): void {
    if (this.#state === "flowing") this.#state = "settling"
    if (this.#state !== "settling" || this.#window.inFlight > 0) return
    if (this.#publishChannel.state === "closed") {
      this.#state = "waiting_for_channel"
      return
    }
    this.#state = "backing_off"
    const delayMs = backoffMs(this.#attempt, BROKER_BACKOFF, Math.random())
    this.#attempt += 1
    this.#timer = setTimeout(() => this.#goBack(), delayMs)
  }

  #goBack(): void {
    this.stop()
    // Not as an argument: it would not be evaluated without the callback.
    const count = this.#window.goBack()
    this.#options.repeating?.(count)
    this.#state = "flowing"
    this.#send()
  }
}

/** The earliest `silentSinceMs` of several publishers; Infinity when nothing is in flight. */
export function silentSinceMs(publishers: readonly { silentSinceMs(): number | null }[]): number {
  const each = publishers.map((publisher) => publisher.silentSinceMs())
  return Math.min(...each.filter((sinceMs) => sinceMs !== null))
}
