/**
 * The publisher: carries the messages of one unconfirmed window to the broker over one publish channel, in order,
 * again and again until each is confirmed.
 *
 *              ┌──────────── the channel opened ─────────────┐
 *              ▼                                             │
 *   flowing ──a message failed──► settling ──nothing in flight, closed──► waiting for the channel
 *      ▲                              │
 *      │                              └──nothing in flight──► backing off ──timer──┐
 *      └───────────────────── go back: failed messages first ◄─────────────────────┘
 *
 * Never drops a message and never reorders those of one group. Bounds: the window's; whoever offers
 * messages looks at `window.hasRoom` first. Waits between tries: `BROKER_BACKOFF`.
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
  /** Milliseconds that never jump. */
  readonly steadyMs: () => number
  /** Messages of one group reach the broker in order even when some of them fail. */
  readonly groupOf: (item: T) => unknown
  /** The message to publish; read at once, so one object may serve every call. */
  readonly describe: (item: T) => OutgoingMessage
  /** Told in the order of publishing, once for each message. */
  readonly done: (item: T, result: FinalResult) => void
  /** Whether a message that no queue took is published again ("again") or is done ("final"). */
  readonly whenReturned: (item: T) => "again" | "final"
  /** The same for one that the broker refused; "again" unless said otherwise. */
  readonly whenNacked?: (item: T) => "again" | "final"
  /** Called before each publish: false ends the message as "withdrawn". Without it every message is wanted. */
  readonly wanted?: (item: T) => boolean
  /** The window was full and is half empty now. */
  readonly relieved?: () => void
  /** Told of every publish that failed, for counting. */
  readonly failed?: (item: T, result: "returned" | "nacked" | "cut") => void
  /** Told how many messages are about to be published again. */
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
  #wasFull = false
  /** Empty between calls of `#done`, which are never nested: a publish channel settles after `publish`. */
  readonly #released: Entry<T>[] = []

  constructor(broker: Pick<Broker, "publishChannel">, options: PublisherOptions<T>) {
    this.#options = options
    this.#window = new PublishWindow(options.limits, options.groupOf)
    this.#publishChannel = broker.publishChannel(this)
  }

  /** What was accepted and is not done yet, for those who wait for room in it. */
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
   * Since when the broker has confirmed nothing, or null when nothing is in flight. A slow broker is not a silent one:
   * over a narrow network a full window takes long, and reconnecting would only begin it again.
   */
  silentSinceMs(): number | null {
    const sentAtMs = this.#window.oldestSentAtMs()
    return sentAtMs === null ? null : Math.max(sentAtMs, this.#confirmedAtMs)
  }

  /** Accepts one message; from now on it is kept until it is done. */
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

  /** When the broker last confirmed a message; `-Infinity` when it never has. */
  get confirmedAtMs(): number {
    return this.#confirmedAtMs
  }

  /**
   * Ends as "given_up" the messages sent at `sentByMs` or before that are still unconfirmed: their queue takes nothing
   * while the broker confirms others. A later confirm of such a message changes nothing.
   */
  giveUp(sentByMs: number, mayEnd: (item: T) => boolean): void {
    const given = this.#window.sentBy(sentByMs).filter(({ item }) => mayEnd(item))
    for (const entry of given) this.settled(entry, "given_up")
  }

  /** Stops the timer; what is in the window stays there. */
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

/** Of several publishers, since when the one that has waited longest; Infinity when nothing is with the broker. */
export function silentSinceMs(publishers: readonly { silentSinceMs(): number | null }[]): number {
  const each = publishers.map((publisher) => publisher.silentSinceMs())
  return Math.min(...each.filter((sinceMs) => sinceMs !== null))
}
