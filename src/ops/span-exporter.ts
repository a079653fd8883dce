/**
 * Sends spans to a collector, as OTLP over HTTP in JSON (`POST /v1/traces` of the OpenTelemetry
 * protocol).
 *
 *   span ─► waiting (`MAX_WAITING`) ─► every `EVERY_MS`, at most `MAX_BATCH` ─► one request at a time
 *
 * Spans have no guarantee: those that the collector does not take are dropped and counted. Lines do
 * not wait for it. Rejected: `@opentelemetry/sdk-node`, dozens of packages for one
 * request.
 *
 * Bounds: `MAX_WAITING` spans, beyond which new ones are dropped; `REQUEST_TIMEOUT_MS` a request.
 */

import type { Counters } from "../counters.ts"
import { errorText } from "../errors.ts"
import type { Span } from "../lines/traces.ts"
import { VERSION } from "../version.ts"

export const MAX_WAITING = 2_048
export const MAX_BATCH = 512
const EVERY_MS = 1_000
const REQUEST_TIMEOUT_MS = 5_000
/** Of the last request, while the worker stops. */
const STOP_TIMEOUT_MS = 1_000
const TELL_EVERY_MS = 60_000
/** `SPAN_KIND_PRODUCER`. */
const PRODUCER = 4

export interface SpanExporterOptions {
  readonly url: string
  readonly worker: string
  readonly counters: Counters
  /** Milliseconds of a monotonic clock. */
  readonly steadyMs: () => number
  readonly warn: (message: string) => void
}

export class SpanExporter {
  readonly #options: SpanExporterOptions
  readonly #waiting: Span[] = []
  #timer: ReturnType<typeof setTimeout> | null = null
  /** The request that is being made. */
  #sending: Promise<void> | null = null
  #toldAtMs = Number.NEGATIVE_INFINITY
  #isStopped = false
  readonly #stopping = new AbortController()

  constructor(options: SpanExporterOptions) {
    this.#options = options
  }

  readonly add = (span: Span): void => {
    if (this.#waiting.length >= MAX_WAITING || this.#isStopped) {
      this.#options.counters.spans.dropped += 1
      return
    }
    this.#waiting.push(span)
    if (this.#sending === null) this.#timer ??= setTimeout(this.#due, EVERY_MS)
  }

  /** Sends what waits, for a second at most. What comes later is dropped. */
  async stop(): Promise<void> {
    this.#isStopped = true
    if (this.#timer !== null) clearTimeout(this.#timer)
    const giveUp = setTimeout(() => this.#stopping.abort(), STOP_TIMEOUT_MS)
    await this.#sending
    while (this.#waiting.length > 0) await this.#sendBatch()
    clearTimeout(giveUp)
  }

  readonly #due = async (): Promise<void> => {
    this.#timer = null
    this.#sending = this.#sendBatch()
    await this.#sending
    this.#sending = null
    if (this.#isStopped || this.#waiting.length === 0) return
    this.#timer = setTimeout(this.#due, this.#waiting.length < MAX_BATCH ? EVERY_MS : 0)
  }

  async #sendBatch(): Promise<void> {
    const { url, counters } = this.#options
    const spans = this.#waiting.splice(0, MAX_BATCH)
    const fault = await this.#post(url, JSON.stringify(this.#requestOf(spans)))
    if (fault === null) counters.spans.exported += spans.length
    else {
      counters.spans.dropped += spans.length
      this.#tell(fault)
    }
  }

  /** @returns why the collector has not taken it; null when it has. */
  async #post(url: string, body: string): Promise<string | null> {
    try {
      const response = await fetch(url, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body,
        redirect: "error",
        signal: AbortSignal.any([AbortSignal.timeout(REQUEST_TIMEOUT_MS), this.#stopping.signal]),
      })
      await response.body?.cancel()
      return response.ok ? null : `it answers ${response.status}`
    } catch (error) {
      return errorText(error)
    }
  }

  #tell(fault: string): void {
    const nowMs = this.#options.steadyMs()
    if (nowMs - this.#toldAtMs < TELL_EVERY_MS) return
    this.#toldAtMs = nowMs
    this.#options.warn(`OTLP_URL does not take the spans of traces, which are dropped: ${fault}`)
  }

  #requestOf(spans: readonly Span[]) {
    const { worker } = this.#options
    const resource = {
      attributes: [
        attribute("service.name", "owsla"),
        attribute("service.version", VERSION),
        attribute("service.instance.id", worker),
      ],
    }
    const scopeSpans = [{ scope: { name: "owsla", version: VERSION }, spans: spans.map(otlpSpan) }]
    return { resourceSpans: [{ resource, scopeSpans }] }
  }
}

/** The names of attributes are those of OpenTelemetry's conventions for messaging. */
function otlpSpan(span: Span) {
  return {
    traceId: span.traceId,
    spanId: span.spanId,
    name: `send ${span.queue}`,
    kind: PRODUCER,
    startTimeUnixNano: nanoseconds(span.startMs),
    endTimeUnixNano: nanoseconds(span.endMs),
    attributes: [
      attribute("messaging.system", "rabbitmq"),
      attribute("messaging.operation.name", "publish"),
      attribute("messaging.operation.type", "send"),
      attribute("messaging.destination.name", span.queue),
      attribute("messaging.message.id", span.messageId),
      attribute("messaging.message.body.size", span.bytes),
      attribute("owsla.device_id", span.deviceId),
      attribute("owsla.connection_id", span.connectionId),
      attribute("owsla.from_device_seq", span.seq),
    ],
  }
}

/** 64-bit integers are text in the JSON of protocol buffers. */
function attribute(key: string, value: string | number) {
  return {
    key,
    value: typeof value === "string" ? { stringValue: value } : { intValue: String(value) },
  }
}

/** @param ms since 1970, with a fraction. */
function nanoseconds(ms: number): string {
  return String(BigInt(Math.round(ms * 1_000)) * 1_000n)
}
