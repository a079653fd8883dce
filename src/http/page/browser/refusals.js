/** The last connections that did not become a device, in the whole fleet. */

import { button, byId, deviceLink, input, setText, showRows } from "./dom.js"
import { count, time } from "./format.js"
import { connection } from "./shell.js"
import { watch } from "./streams.js"

/** @typedef {{ at: number, address: string, reason: string, detail: string, device_id: string | null, worker: string }} Refusal */

const LIMIT = 500

/** @type {Refusal[]} */
let refusals = []
let text = ""
const filter = input("refusal-filter")
filter.addEventListener("input", show)

watch(
  {
    [`/refusals?limit=${LIMIT}`]: ({ ok, data, fault }) => {
      if (ok) {
        refusals = data.refusals
        show()
      } else setText(byId("refusals-note"), fault)
    },
  },
  connection,
)

function show() {
  const wanted = filter.value.trim().toLowerCase()
  const shown = refusals.filter((refusal) =>
    [refusal.reason, refusal.address, refusal.detail, refusal.device_id ?? ""].some((value) =>
      value.toLowerCase().includes(wanted),
    ),
  )
  const of = wanted === "" ? "" : ` of ${count(refusals.length)}`
  setText(byId("refusals-note"), `${count(shown.length)}${of} shown.`)
  showReasons()
  /** @type {Map<string, number>} */
  const same = new Map()
  showRows("refusals", shown, {
    key: ({ at, address, reason, worker }) => {
      const key = `${at} ${address} ${reason} ${worker}`
      same.set(key, (same.get(key) ?? 0) + 1)
      return `${key} ${same.get(key)}`
    },
    empty: wanted === "" ? "No connection was refused." : "None of them matches.",
    cells: ({ at, address, reason, detail, device_id, worker }) => [
      time(at, Date.now()),
      reason,
      address,
      detail ?? "",
      device_id === null || device_id === "" ? "" : deviceLink(device_id),
      worker,
    ],
  })
}

/** How many there are of each reason; a press shows only these. */
function showReasons() {
  /** @type {Map<string, number>} */
  const counts = new Map()
  for (const { reason } of refusals) counts.set(reason, (counts.get(reason) ?? 0) + 1)
  const sorted = [...counts].sort(([, a], [, b]) => b - a)
  const next = sorted.map(([reason, times]) => `${reason} ${times}`).join()
  if (next === text) return
  text = next
  const chips = sorted.map(([reason, times]) =>
    button(
      `${reason} ${times}`,
      () => {
        filter.value = filter.value === reason ? "" : reason
        show()
      },
      "chip",
    ),
  )
  byId("reasons").replaceChildren(...chips)
}
