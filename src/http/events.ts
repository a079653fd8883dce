/**
 * `GET /events`: the log of the whole instance at level info and above, as server-sent events.
 *
 *   ?last=n ─► the newest warnings and errors, at most n ─► each line from then on
 *
 * An event `log` or `audit` contains a line as JSON, `missed` the number of lines that were dropped
 * because the client or a process did not keep up. Any worker answers: it gets the lines from the
 * supervisor. Bounds: those of `event-stream.ts`; the 100 newest warnings and errors.
 */

import { Hono } from "hono"
import * as v from "valibot"
import type { InstanceLogReader, NumberedEntry } from "../log-entry.ts"
import { wholeNumber } from "./body-faults.ts"
import { type HttpEnvironment, refuse } from "./errors.ts"
import { type EventSink, EventStreams } from "./event-stream.ts"
import type { RouteDescription } from "./route-description.ts"

export interface EventsDependencies {
  readonly log: InstanceLogReader
  /** Aborted when the server stops. */
  readonly stopping: AbortSignal
}

const MAX_LAST = 100
const LAST_RULE = `must be a whole number from 0 to ${MAX_LAST}`
const query = v.object({
  last: v.optional(
    v.pipe(
      v.string(),
      v.regex(/^[0-9]{1,3}$/, LAST_RULE),
      v.transform(Number),
      wholeNumber(0, MAX_LAST),
    ),
    "0",
  ),
})

export const EVENTS_ROUTES: readonly RouteDescription[] = [
  {
    method: "get",
    path: "/events",
    name: "followEvents",
    summary: "The log of the instance at level info and above, as server-sent events",
    text: "Each event `log` or `audit` has the data {at, level, kind, source, message, fields}. The newest warnings and errors come first, at most `last`. An event `missed` has the number of lines that were dropped because the client, or a process, was too slow.",
    query,
    answers: [
      {
        status: 200,
        text: "Events until the client closes the connection or the worker stops.",
        mediaType: "text/event-stream",
        schema: v.string(),
      },
    ],
    errors: ["invalid", "busy"],
  },
]

export function events({ log, stopping }: EventsDependencies): Hono<HttpEnvironment> {
  const routes = new Hono<HttpEnvironment>()
  const streams = new EventStreams("the log", stopping)

  routes.get("/events", (c) => {
    const checked = v.safeParse(query, c.req.query())
    if (!checked.success) return refuse(c, "invalid", `last: ${LAST_RULE}`)
    return streams.answer(c, (sink) => follow(log, checked.output.last, sink))
  })

  return routes
}

function follow(log: InstanceLogReader, last: number, sink: EventSink): () => void {
  /** The lines that come before the past ones are known; null afterwards. */
  let early: NumberedEntry[] | null = last === 0 ? null : []
  const send = ({ seq, ...entry }: NumberedEntry) =>
    sink.push({ event: entry.kind, id: String(seq), data: JSON.stringify(entry) })
  const stop = log.follow({
    entry: (entry) => {
      if (early === null) send(entry)
      else early.push(entry)
    },
    missed: sink.missed,
  })
  if (last === 0) return stop
  void log.recent().then((recent) => {
    // The supervisor does not answer: an incomplete answer would look complete.
    if (recent === null) sink.end()
    const past = recent?.notices.slice(-last) ?? []
    for (const entry of past) send(entry)
    // It may have come both ways.
    const lastSeq = past.at(-1)?.seq ?? 0
    for (const entry of early ?? []) if (entry.seq > lastSeq) send(entry)
    early = null
  })
  return stop
}
