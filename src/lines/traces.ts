/**
 * Traces of lines. A device cannot carry a trace context, so a sampled line begins a trace: its
 * message gets the header `traceparent` of W3C Trace Context, and a span says when the line was
 * received and when the broker confirmed it.
 *
 *   line ─► sampled ─► header, the same for each publish ─► confirmed ─► span ─► ended
 *
 * A line that answers a command with a `traceparent` belongs to that trace and begins none.
 * Bound: the window of unconfirmed lines (`line-publisher.ts`).
 */

import { randomBytes } from "node:crypto"
import type { Recipient } from "../device/command.ts"
import type { Line, LinesOptions } from "./line-publisher.ts"

/** What happened to one line. */
export interface Span {
  /** 32 hexadecimal digits. */
  readonly traceId: string
  /** 16 hexadecimal digits. */
  readonly spanId: string
  /** Milliseconds since 1970. */
  readonly startMs: number
  readonly endMs: number
  readonly queue: string
  readonly messageId: string
  readonly deviceId: string
  readonly connectionId: string
  readonly seq: number
  readonly bytes: number
}

export interface LineTracesOptions {
  /** Of all lines, 0 to 1. */
  readonly share: number
  readonly queueOf: LinesOptions["queueOf"]
  readonly steadyMs: () => number
  readonly ended: (span: Span) => void
}

interface TraceIds {
  readonly traceId: string
  readonly spanId: string
}

/** What a trace needs of a line. */
export type TracedLine = Omit<Line, "connection"> & {
  readonly connection: { readonly endpoint: { readonly recipient: Recipient } | null }
}

const TRACE_ID_BYTES = 16
const SPAN_ID_BYTES = 8

export class LineTraces {
  readonly #options: LineTracesOptions
  readonly #traced = new Map<TracedLine, TraceIds>()

  constructor(options: LineTracesOptions) {
    this.#options = options
  }

  /** Call it once for each line, before it is published. */
  begin(line: TracedLine): void {
    if (line.answered?.trace?.traceparent !== undefined) return
    if (Math.random() >= this.#options.share) return
    // At random, as the specification asks for, because other systems sample by the trace id.
    const ids = randomBytes(TRACE_ID_BYTES + SPAN_ID_BYTES).toString("hex")
    const traceId = ids.slice(0, 2 * TRACE_ID_BYTES)
    this.#traced.set(line, { traceId, spanId: ids.slice(2 * TRACE_ID_BYTES) })
  }

  /** Null for a line that is not traced. */
  headersOf(line: TracedLine): { readonly traceparent: string } | null {
    const ids = this.#traced.get(line)
    if (ids === undefined) return null
    // Version 00, and the flag that the trace is recorded.
    return { traceparent: `00-${ids.traceId}-${ids.spanId}-01` }
  }

  /** The broker has confirmed the line. */
  end(line: TracedLine): void {
    const ids = this.#traced.get(line)
    const recipient = line.connection.endpoint?.recipient
    if (ids === undefined || recipient === undefined) return
    this.#traced.delete(line)
    const { deviceId, connectionId } = recipient
    const { queueOf, steadyMs, ended } = this.#options
    ended({
      ...ids,
      startMs: line.readAtMs,
      endMs: line.readAtMs + steadyMs() - line.receivedAtMs,
      queue: queueOf(recipient),
      ...{ deviceId, connectionId, seq: line.seq },
      messageId: `${connectionId}:${line.seq}`,
      bytes: line.body.length,
    })
  }
}
