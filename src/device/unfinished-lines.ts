/**
 * The unfinished lines of all devices of a worker: lines of which bytes have come, and whose end has not.
 *
 *   first bytes ──began──► being read ─┬─ the line's end ─────────────────────────► ended
 *                             ▲   │    ├─ LINE_TIMEOUT_MS after its first byte ───► line_timeout
 *                  reading    │   │    └─ the oldest, beyond MAX_PARTIAL_BYTES ───► line_timeout
 *                  goes on    │   ▼
 *                          not read: a device that is paused cannot end its line, so no time passes
 *
 * More bytes of a line do not extend its time: a peer that sends a byte now and then would hold its bytes for ever.
 * After a pause a line has its whole time again, and so has every line after a pause of this process.
 *
 * The lines that are being read are in the order in which their time began, so the sweep looks at those that are due and
 * one more, and the oldest is found at once. A chunk that ends with a line costs nothing here. Never closes by itself: it
 * asks the owner. Never drops bytes of a line that is paused: it grows no more meanwhile, so the bound holds without that.
 *
 * Bound: `maxPartialBytes`, plus one chunk. The framers' memory may be twice that, and 256 bytes for a short line.
 */

import { ByAge } from "../structures/by-age.ts"

export interface UnfinishedLinesLimits {
  readonly maxPartialBytes: number
  readonly lineTimeoutMs: number
}

export interface LineOwner {
  /** Ends the connection as `line_timeout`, and lets go of its bytes before it returns. */
  closeUnfinished(): void
}

export class UnfinishedLines {
  readonly #limits: UnfinishedLinesLimits
  /** By when the time of each began. */
  readonly #timed = new ByAge<LineOwner>()
  #bytes = 0

  constructor(limits: UnfinishedLinesLimits) {
    this.#limits = limits
  }

  /** Bytes of unfinished lines, of paused devices too. */
  get bytes(): number {
    return this.#bytes
  }

  /** Lines whose time passes. */
  get timedCount(): number {
    return this.#timed.size
  }

  /** The time of the owner's line begins now, or begins again. */
  began(owner: LineOwner, steadyMs: number): void {
    this.#timed.add(owner, steadyMs)
  }

  /** The line has ended or its device is not read: its time does not pass. */
  stopped(owner: LineOwner): void {
    this.#timed.delete(owner)
  }

  /** Accounts for bytes of unfinished lines that came, or, negative, went. May end connections, the caller's too. */
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
   * Ends what is due. To be called regularly.
   * @param steadyMs never jumps.
   * @param wasStopped this process was: what devices sent meanwhile is still to be read.
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
