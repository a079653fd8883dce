/**
 * The unfinished lines of all devices of a worker: lines whose first bytes were received, but not
 * their last one. The length before a line belongs to it.
 *
 *   first bytes ──began──► being read ─┬─ the line's last byte ───────────────────► ended
 *                             ▲   │    ├─ LINE_TIMEOUT_MS after its first byte ───► line_timeout
 *                  reading    │   │    └─ the oldest, above MAX_PARTIAL_BYTES ────► line_timeout
 *                  resumed    │   ▼
 *                          paused: the device is not read and cannot end its line, so no time passes
 *
 * More bytes do not extend the time of a line: otherwise a peer could hold memory for ever by
 * sending single bytes. After a pause of reading, or of the whole process, a line has its full time
 * again.
 *
 * Lines that are being read are ordered by the start of their time, so the oldest is found at once
 * and the sweep visits only lines that are due, and one more. A chunk that ends with a complete
 * line costs nothing here. The owner closes its connection. Paused lines are not closed: they do
 * not grow, so the bound holds without that.
 *
 * Bound: `maxPartialBytes` plus one chunk. The framers may allocate twice that, and at least 256
 * bytes for each line.
 */

import { ByAge } from "../structures/by-age.ts"

export interface UnfinishedLinesLimits {
  readonly maxPartialBytes: number
  readonly lineTimeoutMs: number
}

export interface LineOwner {
  /**
   * Closes the connection as `line_timeout` and releases its unfinished bytes before it returns.
   */
  closeUnfinished(): void
}

export class UnfinishedLines {
  readonly #limits: UnfinishedLinesLimits
  /** Ordered by the start of each line's time. */
  readonly #timed = new ByAge<LineOwner>()
  #bytes = 0

  constructor(limits: UnfinishedLinesLimits) {
    this.#limits = limits
  }

  /** Bytes of all unfinished lines, including paused ones. */
  get bytes(): number {
    return this.#bytes
  }

  /** Unfinished lines that are being read. */
  get timedCount(): number {
    return this.#timed.size
  }

  /** Starts or restarts the time of the owner's line. */
  began(owner: LineOwner, steadyMs: number): void {
    this.#timed.add(owner, steadyMs)
  }

  /** Stops the time of the owner's line: it has ended, or its device is not read. */
  stopped(owner: LineOwner): void {
    this.#timed.delete(owner)
  }

  /**
   * Adds to the bytes of unfinished lines; negative to subtract. May close connections, including
   * the caller's.
   */
  hold(bytes: number): void {
    this.#bytes += bytes
    if (this.#bytes < 0) throw new Error(`${this.#bytes} bytes of unfinished lines`)
    if (bytes <= 0) return
    while (this.#bytes > this.#limits.maxPartialBytes) {
      const { oldest } = this.#timed
      if (oldest === null) return
      this.#close(oldest.item)
    }
  }

  /**
   * Closes connections whose line is due. Call this periodically.
   * @param steadyMs milliseconds of a monotonic clock.
   * @param wasStopped whether this process was stopped: bytes that devices sent in the meantime are
   * still unread.
   */
  sweep(steadyMs: number, wasStopped: boolean): void {
    if (wasStopped) for (const owner of this.#timed.items()) this.#timed.add(owner, steadyMs)
    for (let { oldest } = this.#timed; oldest !== null; oldest = this.#timed.oldest) {
      if (steadyMs - oldest.atMs < this.#limits.lineTimeoutMs) return
      this.#close(oldest.item)
    }
  }

  #close(owner: LineOwner): void {
    this.#timed.delete(owner)
    owner.closeUnfinished()
  }
}
