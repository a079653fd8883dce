/**
 * Limits the number of HTTP connections of a worker and their times. Pure: takes events and the
 * time, and returns the connections to close with their reasons.
 *
 *   open ─► waiting ──the headers are complete──► receiving ──the body is complete──► answering ─┐
 *             ▲ 5 s                                  30 s                             `answerMs` │
 *             └──────────────────────────────the answer is sent──────────────────────────────────┘
 *
 * Each state has a deadline. Bytes from the client do not extend it; in the state `answering`, each
 * part of the response that the client reads does. At `max` connections a new one replaces the
 * connection that has waited longest. If none waits, it replaces the one that has been receiving
 * longest. So unfinished requests do not keep clients out. When all connections are being answered,
 * the new one is refused. Closing an idle connection is normal in HTTP: the client opens another.
 *
 * Bounds: `max` connections, `MAX_PIPELINED` unanswered requests on each.
 */

/** Also the keep-alive time of an idle connection, as in Node. */
export const WAITING_MS = 5_000
const RECEIVING_MS = 30_000
const MAX_PIPELINED = 100

export const HTTP_CLOSE_REASONS = [
  /** All connections were being answered. */
  "refused",
  /** A new connection replaced it. */
  "made_room",
  /** The headers of its first request were not complete within `WAITING_MS`. */
  "header_timeout",
  /**
   * The headers of its next request were not complete within `WAITING_MS` after the last response.
   */
  "idle",
  "body_timeout",
  /** The response was not sent and read in time. */
  "answer_timeout",
  /** Too many requests on one connection before the first was answered. */
  "pipelined",
] as const

export type HttpCloseReason = (typeof HTTP_CLOSE_REASONS)[number]

type State = "waiting" | "receiving" | "answering"

interface Entry {
  state: State
  sinceMs: number
  unanswered: number
  hasAsked: boolean
}

interface Closing<C> {
  readonly connection: C
  readonly reason: HttpCloseReason
}

export class HttpConnections<C> {
  /** In the order in which they entered their states. */
  readonly #entries = new Map<C, Entry>()
  readonly #max: number
  readonly #limitsMs: Readonly<Record<State, number>>

  /** @param answerMs how long a response may take, and how long the client may stop reading it. */
  constructor({ max, answerMs }: { readonly max: number; readonly answerMs: number }) {
    this.#max = max
    this.#limitsMs = { waiting: WAITING_MS, receiving: RECEIVING_MS, answering: answerMs }
  }

  get count(): number {
    return this.#entries.size
  }

  /** Connections whose requests are being received or answered. */
  get busyCount(): number {
    return [...this.#entries.values()].filter(({ state }) => state !== "waiting").length
  }

  all(): C[] {
    return [...this.#entries.keys()]
  }

  /** @returns the connection to close now, if any: another one, or this one. */
  opened(connection: C, nowMs: number): Closing<C> | null {
    const leaving = this.count < this.#max ? null : this.#longest()
    if (this.count >= this.#max && leaving === null) return { connection, reason: "refused" }
    if (leaving !== null) this.#entries.delete(leaving)
    this.#entries.set(connection, {
      state: "waiting",
      sinceMs: nowMs,
      unanswered: 0,
      hasAsked: false,
    })
    return leaving === null ? null : { connection: leaving, reason: "made_room" }
  }

  /**
   * The headers of a request are complete.
   * @returns whether to answer the request; if false, close the connection.
   */
  asked(connection: C, nowMs: number): boolean {
    const entry = this.#entries.get(connection)
    if (entry === undefined || entry.unanswered >= MAX_PIPELINED) return false
    entry.unanswered += 1
    entry.hasAsked = true
    this.#enter(connection, "receiving", nowMs)
    return true
  }

  /** The body of the request is complete. */
  received(connection: C, nowMs: number): void {
    if (this.#entries.get(connection)?.state === "receiving") {
      this.#enter(connection, "answering", nowMs)
    }
  }

  /** The client has read a part of a response. */
  progressed(connection: C, nowMs: number): void {
    if (this.#entries.get(connection)?.state === "answering") {
      this.#enter(connection, "answering", nowMs)
    }
  }

  /**
   * The response is complete. The rest of the request body is discarded while the connection waits.
   */
  answered(connection: C, nowMs: number): void {
    const entry = this.#entries.get(connection)
    if (entry === undefined) return
    entry.unanswered -= 1
    if (entry.unanswered === 0) this.#enter(connection, "waiting", nowMs)
  }

  closed(connection: C): void {
    this.#entries.delete(connection)
  }

  /** @returns the connections whose deadline has passed. */
  overdue(nowMs: number): Closing<C>[] {
    const found: Closing<C>[] = []
    for (const [connection, entry] of this.#entries) {
      if (nowMs - entry.sinceMs < this.#limitsMs[entry.state]) continue
      found.push({ connection, reason: reasonOf(entry) })
    }
    return found
  }

  #longest(): C | null {
    for (const wanted of ["waiting", "receiving"]) {
      for (const [connection, { state }] of this.#entries) if (state === wanted) return connection
    }
    return null
  }

  #enter(connection: C, state: State, nowMs: number): void {
    const entry = this.#entries.get(connection)
    if (entry === undefined) return
    this.#entries.delete(connection)
    entry.state = state
    entry.sinceMs = nowMs
    this.#entries.set(connection, entry)
  }
}

function reasonOf({ state, hasAsked }: Entry): HttpCloseReason {
  if (state === "receiving") return "body_timeout"
  if (state === "answering") return "answer_timeout"
  return hasAsked ? "idle" : "header_timeout"
}
