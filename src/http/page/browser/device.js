/** One device: what is known of it, its tape, commands to it, and its connections. */

import { request } from "./api.js"
import { button, byId, element, find, input, setText, showRows } from "./dom.js"
import { ago, bytes, count, duration, time, UNKNOWN } from "./format.js"
import { connection, mayAct } from "./shell.js"
import { follow, watch } from "./streams.js"

/** @typedef {import("../../../fleet/device-view.ts").DeviceView} DeviceView */
/** @typedef {import("./api.js").Answer} Answer */

/** Entries of a tape that are kept, and the rows that are shown of them. */
const MAX_ENTRIES = 2_000
const MAX_SHOWN = 200
const SHOW_EVERY_MS = 250
const NO_ENTRIES =
  "No entry. A tape records the lines of this device in both directions, across its connections."
/** @type {Record<string, string>} */
const DIRECTIONS = { in: "from device", out: "to device" }
const id = decodeURIComponent(location.pathname.split("/").at(-1) ?? "")
const path = `/devices/${encodeURIComponent(id)}`

const PATHS = {
  held: `${path}/held?body=1`,
  ban: `/bans/${encodeURIComponent(id)}`,
  connections: `${path}/connections`,
  tapes: "/tapes",
}

/** Why a device is not read, and what that means. @type {Record<string, string>} */
const PAUSES = {
  window: "the publish window is full: the broker confirms more slowly than devices send",
  memory: "received lines have reached MAX_HELD_BYTES: the broker is slow or away",
  drain: "it is being closed",
  rate: "it sends faster than DEVICE_LINES_PER_S or DEVICE_BYTES_PER_S",
}

/** @param {Answer} answer */
function showDevice({ ok, status, data, fault }) {
  const badge = byId("state")
  badge.dataset["state"] = ok ? "live" : "away"
  if (ok) {
    setText(badge, data.state === "open" ? "connected" : data.state)
    showFacts(data)
  } else if (status === 404) {
    setText(badge, "not connected")
    showAway()
  } else setText(byId("why"), fault)
  if (mayAct) /** @type {HTMLButtonElement} */ (byId("kick")).disabled = !ok
}

/** @param {DeviceView} device */
function showFacts(device) {
  const now = Date.now()
  const paused = device.reading_paused_by
  const why = paused.map((source) => `${source}: ${PAUSES[source] ?? ""}`).join("; ")
  setText(byId("why"), why === "" ? "" : `The device is not read. ${why}.`)
  const { held, gaps } = device.reorder
  facts({
    Connected: `${time(device.epoch, now)} (${ago(device.epoch, now)})`,
    "Last bytes": ago(device.last_activity, now),
    "Lines in": count(device.lines_in),
    "Lines out": count(device.lines_out),
    "Waiting for the socket": bytes(device.outgoing_bytes),
    "Waiting for numbers": `${held} commands, ${gaps} gaps`,
    Address: device.remote_address || UNKNOWN,
    TLS: device.tls_version || UNKNOWN,
    Worker: device.worker,
    "Connection id": device.connection_id,
  })
}

function showAway() {
  setText(
    byId("why"),
    "No worker of the fleet has a connection of this device. Its last connections are below, and Refusals has those that were refused.",
  )
  byId("facts").replaceChildren()
}

/** @param {Record<string, string>} values */
function facts(values) {
  const list = byId("facts")
  if (list.childElementCount === 0) {
    for (const name of Object.keys(values)) {
      list.append(element("div", {}, element("dt", {}, name), element("dd", {})))
    }
  }
  const texts = Object.values(values)
  for (const [at, node] of [...list.querySelectorAll("dd")].entries())
    setText(node, texts[at] ?? "")
}

if (mayAct) {
  byId("kick").addEventListener("click", async () => {
    if (!confirm(`Close the connection of ${id}? It may connect again at once.`)) return
    const { ok, fault } = await request("DELETE", `${path}/connection`)
    setText(byId("state"), ok ? "closed (kicked)" : fault)
    void look(PATHS.connections)
  })
  byId("deny").addEventListener("submit", async (event) => {
    event.preventDefault()
    const forMs = Number(input("deny-ms").value)
    if (!confirm(`Disconnect and refuse ${id} for ${duration(forMs)}, on the whole fleet?`)) return
    const { ok, data, fault } = await request("PUT", `/bans/${encodeURIComponent(id)}`, {
      for_ms: forMs,
    })
    setText(byId("deny-note"), ok ? `denied until ${time(data.until, Date.now())}` : fault)
    void look(PATHS.ban)
  })
  sending()
}

function sending() {
  const reply = input("reply")
  const text = input("reply-text")
  reply.addEventListener("change", () => {
    text.disabled = reply.value === "" || reply.value === "reply_next"
    text.required = !text.disabled
  })
  byId("send").addEventListener("submit", async (event) => {
    event.preventDefault()
    const hold = input("hold_ms").value
    const began = performance.now()
    showOutcome("waiting", "Waiting for the outcome …")
    const { ok, data, fault } = await request("POST", `${path}/send`, {
      line: input("line").value,
      ...(hold === "" ? {} : { hold_ms: Number(hold) }),
      ...(reply.value === "" ? {} : { [reply.value]: text.disabled ? true : text.value }),
    })
    const took = duration(performance.now() - began)
    if (!ok) showOutcome("not", `${fault} (after ${took})`)
    else if (data.outcome === "held") {
      showOutcome("held", `held until ${time(data.expires_at, Date.now())}`)
      void look(PATHS.held)
    } else showOutcome("done", `${data.outcome} after ${took}`, data.reply?.line)
  })
}

/** @param {string} kind @param {string} text @param {string} [reply] the line of the device */
function showOutcome(kind, text, reply) {
  const shown = byId("outcome")
  shown.dataset["kind"] = kind
  const line = reply === undefined ? [] : [". Reply: ", element("code", {}, reply)]
  shown.replaceChildren(text, ...line)
}

/** @param {Answer} answer */
function showHeld({ ok, data, fault }) {
  setText(byId("held-note"), ok ? "" : fault)
  if (!ok) return
  const now = Date.now()
  const all = find("cancel-all")
  if (all !== null) all.hidden = data.held.length === 0
  showRows("held", /** @type {any[]} */ (data.held), {
    key: ({ message_id }) => message_id,
    empty: "No command waits for this device to connect.",
    cells: ({ message_id, line, held_at, expires_at, bytes: size, supersede_key }) => [
      message_id,
      line ?? UNKNOWN,
      ago(held_at, now),
      `in ${duration(expires_at - now)}`,
      count(size),
      supersede_key ?? "",
      mayAct ? button("Cancel", () => void cancel(message_id)) : "",
    ],
  })
}

/** @param {string | null} messageId null for all */
async function cancel(messageId) {
  const one = messageId === null ? "" : `/${encodeURIComponent(messageId)}`
  const { ok, fault } = await request("DELETE", `${path}/held${one}`)
  if (!ok) setText(byId("held-note"), fault)
  void look(PATHS.held)
}
find("cancel-all")?.addEventListener("click", () => void cancel(null))

/** @param {Answer} answer 404: the device has no ban */
function showBan({ ok, data: ban }) {
  // With the reason for which the device is refused, as Refusals shows it.
  const reason = ok && ban.connects === 0 ? "denied" : "flapping"
  setText(byId("ban"), ok ? `banned until ${time(ban.until, Date.now())} (${reason})` : "")
}

/** @param {Answer} answer */
function showConnections({ ok, data }) {
  if (!ok) return
  const now = Date.now()
  showRows("connections", /** @type {any[]} */ (data.connections), {
    key: ({ connection_id }) => connection_id,
    empty: "No worker that answered remembers a connection of this device.",
    cells: ({ connected_at, disconnected_at, reason, remote_address, worker }) => [
      time(connected_at, now),
      disconnected_at === null ? UNKNOWN : time(disconnected_at, now),
      duration(Math.max(0, (disconnected_at ?? now) - connected_at)),
      reason ?? "connected",
      remote_address,
      worker,
    ],
  })
}

/**
 * @typedef {object} Entry of a tape; `dropped` has a count and none of the others
 * @property {string} kind
 * @property {number} [at]
 * @property {number | null} [seq]
 * @property {number} [bytes]
 * @property {string} [line]
 * @property {string} [hex]
 * @property {string} [outcome]
 * @property {string} [reason]
 * @property {number} [confirmed_at]
 * @property {number} [count]
 */

/** By number, in order; a later entry replaces the texts of its row. @type {Map<string, Entry>} */
const entries = new Map()
let unnumbered = 0
/** @type {(() => void) | null} */
let stopTape = null
/** @type {ReturnType<typeof setTimeout> | null} */
let showing = null

/** @param {Answer} answer */
function showTapes({ ok, data }) {
  if (!ok) return
  const tape = /** @type {any[]} */ (data.tapes).find(({ device_id }) => device_id === id)
  const note = tape?.recording ? `records until ${time(tape.until, Date.now())}` : "over"
  setText(byId("tape-note"), tape === undefined ? "" : `${note}, contents ${tape.payload}`)
  const start = find("tape-start")
  if (start !== null) setText(start, tape === undefined ? "Start tape" : "Start again")
  const stop = find("tape-stop")
  if (stop !== null) stop.hidden = tape === undefined
  const file = find("tape-file")
  if (file !== null) {
    file.hidden = tape === undefined
    file.setAttribute("href", `${path}/tape.jsonl`)
    file.setAttribute("download", `${id.replaceAll(/[^\w.-]/g, "-")}.jsonl`)
  }
  if (tape !== undefined && stopTape === null) followTape()
}

const look = watch(
  {
    [path]: showDevice,
    [PATHS.held]: showHeld,
    [PATHS.ban]: showBan,
    [PATHS.connections]: showConnections,
    [PATHS.tapes]: showTapes,
  },
  connection,
)

function followTape() {
  const events = {
    entry: (/** @type {Entry} */ entry, /** @type {string} */ number) => {
      unnumbered += 1
      // The browser repeats the number of the entry before for one without a number.
      entries.set(entry.kind === "dropped" ? `dropped ${unnumbered}` : number, entry)
      const [oldest] = entries.keys()
      if (entries.size > MAX_ENTRIES && oldest !== undefined) entries.delete(oldest)
      showTapeSoon()
    },
    completed: (/** @type {any} */ { entry: number, ...completion }) => {
      const entry = entries.get(String(number))
      if (entry === undefined) return
      entries.set(String(number), { ...entry, ...completion })
      showTapeSoon()
    },
    ended: () => {
      stopTape?.()
      stopTape = null
      void look(PATHS.tapes)
    },
  }
  stopTape = follow(`${path}/tape`, events, (state) => {
    // The stream begins again with the first entry.
    if (state === "live") entries.clear()
    showTape()
  })
}

/** Entries may come much faster than anybody reads. */
function showTapeSoon() {
  if (showing === null) showing = setTimeout(showTape, SHOW_EVERY_MS)
}

function showTape() {
  showing = null
  const now = Date.now()
  showRows("tape", [...entries].reverse().slice(0, MAX_SHOWN), {
    key: ([number]) => number,
    kind: ([, { kind }]) => `tape-${kind}`,
    empty: NO_ENTRIES,
    cells: ([, entry]) => [
      entry.at === undefined ? UNKNOWN : time(entry.at, now),
      DIRECTIONS[entry.kind] ?? entry.kind,
      entry.seq === undefined || entry.seq === null ? "" : String(entry.seq),
      entry.bytes === undefined ? "" : count(entry.bytes),
      entry.line ?? entry.hex ?? "",
      resultOf(entry),
    ],
  })
}

/** @param {Entry} entry */
function resultOf({ kind, at = 0, confirmed_at, outcome, reason, count: dropped }) {
  if (kind === "in") {
    return confirmed_at === undefined
      ? "not confirmed yet"
      : `confirmed after ${duration(Math.max(0, confirmed_at - at))}`
  }
  if (kind === "dropped") return `${dropped} entries are missing here`
  return outcome ?? reason ?? (kind === "disconnected" ? "its worker has ended" : "")
}

find("tape-form")?.addEventListener("submit", async (event) => {
  event.preventDefault()
  const { ok, fault } = await request("PUT", `${path}/tape`, {
    minutes: Number(input("tape-minutes").value),
    payload: input("tape-payload").value,
  })
  if (!ok) {
    setText(byId("tape-note"), fault)
    return
  }
  stopTape?.()
  stopTape = null
  await look(PATHS.tapes)
})
find("tape-stop")?.addEventListener("click", async () => {
  const { ok, fault } = await request("DELETE", `${path}/tape`)
  if (!ok) setText(byId("tape-note"), fault)
  else void look(PATHS.tapes)
})
