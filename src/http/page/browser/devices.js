/**
 * The devices of the fleet. The search is in the URL, so that it can be kept and sent to others.
 *
 * The gateway searches all connected devices and sorts by id. Sorting by another column orders the
 * devices of the page that is shown, which the text above the table says.
 */

import { byId, deviceLink, input, setText, showRows } from "./dom.js"
import { ago, bytes, count } from "./format.js"
import { connection } from "./shell.js"
import { watch } from "./streams.js"

/** @typedef {import("../../../fleet/device-view.ts").DeviceView} DeviceView */

const FIELDS = ["prefix", "address", "silent_ms", "paused_by"]

const query = new URLSearchParams(location.search)
/** @type {DeviceView[]} */
let devices = []
/** @type {{ by: keyof DeviceView, isDown: boolean }} */
let sort = { by: "device_id", isDown: false }

for (const field of FIELDS) {
  const value = query.get(field)
  if (value !== null) input(field).value = value
}
byId("search").addEventListener("submit", (event) => {
  event.preventDefault()
  const wanted = FIELDS.map((field) => [field, input(field).value.trim()])
  const asked = new URLSearchParams(wanted.filter(([, value]) => value !== ""))
  location.assign(`/page/devices${asked.size === 0 ? "" : `?${asked}`}`)
})

for (const head of /** @type {NodeListOf<HTMLElement>} */ (
  document.querySelectorAll("[data-sort]")
)) {
  head.addEventListener("click", () => {
    const by = /** @type {keyof DeviceView} */ (head.dataset["sort"])
    sort = { by, isDown: sort.by === by && !sort.isDown }
    show()
  })
}

watch(
  {
    [`/devices?${asked()}`]: ({ ok, data, fault }) => {
      if (!ok) {
        setText(byId("found"), fault)
        return
      }
      devices = data.devices
      tell(data)
      show()
    },
  },
  connection,
)

function asked() {
  const wanted = new URLSearchParams({ limit: "100" })
  for (const [name, value] of query) if (value !== "") wanted.set(name, value)
  return wanted
}

/** @param {{ total: number, answered: number, workers: number }} list */
function tell({ total, answered, workers }) {
  const isSearch = FIELDS.some((field) => query.has(field))
  const isPage = total > devices.length || query.has("after")
  const found = `${count(total)} ${isSearch ? "found" : "connected"}`
  const from = query.has("after") ? ` after ${query.get("after")}` : ""
  const part = isPage ? `, ${devices.length} shown; columns sort these` : ""
  const missing = answered < workers ? `. Only ${answered} of ${workers} workers answered` : ""
  setText(byId("found"), `${found}${from}${part}${missing}.`)
  const first = /** @type {HTMLAnchorElement} */ (byId("first"))
  first.hidden = !query.has("after")
  first.href = pageUrl(null)
  const next = /** @type {HTMLAnchorElement} */ (byId("next"))
  const last = devices.at(-1)?.device_id
  next.hidden = total <= devices.length || last === undefined
  if (last !== undefined) next.href = pageUrl(last)
}

/** @param {string | null} after */
function pageUrl(after) {
  const wanted = new URLSearchParams(query)
  wanted.delete("after")
  if (after !== null) wanted.set("after", after)
  return `/page/devices${wanted.size === 0 ? "" : `?${wanted}`}`
}

function show() {
  const { by, isDown } = sort
  const sign = isDown ? -1 : 1
  const sorted = devices.toSorted((a, b) => {
    const [x, y] = [a[by], b[by]]
    return x === y ? 0 : x < y ? -sign : sign
  })
  for (const head of document.querySelectorAll("[data-sort]")) {
    const isBy = head.getAttribute("data-sort") === by
    const cell = head.closest("th")
    if (isBy) cell?.setAttribute("aria-sort", isDown ? "descending" : "ascending")
    else cell?.removeAttribute("aria-sort")
  }
  const now = Date.now()
  showRows("devices", sorted, {
    key: ({ connection_id }) => connection_id,
    empty: "No connected device matches. Devices that are away are not listed: see Refusals.",
    cells: (device) => [
      deviceLink(device.device_id),
      ago(device.epoch, now),
      ago(device.last_activity, now),
      count(device.lines_in),
      count(device.lines_out),
      bytes(device.outgoing_bytes),
      device.reading_paused_by.join(", "),
      device.remote_address,
      device.worker,
    ],
  })
}
