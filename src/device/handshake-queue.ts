/**
 * The handshake queue: accepted sockets that wait, paused, until admission lets their handshakes begin; first come,
 * first served.
 *
 *   wait ──► paused ─┬─ admission lets it begin ──► resumed, begun
 *                    ├─ the peer has gone ────────► skipped
 *                    └─ clear ────────────────────► handed back
 *
 * Never decides: admission does. A paused socket does not report that its peer has gone until it is resumed, so some handshakes are begun
 * for peers that have gone. One timer for the whole queue, and only where a rate is set. Bound: admission's `maxWaiting`.
 */

import { Fifo } from "../structures/fifo.ts"
import type { Admission } from "./admission.ts"

export interface PausableSocket {
  pause(): unknown
  resume(): unknown
}

/** A place in the queue. */
export class QueuedHandshake<S extends PausableSocket> {
  readonly socket: S
  gone = false

  constructor(socket: S) {
    this.socket = socket
  }
}

export interface HandshakeQueueOptions<S> {
  readonly steadyMs: () => number
  /** False holds everybody up; `next` is to be called when it is over. */
  readonly open: () => boolean
  /** Begins a handshake: counts it with admission, and reads the socket from now on. */
  readonly begin: (socket: S) => void
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

  /** Sockets that wait and whose peers, as far as is known, do too. */
  get waiting(): number {
    return this.#queue.length - this.#gone
  }

  wait(socket: S): QueuedHandshake<S> {
    socket.pause()
    const queued = new QueuedHandshake(socket)
    this.#queue.push(queued)
    return queued
  }

  /** The peer does not wait any more. */
  leave(queued: QueuedHandshake<S>): void {
    if (queued.gone) return
    queued.gone = true
    this.#gone += 1
  }

  /** Begins as many as may begin now. */
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
        this.#options.begin(queued.socket)
        queued.socket.resume()
      }
    }
  }

  /** Ends all waiting; returns the sockets. */
  clear(): S[] {
    const sockets: S[] = []
    for (let queued = this.#queue.shift(); queued !== undefined; queued = this.#queue.shift()) {
      if (!queued.gone) sockets.push(queued.socket)
    }
    this.#gone = 0
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.#timer = null
    return sockets
  }

  #nextIn(ms: number): void {
    if (this.#timer !== null || !Number.isFinite(ms)) return
    this.#timer = setTimeout(() => {
      this.#timer = null
      this.next()
    }, ms)
  }
}
