/**
 * Receipts that the broker refused (`basic.nack`) and that are published again for a while.
 *
 *   refused ──► waiting ──timer──► published again ─┬─ confirmed ─► sent
 *                  ▲                                ├─ returned ──► given up: the reply queue does not exist
 *                  └────────── refused again ───────┴─ for `RETRY_FOR_MS`, or no room ─► given up
 *
 * RabbitMQ before 4 refuses publishes to a quorum queue while it elects a leader, for some seconds
 * after the node of the leader has failed. A full reply queue (`x-overflow: reject-publish`)
 * refuses in the same way, and may stay full. So the command is acknowledged at once and delays no
 * other. If the worker dies meanwhile, the receipt is lost.
 *
 * Bounds: `MAX_LATE` receipts, `MAX_LATE_OF_QUEUE` for one reply queue, each for `RETRY_FOR_MS`
 * from the first sweep that sees it. Waits double from `FIRST_WAIT_MS` to `MAX_WAIT_MS`.
 */

import type { MessageProperties } from "../broker/broker.ts"
import type { OutboundMessages } from "../broker/outbound-messages.ts"
import type { FinalResult } from "../broker/publish-window.ts"

export const MAX_LATE = 10_000
/** Keeps room for the receipts of other reply queues. */
export const MAX_LATE_OF_QUEUE = 5_000
export const RETRY_FOR_MS = 15_000
const FIRST_WAIT_MS = 250
const MAX_WAIT_MS = 2_000

interface LateReceipt {
  readonly queue: string
  readonly body: Uint8Array
  readonly properties: MessageProperties
  readonly ended: (isSent: boolean) => void
  waitMs: number
  /** Null before the first sweep that sees it. */
  dueAtMs: number | null
  giveUpAtMs: number | null
}

export class LateReceipts {
  readonly #outboundMessages: OutboundMessages
  readonly #waiting = new Set<LateReceipt>()
  readonly #countOf = new Map<string, number>()
  #count = 0

  constructor(outboundMessages: OutboundMessages) {
    this.#outboundMessages = outboundMessages
  }

  /** The number of receipts that wait or are being published again. */
  get count(): number {
    return this.#count
  }

  /**
   * @param ended called once, with whether the receipt was sent.
   * @returns false when there is no room.
   */
  add(
    queue: string,
    body: Uint8Array,
    properties: MessageProperties,
    ended: (isSent: boolean) => void,
  ): boolean {
    const ofQueue = this.#countOf.get(queue) ?? 0
    if (this.#count >= MAX_LATE || ofQueue >= MAX_LATE_OF_QUEUE) return false
    this.#count += 1
    this.#countOf.set(queue, ofQueue + 1)
    const late = { queue, body, properties, ended, waitMs: FIRST_WAIT_MS }
    this.#waiting.add({ ...late, dueAtMs: null, giveUpAtMs: null })
    return true
  }

  /** Publishes the receipts whose wait is over. To be called periodically. */
  sweep(steadyMs: number): void {
    for (const late of this.#waiting) {
      late.giveUpAtMs ??= steadyMs + RETRY_FOR_MS
      late.dueAtMs ??= steadyMs + late.waitMs
      if (steadyMs < late.dueAtMs) continue
      this.#waiting.delete(late)
      this.#publish(late, steadyMs)
    }
  }

  #left(queue: string): void {
    this.#count -= 1
    const ofQueue = (this.#countOf.get(queue) ?? 0) - 1
    if (ofQueue > 0) this.#countOf.set(queue, ofQueue)
    else this.#countOf.delete(queue)
  }

  #publish(late: LateReceipt, steadyMs: number): void {
    const done = (result: FinalResult) => {
      const isLast = steadyMs >= (late.giveUpAtMs ?? 0)
      if (result !== "nacked" || isLast) {
        this.#left(late.queue)
        late.ended(result === "confirmed")
        return
      }
      late.waitMs = Math.min(MAX_WAIT_MS, late.waitMs * 2)
      late.dueAtMs = null
      this.#waiting.add(late)
    }
    const final = { whenReturned: "final", whenNacked: "final", whenUnconfirmed: "final" } as const
    this.#outboundMessages.send(late.queue, late.body, late.properties, { ...final, done })
  }
}
