/**
 * Tapes: a device's lines, commands and connections, recorded for a while.
 *
 *   PUT /devices/:id/tape {minutes, payload?, max_bytes?}   201; 409 `busy` beyond 20 in the fleet
 *   GET /devices/:id/tape                                   server-sent events: the past, then live
 *   GET /devices/:id/tape.jsonl                             the entries so far, one object a line
 *   DELETE /devices/:id/tape                                discards it
 *   GET /tapes
 *
 * Any worker answers: it reads from the worker that owns the tape, one part at a time, and reads on
 * when the client has read. So a slow client costs one part; entries that are dropped meanwhile are
 * counted in an entry `dropped`. Bound: `MAX_READERS` of a worker.
 */

import { type Context, Hono } from "hono"
import { type SSEStreamingApi, streamSSE } from "hono/streaming"
import * as v from "valibot"
import { DEVICE_ID } from "../device/ids.ts"
import type { QuestionFailure } from "../fleet/questions.ts"
import { PAYLOADS } from "../fleet/tape/entry.ts"
import type { TapeReader } from "../fleet/tape/tape-reader.ts"
import { MAX_TAPES, type Tapes } from "../fleet/tape/tapes.ts"
import { audit } from "./audit.ts"
import { NOT_AN_OBJECT, readJson, wholeNumber } from "./body-faults.ts"
import { type HttpEnvironment, refuse } from "./errors.ts"
import type { RouteDescription } from "./route-description.ts"

const MAX_MINUTES = 60
const MIN_BYTES = 65_536
const MAX_BYTES = 2_097_152
const MAX_READERS = 16
/** How often a reader that has read everything looks for more. */
const LOOK_EVERY_MS = 250
/** Shorter than the idle time-outs of this server and of most proxies. */
const KEEP_ALIVE_MS = 5_000

export interface TapesDependencies {
  readonly tapes: Pick<Tapes, "start" | "stop" | "list" | "reader">
}

const tapeRequest = v.strictObject(
  {
    minutes: wholeNumber(1, MAX_MINUTES),
    payload: v.optional(v.picklist(PAYLOADS, `must be one of ${PAYLOADS.join(", ")}`), "hidden"),
    max_bytes: v.optional(wholeNumber(MIN_BYTES, MAX_BYTES), MAX_BYTES),
  },
  NOT_AN_OBJECT,
)

const shownTape = {
  device_id: v.string(),
  until: v.number(),
  payload: v.picklist(PAYLOADS),
  max_bytes: v.number(),
}
const tapeSchema = v.object(shownTape)
const listSchema = v.object({
  tapes: v.array(
    v.object({
      ...shownTape,
      started_at: v.number(),
      recording: v.boolean(),
      worker: v.string(),
    }),
  ),
})

export const TAPES_ROUTES: readonly RouteDescription[] = [
  {
    method: "get",
    path: "/tapes",
    name: "listTapes",
    summary: "The tapes of the fleet",
    answers: [{ status: 200, text: "All tapes.", schema: listSchema }],
    errors: [],
  },
  {
    method: "put",
    path: "/devices/:id/tape",
    name: "startTape",
    summary: "Records a device: its lines, commands and connections",
    text: "A former tape of the device is discarded. At most 20 devices of the fleet are recorded at a time.",
    body: { "application/json": tapeRequest },
    answers: [{ status: 201, text: "The device is recorded.", schema: tapeSchema }],
    errors: [{ code: "busy", status: 409 }, "broker_away", "busy", "timeout"],
  },
  {
    method: "get",
    path: "/devices/:id/tape",
    name: "followTape",
    summary: "The entries of a tape as server-sent events: those so far, then new ones",
    text: "Each event `entry` has an entry as its data. An event `completed` has what an entry has got later: {entry, confirmed_at} or {entry, outcome}. The last event is `ended`, with a reason.",
    answers: [
      {
        status: 200,
        text: "Events until the tape ends or the client closes the connection.",
        mediaType: "text/event-stream",
        schema: v.string(),
      },
    ],
    errors: ["invalid", "not_found", "busy"],
  },
  {
    method: "get",
    path: "/devices/:id/tape.jsonl",
    name: "getTape",
    summary: "The entries of a tape so far, one JSON object in each line",
    answers: [
      {
        status: 200,
        text: "The entries.",
        mediaType: "application/x-ndjson",
        schema: v.string(),
      },
    ],
    errors: ["invalid", "not_found", "broker_away", "busy", "timeout"],
  },
  {
    method: "delete",
    path: "/devices/:id/tape",
    name: "discardTape",
    summary: "Discards the tape of a device",
    answers: [{ status: 200, text: "The tape that was discarded.", schema: tapeSchema }],
    errors: ["invalid", "not_found", "broker_away", "busy", "timeout"],
  },
]

export function tapes({ tapes }: TapesDependencies): Hono<HttpEnvironment> {
  const routes = new Hono<HttpEnvironment>()
  let readers = 0

  routes.get("/tapes", (c) => c.json({ tapes: tapes.list() }))

  routes.put("/devices/:id/tape", async (c) => {
    const id = c.req.param("id")
    if (!DEVICE_ID.test(id)) return refuseId(c)
    const request = await readJson(c.req.arrayBuffer(), tapeRequest, tapeRequest.entries)
    if (typeof request === "string") return refuse(c, "invalid", request)
    const { minutes, payload, max_bytes: maxBytes } = request
    const started = await tapes.start(id, { minutes, payload, maxBytes }, c.req.raw.signal)
    if (started === "full") {
      return refuse(c, "busy", `${MAX_TAPES} devices are recorded already: DELETE a tape`, 409)
    }
    if (typeof started === "string") return fail(c, started)
    const detail = `for ${minutes} minutes, payload ${payload}`
    audit(c, { action: "tape_started", target: id, detail })
    return c.json(started, 201)
  })

  routes.delete("/devices/:id/tape", async (c) => {
    const id = c.req.param("id")
    if (!DEVICE_ID.test(id)) return refuseId(c)
    const stopped = await tapes.stop(id, c.req.raw.signal)
    if (stopped === null) return refuseMissing(c)
    // After "timeout" the tape may have been discarded.
    const detail = typeof stopped === "string" ? stopped : ""
    audit(c, { action: "tape_discarded", target: id, detail })
    return typeof stopped === "string" ? fail(c, stopped) : c.json(stopped)
  })

  /** Passes a reader of the tape to `read`, or refuses the request. */
  const reading = async (
    c: Context<HttpEnvironment>,
    read: (reader: TapeReader, over: () => void) => Response | Promise<Response>,
  ) => {
    const id = c.req.param("id") ?? ""
    if (!DEVICE_ID.test(id)) return refuseId(c)
    const reader = tapes.reader(id)
    if (reader === null) return refuseMissing(c)
    if (readers >= MAX_READERS) {
      return refuse(c, "busy", `${MAX_READERS} clients already read tapes from this worker`)
    }
    readers += 1
    let isOver = false
    return read(reader, () => {
      if (!isOver) readers -= 1
      isOver = true
    })
  }

  routes.get("/devices/:id/tape", async (c) => {
    // Hono answers HEAD with the route of GET and drops the stream, which would then never end.
    if (c.req.method === "HEAD") return c.body(null, 200, { "content-type": "text/event-stream" })
    return reading(c, (reader, over) =>
      streamSSE(c, async (stream) => {
        try {
          await follow(stream, reader, c.req.raw.signal)
        } finally {
          over()
        }
      }),
    )
  })

  routes.get("/devices/:id/tape.jsonl", (c) =>
    reading(c, async (reader, over) => {
      try {
        const text = await readAll(reader, c.req.raw.signal)
        if (text === null) return refuseMissing(c)
        if (text.kind === "failed") return fail(c, text.failure)
        return c.body(text.lines, 200, { "content-type": "application/x-ndjson; charset=utf-8" })
      } finally {
        over()
      }
    }),
  )

  return routes
}

async function follow(
  stream: SSEStreamingApi,
  reader: TapeReader,
  caller: AbortSignal,
): Promise<void> {
  let wake = () => {}
  stream.onAbort(() => wake())
  let writtenAtMs = Number.NEGATIVE_INFINITY
  while (!stream.aborted && !stream.closed) {
    const read = await reader.read(caller)
    const nowMs = performance.now()
    // While the broker is not available the reader keeps its place.
    const { items, isCaughtUp, end } =
      typeof read === "string" ? { items: [], isCaughtUp: true, end: null } : read
    for (const { n, item } of items) {
      const event = item.kind === "completed" ? "completed" : "entry"
      const { kind, ...completion } = item
      const data = JSON.stringify(kind === "completed" ? completion : item)
      await stream.writeSSE({ event, data, ...(n === null ? {} : { id: String(n) }) })
    }
    if (end !== null) {
      await stream.writeSSE({ event: "ended", data: JSON.stringify({ reason: end }) })
      return
    }
    if (items.length > 0) writtenAtMs = nowMs
    else if (nowMs - writtenAtMs >= KEEP_ALIVE_MS) {
      writtenAtMs = nowMs
      await stream.write(": keep-alive\n\n")
    }
    if (!isCaughtUp) continue
    const { promise, resolve } = Promise.withResolvers<void>()
    wake = resolve
    const timer = setTimeout(resolve, LOOK_EVERY_MS)
    await promise
    clearTimeout(timer)
  }
}

type AllEntries =
  | { readonly kind: "read"; readonly lines: string }
  | { readonly kind: "failed"; readonly failure: QuestionFailure }

/** The entries so far; null when the tape has been discarded, or its owner has ended. */
async function readAll(reader: TapeReader, caller: AbortSignal): Promise<AllEntries | null> {
  let lines = ""
  // More may come than is read: what comes after the first part was read is left out.
  let until: number | null = null
  for (;;) {
    const read = await reader.read(caller)
    if (typeof read === "string") return { kind: "failed", failure: read }
    if (read.end === "discarded" || read.end === "lost") return null
    for (const { item } of read.items) {
      if (item.kind !== "completed") lines += `${JSON.stringify(item)}\n`
    }
    until ??= read.newest
    if (read.next >= until) return { kind: "read", lines }
  }
}

function refuseId(c: Context<HttpEnvironment>): Response {
  return refuse(c, "invalid", `the id must match ${DEVICE_ID.source}`)
}

function refuseMissing(c: Context<HttpEnvironment>): Response {
  return refuse(c, "not_found", "the device has no tape, or the worker that had it has ended")
}

function fail(c: Context<HttpEnvironment>, failure: QuestionFailure): Response {
  switch (failure) {
    case "unreachable":
      return refuse(
        c,
        "broker_away",
        "the broker is not available, and tapes of other workers go through it",
      )
    case "timeout":
      return refuse(c, "timeout", "the worker that has the tape did not answer in time")
    case "busy":
      return refuse(c, "busy", "too many requests wait for other workers")
  }
}
