/** What operators have done. */

import { get } from "./api.js"
import { showRows } from "./dom.js"
import { time, UNKNOWN } from "./format.js"
import { connection } from "./shell.js"
import { poll } from "./streams.js"

const LOOK_EVERY_MS = 5_000

poll(async () => {
  const { ok, data } = await get("/audit")
  connection(ok ? "live" : "away")
  if (!ok) return
  showRows("audit", /** @type {any[]} */ (data.audit), {
    key: ({ at, action, target, worker }) => `${at} ${action} ${target} ${worker}`,
    empty: "Nobody has acted since the start of this instance.",
    cells: ({ at, action, target, detail, by, address }) => [
      time(at, Date.now()),
      action,
      target ?? UNKNOWN,
      detail,
      by ?? UNKNOWN,
      address,
    ],
  })
}, LOOK_EVERY_MS)
