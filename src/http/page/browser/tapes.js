/** The tapes of the fleet. */

import { get } from "./api.js"
import { deviceLink, showRows } from "./dom.js"
import { time } from "./format.js"
import { connection } from "./shell.js"
import { poll } from "./streams.js"

const LOOK_EVERY_MS = 3_000

poll(async () => {
  const { ok, data } = await get("/tapes")
  connection(ok ? "live" : "away")
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
}, LOOK_EVERY_MS)
