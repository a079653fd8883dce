/**
 * `GET /messages`: the lines of devices as server-sent events, for a first try. With the embedded
 * broker only.
 *
 * Lines stay in the queue. Bounds: those of `event-stream.ts`. For a client that reads too slowly,
 * lines are skipped, and an event `missed` contains their number.
 */

import { Hono } from "hono"
import * as v from "valibot"
import type { MessageProperties } from "../broker/broker.ts"
import type { Tap } from "../broker/embedded.ts"
import { type HttpEnvironment, refuse } from "./errors.ts"
import { EventStreams } from "./event-stream.ts"
import type { RouteDescription } from "./route-description.ts"

export interface MessagesDependencies {
  /** Calls `tap` for each line from now on. Returns a function that stops this. */
  readonly tap: (tap: Tap) => () => void
}

const WITH_A_BROKER =
  "only the embedded broker shows lines here; consume the queue of lines (FROM_DEVICE_QUEUE), or record a tape of the device"

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

/**
 * @param source null without the embedded broker.
 * @param stopping aborted when the server stops.
 */
export function messages(
  source: MessagesDependencies | null,
  stopping: AbortSignal,
): Hono<HttpEnvironment> {
  const routes = new Hono<HttpEnvironment>()
  const streams = new EventStreams("the devices' lines", stopping)

  routes.get("/messages", (c) => {
    if (source === null) return refuse(c, "not_found", WITH_A_BROKER)
    return streams.answer(c, ({ push }) =>
      source.tap((body, properties) =>
        push({ event: "line", data: JSON.stringify(describe(body, properties)) }),
      ),
    )
  })

  return routes
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
