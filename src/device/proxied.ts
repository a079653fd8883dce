/**
 * Connections through proxies that speak the PROXY protocol: reads the header of each before its
 * TLS handshake.
 *
 *   take ─┬─ the peer is not a proxy of PROXY_FROM ──────────────────────────► refused: not_proxied
 *         └─ paused, looked at ─┬─ header complete ─────────────────────────► arrived, with the client's address
 *                  ▲            ├─ not a header, or HANDSHAKE_TIMEOUT_MS over ► refused: not_proxied
 *                  └─ nothing ──┤
 *                     yet       └─ the peer has closed ─────────────────────► refused: peer_closed
 *
 * A paused socket reports nothing, so the waiting ones are looked at again: in the next tick, then
 * every `LOOK_EVERY_MS`, at most `LOOKS_AT_ONCE` in one tick. After a LOCAL header (a health check)
 * the first byte of TLS is awaited too: such a check often closes then.
 *
 * Bound: `maxWaiting`, beyond it connections are refused (overloaded).
 */

import { AddressBlocks, normalAddress } from "./address.ts"
import type { CloseReason } from "./close-reason.ts"
import type { PausableSocket } from "./handshake-queue.ts"
import { type PeekableSocket, SocketPeek } from "./peek.ts"
import { MAX_HEADER_BYTES, parseProxyHeader } from "./proxy-header.ts"

const LOOK_EVERY_MS = 5
/** A look takes about 1.5 us. */
const LOOKS_AT_ONCE = 200

export interface ProxiedSocket extends PausableSocket, PeekableSocket {
  /** Undefined once the peer has reset the connection. */
  readonly remoteAddress: string | undefined
}

export interface ProxiedOptions<S> {
  readonly from: readonly string[]
  /** So many may wait now. */
  readonly maxWaiting: () => number
  readonly timeoutMs: number
  readonly steadyMs: () => number
  /** The header was read. The socket is paused. */
  readonly arrived: (socket: S, address: string) => void
  /** @param detail null when the proxy has closed, as after a health check: no device was there. */
  readonly refuse: (socket: S, reason: CloseReason, detail: string | null) => void
}

interface Waiting {
  /** Of the proxy. */
  readonly address: string
  readonly sinceMs: number
  /** After a LOCAL header. */
  isRead: boolean
}

export class Proxied<S extends ProxiedSocket> {
  readonly #options: ProxiedOptions<S>
  readonly #from: AddressBlocks
  readonly #peek = new SocketPeek(MAX_HEADER_BYTES)
  /** In the order in which they are looked at next. */
  readonly #waiting = new Map<S, Waiting>()
  #immediate: ReturnType<typeof setImmediate> | null = null
  #timer: ReturnType<typeof setTimeout> | null = null

  constructor(options: ProxiedOptions<S>) {
    this.#options = options
    this.#from = new AddressBlocks(options.from)
  }

  get waiting(): number {
    return this.#waiting.size
  }

  /** Takes an accepted socket. */
  take(socket: S): void {
    const { refuse, maxWaiting, steadyMs } = this.#options
    const { remoteAddress } = socket
    if (remoteAddress === undefined) {
      refuse(socket, "peer_closed", null)
      return
    }
    const address = normalAddress(remoteAddress)
    if (address === null || !this.#from.has(address)) {
      refuse(socket, "not_proxied", `${remoteAddress} is not in PROXY_FROM`)
      return
    }
    if (this.#waiting.size >= maxWaiting()) {
      refuse(socket, "overloaded", "too many connections wait for their PROXY headers")
      return
    }
    socket.pause()
    const waiting: Waiting = { address, sinceMs: steadyMs(), isRead: false }
    if (this.#isDone(socket, waiting)) return
    this.#waiting.set(socket, waiting)
    // Most headers arrive right after the connection.
    this.#immediate ??= setImmediate(() => {
      this.#immediate = null
      this.#lookAgain()
    })
  }

  /** The socket has closed. @returns whether it waited. */
  left(socket: S): boolean {
    return this.#waiting.delete(socket)
  }

  /** Empties the set and returns the waiting sockets. */
  clear(): S[] {
    const sockets = [...this.#waiting.keys()]
    this.#waiting.clear()
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.#timer = null
    return sockets
  }

  #lookAgain(): void {
    let looks = Math.min(LOOKS_AT_ONCE, this.#waiting.size)
    for (const [socket, waiting] of this.#waiting) {
      if (looks === 0) break
      looks -= 1
      this.#waiting.delete(socket)
      if (!this.#isDone(socket, waiting)) this.#waiting.set(socket, waiting)
    }
    if (this.#waiting.size === 0) return
    this.#timer ??= setTimeout(() => {
      this.#timer = null
      this.#lookAgain()
    }, LOOK_EVERY_MS)
  }

  /** @returns false when the socket must wait. */
  #isDone(socket: S, waiting: Waiting): boolean {
    const { arrived, refuse, timeoutMs, steadyMs } = this.#options
    const peeked = this.#peek.look(socket)
    if (peeked.kind === "closed") {
      refuse(socket, "peer_closed", null)
      return true
    }
    const own = waiting.address
    if (peeked.kind === "bytes") {
      if (waiting.isRead) {
        arrived(socket, own)
        return true
      }
      const header = parseProxyHeader(peeked.bytes)
      if (header.kind === "invalid") {
        refuse(socket, "not_proxied", header.detail)
        return true
      }
      if (header.kind === "header") {
        this.#peek.take(socket, header.bytes)
        if (!header.isLocal) {
          arrived(socket, header.address ?? own)
          return true
        }
        waiting.isRead = true
      }
    }
    if (steadyMs() - waiting.sinceMs < timeoutMs) return false
    if (waiting.isRead) arrived(socket, own)
    else refuse(socket, "not_proxied", "no complete PROXY header within HANDSHAKE_TIMEOUT_MS")
    return true
  }
}
