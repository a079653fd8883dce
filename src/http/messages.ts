/**
 * `GET /messages`: the lines of devices as server-sent events, for a first try. Exists with the
 * embedded broker only.
 *
 * Lines stay in the queue. Bounds: `MAX_FOLLOWERS` clients at a time. For a client that reads too
 * slowly, `MAX_BEHIND` events or `MAX_BEHIND_CHARACTERS` are buffered. Further lines are skipped,
 * and an event `missed` contains their number.
 */

import { Hono } from "hono"
import { type SSEStreamingApi, streamSSE } from "hono/streaming"
import * as v from "valibot"
import type { MessageProperties } from "../broker/broker.ts"
import type { Tap } from "../broker/embedded.ts"
import { type HttpEnvironment, refuse } from "./errors.ts"
import type { RouteDescription } from "./route-description.ts"

const MAX_FOLLOWERS = 16
const MAX_BEHIND = 1_000
const MAX_BEHIND_CHARACTERS = 4_194_304
/** Shorter than the idle time-outs of this server and of most proxies. */
const KEEP_ALIVE_MS = 5_000

export interface MessagesDependencies {
  /** Calls `tap` for each line from now on. Returns a function that stops this. */
  readonly tap: (tap: Tap) => () => void
}

export const MESSAGES_ROUTES: readonly RouteDescription[] = [
  {
    method: "get",
    path: "/messages",
    name: "followMessages",
    summary: "The lines of devices as server-sent events. Embedded broker only",
    text: "Each event `line` has the data {device_id, connection_id, from_device_seq, line}, or `line_base64` in place of `line` when the line is not UTF-8. An event `missed` has the number of lines that were skipped because the client reads too slowly.",
    answers: [
      {
        status: 200,
        text: "Events until the client closes the connection.",
        mediaType: "text/event-stream",
        schema: v.string(),
      },
    ],
    errors: ["busy", "not_found"],
  },
]

export function messages({ tap }: MessagesDependencies): Hono<HttpEnvironment> {
  const routes = new Hono<HttpEnvironment>()
  let followers = 0

  routes.get("/messages", (c) => {
    // Hono answers HEAD with the route of GET and drops the stream, which would then never end.
    if (c.req.method === "HEAD") return c.body(null, 200, { "content-type": "text/event-stream" })
    if (followers >= MAX_FOLLOWERS)
      return refuse(c, "busy", `${MAX_FOLLOWERS} clients already follow the messages`)
    return streamSSE(c, async (stream) => {
      followers += 1
      try {
        await follow(stream, tap)
      } finally {
        followers -= 1
      }
    })
  })

  return routes
}

async function follow(stream: SSEStreamingApi, tap: MessagesDependencies["tap"]): Promise<void> {
  let behind: string[] = []
  let charactersBehind = 0
  let missed = 0
  let wake = () => {}
  const stop = tap((body, properties) => {
    if (behind.length < MAX_BEHIND && charactersBehind < MAX_BEHIND_CHARACTERS) {
      const event = JSON.stringify(describe(body, properties))
      behind.push(event)
      charactersBehind += event.length
    } else missed += 1
    wake()
  })
  stream.onAbort(() => wake())
  try {
    await stream.write(": the devices' lines, as they come\n\n")
    while (!stream.aborted && !stream.closed) {
      if (behind.length === 0) {
        const { promise, resolve } = Promise.withResolvers<"woken" | "quiet">()
        wake = () => resolve("woken")
        const timer = setTimeout(() => resolve("quiet"), KEEP_ALIVE_MS)
        if ((await promise) === "quiet") await stream.write(": keep-alive\n\n")
        clearTimeout(timer)
        continue
      }
      const events = behind
      behind = []
      charactersBehind = 0
      for (const data of events) await stream.writeSSE({ event: "line", data })
      if (missed > 0) await stream.writeSSE({ event: "missed", data: String(missed) })
      missed = 0
    }
  } finally {
    stop()
  }
}

/** A line that is not UTF-8 is encoded in base64, so that no byte is lost. */
function describe(body: Uint8Array, properties: MessageProperties): Record<string, unknown> {
  const { connection_id, device_id, from_device_seq } = properties.headers ?? {}
  const about = { device_id, connection_id, from_device_seq: Number(from_device_seq) }
  try {
    return {
      ...about,
      line: new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(body),
    }
  } catch {
    return { ...about, line_base64: Buffer.from(body).toString("base64") }
  }
}
