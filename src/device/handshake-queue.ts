/**
 * The turns: sockets that were accepted and wait, paused, for admission to let their handshakes begin; first come,
 * first served.
 *
 *   wait ──► paused ─┬─ its turn ──► resumed, begun
 *                    ├─ the peer has gone ──► skipped
 *                    └─ clear ──► handed back
 *
 * Never decides: admission does. A paused socket does not tell that its peer has gone until it is resumed, so some
 * turns are spent on nobody. One timer for all, and only where a rate is set. Bound: admission's `maxWaiting`.
 */

import { Fifo } from "../structures/fifo.ts"
import type { Admission } from "./admission.ts"

export interface PausableSocket {
  pause(): unknown
  resume(): unknown
}

/** A place in the queue. */
export class Turn<S extends PausableSocket> {
  readonly socket: S
  gone = false

  constructor(socket: S) {
    this.socket = socket
  }
}

export interface TurnsOptions<S> {
  readonly steadyMs: () => number
  /** False holds everybody up; `next` is to be called when it is over. */
  readonly open: () => boolean
  /** Begins a handshake: counts it with admission, and reads the socket from now on. */
  readonly begin: (socket: S) => void
}

export class Turns<S extends PausableSocket> {
  readonly #admission: Admission
  readonly #options: TurnsOptions<S>
  readonly #queue = new Fifo<Turn<S>>()
  #gone = 0
  #timer: ReturnType<typeof setTimeout> | null = null

  constructor(admission: Admission, options: TurnsOptions<S>) {
    this.#admission = admission
    this.#options = options
  }

  /** Sockets that wait and whose peers, as far as is known, do too. */
  get waiting(): number {
    return this.#queue.length - this.#gone
  }

  wait(socket: S): Turn<S> {
    socket.pause()
    const turn = new Turn(socket)
    this.#queue.push(turn)
    return turn
  }

  /** The peer does not wait any more. */
  leave(turn: Turn<S>): void {
    if (turn.gone) return
    turn.gone = true
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
      const turn = this.#queue.shift()
      if (turn === undefined) return
      if (turn.gone) this.#gone -= 1
      else {
        this.#options.begin(turn.socket)
        turn.socket.resume()
      }
    }
  }

  /** Ends all waiting; returns the sockets. */
  clear(): S[] {
    const sockets: S[] = []
    for (let turn = this.#queue.shift(); turn !== undefined; turn = this.#queue.shift()) {
      if (!turn.gone) sockets.push(turn.socket)
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
