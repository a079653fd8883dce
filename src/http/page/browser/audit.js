/** What operators have done. */

import { showRows } from "./dom.js"
import { time, UNKNOWN } from "./format.js"
import { connection } from "./shell.js"
import { watch } from "./streams.js"

/** @param {import("./api.js").Answer} answer */
function show({ ok, data }) {
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
}

watch({ "/audit": show }, connection)
