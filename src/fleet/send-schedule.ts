/**
 * The send schedule: when a worker sends what it tells the other workers and the subscribers of
 * presence. All of it is sent in the same turn of the event loop, so it shares one write and the
 * confirms come together. In a fleet of many workers few changes share a message, so what a device
 * costs that comes or goes depends on this and on the number of keepers (`keepers.ts`).
 *
 *   idle ──soon──► soon ──end of tick──► all are sent, resting ──`GATHER_MS`──┬─ nothing is due ─► idle
 *                                              ▲                             └─ otherwise ──┐
 *                                              └────────────────────────────────────────────┘
 *
 * So what comes first waits for nothing, and what comes later waits for at most `GATHER_MS`. Bound:
 * one function for each sender.
 */

/**
 * Each message costs time at its sender, at the broker and at each receiver. A takeover takes up to
 * two of these, and must take less than a second.
 */
export const GATHER_MS = 100

export class SendSchedule {
  readonly #due = new Set<() => void>()
  #state: "idle" | "soon" | "resting" = "idle"

  /** @param send called once; the same function is due once only. */
  soon(send: () => void): void {
    this.#due.add(send)
    if (this.#state !== "idle") return
    this.#state = "soon"
    setImmediate(() => this.#sendAll())
  }

  #sendAll(): void {
    this.#state = "resting"
    setTimeout(() => this.#rested(), GATHER_MS)
    const due = [...this.#due]
    this.#due.clear()
    for (const send of due) send()
  }

  #rested(): void {
    if (this.#due.size === 0) this.#state = "idle"
    else this.#sendAll()
  }
}
