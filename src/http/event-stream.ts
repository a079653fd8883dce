/**
 * Server-sent events for a bounded number of clients, each as far behind as a bound allows.
 *
 *   push ─► behind, at most `MAX_BEHIND` ─► client          more ─► counted ─► event `missed`
 *   nothing for `KEEP_ALIVE_MS` ─► a comment
 *   the client closes, `end`, or `stopping` ─► stopped
 *
 * Bounds: `MAX_CLIENTS` clients at a time; `MAX_BEHIND` events or `MAX_BEHIND_CHARACTERS` for each.
 */

import type { Context } from "hono"
import { type SSEStreamingApi, streamSSE } from "hono/streaming"
import { type HttpEnvironment, refuse } from "./errors.ts"

const MAX_CLIENTS = 16
const MAX_BEHIND = 1_000
const MAX_BEHIND_CHARACTERS = 4_194_304
/** Shorter than the idle time-outs of this server and of most proxies. */
const KEEP_ALIVE_MS = 5_000

export interface StreamEvent {
  readonly event: string
  readonly data: string
  readonly id?: string
}

/** Where a source sends its events. */
export interface EventSink {
  readonly push: (event: StreamEvent) => void
  /** So many events were dropped before. */
  readonly missed: (count: number) => void
  /** Ends the stream once all events are sent. */
  readonly end: () => void
}

/** Starts sending events. Returns a function that stops it. */
export type StartEvents = (sink: EventSink) => () => void

export class EventStreams {
  readonly #what: string
  readonly #stopping: AbortSignal
  #clients = 0

  /**
   * @param what the clients follow, for messages.
   * @param stopping aborted when the server stops: then all streams end.
   */
  constructor(what: string, stopping: AbortSignal) {
    this.#what = what
    this.#stopping = stopping
  }

  answer(c: Context<HttpEnvironment>, start: StartEvents): Response {
    // Hono answers HEAD with the route of GET and drops the stream, which would then never end.
    if (c.req.method === "HEAD") return c.body(null, 200, { "content-type": "text/event-stream" })
    if (this.#clients >= MAX_CLIENTS)
      return refuse(c, "busy", `${MAX_CLIENTS} clients already follow ${this.#what}`)
    return streamSSE(c, async (stream) => {
      this.#clients += 1
      try {
        await stream.write(`: ${this.#what}\n\n`)
        await send(stream, start, this.#stopping)
      } finally {
        this.#clients -= 1
      }
    })
  }
}

async function send(
  stream: SSEStreamingApi,
  start: StartEvents,
  stopping: AbortSignal,
): Promise<void> {
  let behind: StreamEvent[] = []
  let charactersBehind = 0
  let missed = 0
  let isOver = stopping.aborted
  let wake = () => {}
  const end = () => {
    isOver = true
    wake()
  }
  stream.onAbort(end)
  stopping.addEventListener("abort", end)
  const stop = start({
    push: (event) => {
      if (behind.length < MAX_BEHIND && charactersBehind < MAX_BEHIND_CHARACTERS) {
        behind.push(event)
        charactersBehind += event.data.length
      } else missed += 1
      wake()
    },
    missed: (count) => {
      missed += count
      wake()
    },
    end,
  })
  try {
    while (!stream.aborted && !stream.closed) {
      if (behind.length + missed > 0) {
        const events = behind
        const skipped = missed
        behind = []
        charactersBehind = 0
        missed = 0
        for (const event of events) await stream.writeSSE(event)
        if (skipped > 0) await stream.writeSSE({ event: "missed", data: String(skipped) })
        continue
      }
      if (isOver) break
      const { promise, resolve } = Promise.withResolvers<"woken" | "quiet">()
      wake = () => resolve("woken")
      const timer = setTimeout(() => resolve("quiet"), KEEP_ALIVE_MS)
      if ((await promise) === "quiet") await stream.write(": keep-alive\n\n")
      clearTimeout(timer)
    }
  } finally {
    stopping.removeEventListener("abort", end)
    stop()
  }
}
