/**
 * Which HTTP connections of a worker may stay open. Pure: takes what happens and the time, returns which to close and why.
 *
 *   open ─► waiting ──the headers are complete──► receiving ──the body is complete──► answering ─┐
 *             ▲ 5 s                                  30 s                             `answerMs` │
 *             └──────────────────────────────the answer is sent──────────────────────────────────┘
 *
 * Each state has a deadline that no byte of the client extends; only an answer that the client takes, such as an event stream, does.
 * At `max` connections a new one takes the place of the one that has waited longest, then of the one that has been receiving longest;
 * so unfinished requests keep nobody out. When all are being answered, the new one is refused. Closing an idle connection is nothing
 * unusual in HTTP: a client opens another.
 *
 * Bounds: `max` connections, `MAX_PIPELINED` unanswered requests on each.
 */

/** Also the time in which an idle connection is kept for the next request, as in Node. */
export const WAITING_MS = 5_000
const RECEIVING_MS = 30_000
const MAX_PIPELINED = 100

export const HTTP_CLOSE_REASONS = [
  /** All connections were being answered. */
  "refused",
  /** It waited longest when a new one needed its place. */
  "made_room",
  /** Its first headers were not complete within `WAITING_MS`. */
  "header_timeout",
  /** The next headers were not complete within `WAITING_MS` of the last answer. */
  "idle",
  "body_timeout",
  /** It took no answer in time. */
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
  /** In the order in which they came into their states. */
  readonly #entries = new Map<C, Entry>()
  readonly #max: number
  readonly #limitsMs: Readonly<Record<State, number>>

  /** @param answerMs how long an answer may take, or may wait for its client. */
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

  /** The headers of a request are complete. @returns whether the request is to be answered; else it is to be closed. */
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

  /** The client took a part of an answer. */
  progressed(connection: C, nowMs: number): void {
    if (this.#entries.get(connection)?.state === "answering") {
      this.#enter(connection, "answering", nowMs)
    }
  }

  /** Whatever is missing of the request's body is discarded while the connection waits. */
  answered(connection: C, nowMs: number): void {
    const entry = this.#entries.get(connection)
    if (entry === undefined) return
    entry.unanswered -= 1
    if (entry.unanswered === 0) this.#enter(connection, "waiting", nowMs)
  }

  closed(connection: C): void {
    this.#entries.delete(connection)
  }

  /** @returns those whose deadline is over. */
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
