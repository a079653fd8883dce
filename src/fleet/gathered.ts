/**
 * Gathers what is to be sent to one destination, so that much of it shares one message.
 *
 *   nothing ──soon──► due ──send schedule──► sending ──ended──► nothing or due
 *
 * One message at a time: what comes before `ended` is called shares the next one.
 */

import type { SendSchedule } from "./send-schedule.ts"

export class Gathered {
  readonly #schedule: Pick<SendSchedule, "soon">
  readonly #send: (ended: () => void) => boolean
  readonly #run = () => this.#sendNow()
  #isSending = false
  #again = false

  /**
   * @param send sends one message, and calls `ended` once, not before it returns. False when there
   * was nothing to send.
   */
  constructor(schedule: Pick<SendSchedule, "soon">, send: (ended: () => void) => boolean) {
    this.#schedule = schedule
    this.#send = send
  }

  soon(): void {
    if (this.#isSending) this.#again = true
    else this.#schedule.soon(this.#run)
  }

  #sendNow(): void {
    this.#again = false
    this.#isSending = true
    const isSent = this.#send(() => {
      this.#isSending = false
      if (this.#again) this.soon()
    })
    if (!isSent) this.#isSending = false
  }
}
