/**
 * Backpressure of the publish window on the devices: who waits for room in it, and what is held
 * meanwhile.
 *
 *   flowing ──window full──► the connections that have lines wait, in order of arrival, unread
 *      ▲                                  │ held bytes over `maxHeldBytes`
 *      │                                  ▼
 *      └──────half held────────── suspended: no connection of this worker is read
 *
 * Lines that were read stay in their connection's framer until there is room, even after the
 * connection has closed. Never drops anything. Bound: `maxHeldBytes` of whole lines that were read and
 * wait, beyond which only what the kernel had handed over in the same tick is added, and the listener
 * refuses new connections. Unfinished lines have a bound of their own (`unfinished-lines.ts`).
 */

export interface WaitingReader {
  /** Publishes what it holds while there is room; false when it must wait again. */
  pump(): boolean
}

export interface Room {
  /** Whether one more line may enter. */
  readonly hasRoom: boolean
}

export class Backpressure {
  readonly #maxHeldBytes: number
  readonly #window: Room
  readonly #setSuspended: (suspended: boolean) => void
  readonly #waiting = new Set<WaitingReader>()
  #heldBytes = 0
  #suspended = false

  /**
   * @param window the publish window, which every line enters.
   * @param setSuspended called when all reading must stop and when it may go on.
   */
  constructor(maxHeldBytes: number, window: Room, setSuspended: (suspended: boolean) => void) {
    this.#maxHeldBytes = maxHeldBytes
    this.#window = window
    this.#setSuspended = setSuspended
  }

  get hasRoom(): boolean {
    return this.#window.hasRoom
  }

  get suspended(): boolean {
    return this.#suspended
  }

  get heldBytes(): number {
    return this.#heldBytes
  }

  get waitingCount(): number {
    return this.#waiting.size
  }

  /** Enters `reader` at the end of the line for room, unless it waits already. */
  wait(reader: WaitingReader): void {
    this.#waiting.add(reader)
  }

  /** Accounts for bytes that were read and are held, or, negative, no longer. */
  hold(bytes: number): void {
    this.#heldBytes += bytes
    const limit = this.#suspended ? this.#maxHeldBytes / 2 : this.#maxHeldBytes
    const suspend = this.#heldBytes > limit
    if (suspend === this.#suspended) return
    this.#suspended = suspend
    this.#setSuspended(suspend)
  }

  /** To be called when the window has room again: those who wait go first come, first served. */
  roomAgain(): void {
    for (const reader of this.#waiting) {
      if (!this.#window.hasRoom) return
      this.#waiting.delete(reader)
      if (!reader.pump()) this.#waiting.add(reader)
    }
  }
}
