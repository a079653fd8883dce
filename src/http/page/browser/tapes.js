/** The tapes of the fleet. */

import { deviceLink, showRows } from "./dom.js"
import { time } from "./format.js"
import { connection } from "./shell.js"
import { watch } from "./streams.js"

/** @param {import("./api.js").Answer} answer */
function show({ ok, data }) {
  if (!ok) return
  const now = Date.now()
  showRows("tapes", /** @type {any[]} */ (data.tapes), {
    key: ({ device_id, started_at }) => `${device_id} ${started_at}`,
    empty: "No tape.",
    cells: ({ device_id, until, payload, recording, worker }) => [
      deviceLink(device_id),
      recording ? time(until, now) : `${time(until, now)} (over)`,
      payload,
      worker,
    ],
  })
}

watch({ "/tapes": show }, connection)
