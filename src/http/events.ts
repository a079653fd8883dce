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
import { type HttpEnvironment, refuse } from "./errors.ts"
import { type EventSink, EventStreams } from "./event-stream.ts"

export interface EventsDependencies {
  readonly log: InstanceLogReader
  /** Aborted when the server stops. */
  readonly stopping: AbortSignal
}

const MAX_LAST = 100
const LAST_RULE = `must be a whole number from 0 to ${MAX_LAST}`
const last = v.optional(
  v.pipe(
    v.string(),
    v.regex(/^[0-9]{1,3}$/, LAST_RULE),
    v.transform(Number),
    v.maxValue(MAX_LAST, LAST_RULE),
  ),
  "0",
)

export function events({ log, stopping }: EventsDependencies): Hono<HttpEnvironment> {
  const routes = new Hono<HttpEnvironment>()
  const streams = new EventStreams("the log", stopping)

  routes.get("/events", (c) => {
    const checked = v.safeParse(last, c.req.query("last"))
    if (!checked.success) return refuse(c, "invalid", `last: ${LAST_RULE}`)
    return streams.answer(c, (sink) => follow(log, checked.output, sink))
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
