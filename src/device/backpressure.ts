/**
 * Backpressure from the publish window to the devices: which connections wait for room in the
 * window, and how many bytes of lines are held in the meantime.
 *
 *   flowing ──window full──► connections with lines are not read and wait, in order of arrival
 *      ▲                                  │ held bytes exceed `maxHeldBytes`
 *      │                                  ▼
 *      └──held bytes halved────── suspended: no connection of this worker is read
 *
 * Lines that were read stay in the framer of their connection until the window has room, even after
 * the connection has closed. No line is dropped.
 *
 * Bounds: `maxHeldBytes` of complete lines, and a quarter of it of lines that wait for a rate.
 * Beyond the first, only bytes that the kernel handed over in the same tick are added, and the
 * listener refuses new connections. Unfinished lines have their own bound (`unfinished-lines.ts`).
 */

export interface WaitingReader {
  /**
   * Publishes held lines while the window has room. False when lines are left, so that it must wait
   * again.
   */
  pump(): boolean
}

export interface Room {
  /** Whether the window accepts one more line. */
  readonly hasRoom: boolean
}

export class Backpressure {
  readonly #maxHeldBytes: number
  readonly #window: Room
  readonly #setSuspended: (suspended: boolean) => void
  readonly #waiting = new Set<WaitingReader>()
  #heldBytes = 0
  #heldForRateBytes = 0
  #suspended = false

  /**
   * @param window the publish window that all lines pass.
   * @param setSuspended called when all reading must stop and when it may continue.
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

  /** Appends `reader` to those that wait for room, unless it waits already. */
  wait(reader: WaitingReader): void {
    this.#waiting.add(reader)
  }

  /**
   * Whether more lines may be held because their device has reached its rate. They do not count as
   * held for the window, or devices at their rate would stop all others.
   */
  get hasRoomForRate(): boolean {
    return this.#heldForRateBytes < this.#maxHeldBytes / 4
  }

  /** Adds to the bytes that are held for a device's rate. Negative for bytes no longer held. */
  holdForRate(bytes: number): void {
    this.#heldForRateBytes += bytes
  }

  /** Adds to the held bytes. Negative for bytes that are no longer held. */
  hold(bytes: number): void {
    this.#heldBytes += bytes
    const limit = this.#suspended ? this.#maxHeldBytes / 2 : this.#maxHeldBytes
    const suspend = this.#heldBytes > limit
    if (suspend === this.#suspended) return
    this.#suspended = suspend
    this.#setSuspended(suspend)
  }

  /** Call this when the window has room again. Resumes waiting readers in order of arrival. */
  roomAgain(): void {
    for (const reader of this.#waiting) {
      if (!this.#window.hasRoom) return
      this.#waiting.delete(reader)
      if (!reader.pump()) this.#waiting.add(reader)
    }
  }
}
