/**
 * The handshake queue: accepted sockets are paused until admission allows their handshakes to
 * start. First in, first out.
 *
 *   wait ──► paused ─┬─ admission allows it ─────► resumed, handshake started
 *                    ├─ the peer has closed ─────► skipped
 *                    └─ clear ───────────────────► returned to the caller
 *
 * A paused socket does not report that its peer has closed until it is resumed, so some handshakes
 * are started for peers that are gone. One timer serves the whole queue, and only with a fixed
 * rate. Bound: `maxWaiting` of admission.
 */

import { Fifo } from "../structures/fifo.ts"
import type { Admission } from "./admission.ts"

export interface PausableSocket {
  pause(): unknown
  resume(): unknown
}

/** An entry of the queue. */
export class QueuedHandshake<S extends PausableSocket> {
  readonly socket: S
  /** Of the device. */
  readonly address: string
  gone = false

  constructor(socket: S, address: string) {
    this.socket = socket
    this.address = address
  }
}

export interface HandshakeQueueOptions<S> {
  readonly steadyMs: () => number
  /** While this returns false, no handshake starts. Call `next` when it returns true again. */
  readonly open: () => boolean
  /** Starts a handshake and counts it with admission. The socket is resumed afterwards. */
  readonly begin: (socket: S, address: string) => void
}

export class HandshakeQueue<S extends PausableSocket> {
  readonly #admission: Admission
  readonly #options: HandshakeQueueOptions<S>
  readonly #queue = new Fifo<QueuedHandshake<S>>()
  #gone = 0
  #timer: ReturnType<typeof setTimeout> | null = null

  constructor(admission: Admission, options: HandshakeQueueOptions<S>) {
    this.#admission = admission
    this.#options = options
  }

  /** Waiting sockets, without those that are known to be closed. */
  get waiting(): number {
    return this.#queue.length - this.#gone
  }

  wait(socket: S, address: string): QueuedHandshake<S> {
    socket.pause()
    const queued = new QueuedHandshake(socket, address)
    this.#queue.push(queued)
    return queued
  }

  /** The socket of this entry has closed. */
  leave(queued: QueuedHandshake<S>): void {
    if (queued.gone) return
    queued.gone = true
    this.#gone += 1
  }

  /** Starts as many handshakes as admission allows now. */
  next(): void {
    while (this.#queue.length > 0 && this.#options.open()) {
      const inMs = this.#admission.beginsInMs(this.#options.steadyMs())
      if (inMs > 0) {
        this.#nextIn(inMs)
        return
      }
      const queued = this.#queue.shift()
      if (queued === undefined) return
      if (queued.gone) this.#gone -= 1
      else {
        this.#options.begin(queued.socket, queued.address)
        queued.socket.resume()
      }
    }
  }

  /** Empties the queue and returns the entries whose sockets are not known to be closed. */
  clear(): QueuedHandshake<S>[] {
    const entries: QueuedHandshake<S>[] = []
    for (let queued = this.#queue.shift(); queued !== undefined; queued = this.#queue.shift()) {
      if (!queued.gone) entries.push(queued)
    }
    this.#gone = 0
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.#timer = null
    return entries
  }

  #nextIn(ms: number): void {
    if (this.#timer !== null || !Number.isFinite(ms)) return
    this.#timer = setTimeout(() => {
      this.#timer = null
      this.next()
    }, ms)
  }
}
