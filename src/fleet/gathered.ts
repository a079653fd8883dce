/**
 * Gathers what is to be sent, so that much of it shares one message.
 *
 *   nothing ──soon──► soon ──end of tick──► sending ──ended, and `GATHER_MS` later──► nothing or soon
 *
 * The first is sent at the end of its tick. What comes within `GATHER_MS`, or before `ended` is
 * called, shares the next message.
 */

/** Each message costs time at its sender and at each receiver. */
export const GATHER_MS = 20

export class Gathered {
  readonly #send: (ended: () => void) => boolean
  #state: "nothing" | "soon" | "sending" = "nothing"
  #again = false

  /**
   * @param send sends one message, and calls `ended` once, not before it returns. False when there
   * was nothing to send.
   */
  constructor(send: (ended: () => void) => boolean) {
    this.#send = send
  }

  soon(): void {
    if (this.#state === "sending") this.#again = true
    if (this.#state !== "nothing") return
    this.#state = "soon"
    setImmediate(() => this.#run())
  }

  #run(): void {
    this.#state = "sending"
    this.#again = false
    let left = 2
    const done = () => {
      left -= 1
      if (left > 0) return
      this.#state = "nothing"
      if (this.#again) this.soon()
    }
    if (!this.#send(done)) {
      this.#state = "nothing"
      return
    }
    setTimeout(done, GATHER_MS)
  }
}
