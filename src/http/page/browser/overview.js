/** The overview: the state of the instance as it comes, and the last 15 minutes. */

import { Chart } from "./charts.js"
import { byId, deviceLink, element, find, setText, setValue, showRows } from "./dom.js"
import { bytes, count, duration, percent, rate, time, UNKNOWN } from "./format.js"
import { connection } from "./shell.js"
import { follow } from "./streams.js"

/** @typedef {import("../instance-state.ts").InstanceState} InstanceState */
/** @typedef {import("../findings.ts").Finding} Finding */
/** @typedef {InstanceState & { findings: Finding[] }} State */

const HISTORY_MS = 900_000
/** Warnings and errors, the last ones and those that came since the page was opened. */
const MAX_EVENTS = 50
const MAX_MESSAGES = 20
/** Lines come faster than anybody reads. */
const SHOW_MESSAGES_EVERY_MS = 250
const LEVELS = ["ok", "note", "warning", "problem"]
/** @type {Record<string, string>} */
const LEVEL_TEXTS = { ok: "ok", note: "ok", warning: "warning", problem: "problem" }
/** In the order of causes, as the findings are. @type {Record<string, string>} */
const PARTS = { broker: "the broker", gateway: "the gateway", devices: "the devices" }

/** @type {Record<string, import("./charts.js").ChartOptions>} */
const CHARTS = {
  devices: {
    series: [{ field: "devices", label: "", color: "--c1", fill: true }],
    format: count,
    isWhole: true,
  },
  lines: {
    series: [
      { field: "lines_per_s", label: "in", color: "--c1" },
      { field: "confirmed_per_s", label: "confirmed", color: "--c2" },
    ],
    format: rate,
  },
  commands: {
    series: [
      { field: "written_per_s", label: "written", color: "--c1" },
      { field: "not_written_per_s", label: "not written", color: "--c3" },
    ],
    format: rate,
  },
  confirm: {
    series: [
      { field: "confirm_p50_ms", label: "median", color: "--c1" },
      { field: "confirm_p99_ms", label: "99 %", color: "--c3" },
    ],
    format: duration,
  },
  window: {
    series: [{ field: "window_lines", label: "", color: "--c1", fill: true }],
    format: count,
    isWhole: true,
  },
  churn: {
    series: [
      { field: "admitted_per_s", label: "admitted", color: "--c1" },
      { field: "closed_per_s", label: "ended", color: "--c3" },
    ],
    format: rate,
  },
}

const charts = Object.entries(CHARTS).map(([name, options]) => {
  const figure = /** @type {HTMLElement} */ (document.querySelector(`[data-chart="${name}"]`))
  return new Chart(figure, options)
})
/** @type {import("./charts.js").Columns} */
let columns = { at: [] }

follow("/page/live", { history, state }, connection)

/** @param {import("./charts.js").Columns | null} samples */
function history(samples) {
  if (samples === null) return
  columns = samples
  for (const chart of charts) chart.show(columns)
}

/** @param {State} now */
function state(now) {
  addSample(now)
  showVerdict(now)
  showFlow(now)
  showRows("workers", now.workers, {
    key: ({ worker }) => worker,
    cells: (worker) => [
      worker.worker,
      worker.refusing === null ? worker.state : `${worker.state}, refuses: ${worker.refusing}`,
      worker.broker.kind,
      count(worker.connections),
      count(worker.waiting),
      rate(worker.lines_per_s),
      percent(worker.cpu),
      bytes(worker.resident_bytes),
      duration(worker.lag_p99_ms),
      duration(worker.started_at === null ? null : now.at - worker.started_at),
      count(worker.restarts),
      String(worker.pid),
    ],
  })
  showRates("outcomes", now.commands, "No command yet.")
  showRates("ends", now.closed, "No connection has ended yet.")
}

/** @param {State} now */
function addSample({ sample }) {
  const { at } = columns
  at.push(sample.at)
  const drop = at.findIndex((time) => time >= sample.at - HISTORY_MS)
  at.splice(0, drop)
  for (const [field, value] of Object.entries(sample)) {
    if (field === "at") continue
    // With the names of the samples; a field that is new has no past.
    const past = columns[field] ?? new Array(at.length + drop - 1).fill(null)
    past.push(value)
    past.splice(0, drop)
    columns[field] = past
  }
  for (const chart of charts) chart.show(columns)
}

/** @param {State} now */
function showVerdict({ findings }) {
  /** @type {Finding | null} */
  let worst = null
  for (const finding of findings) {
    if (LEVELS.indexOf(finding.level) > LEVELS.indexOf(worst?.level ?? "note")) worst = finding
  }
  const verdict = byId("verdict")
  verdict.dataset["level"] = worst?.level ?? "ok"
  const where = worst === null ? "" : worst.level === "problem" ? "It is" : "Look at"
  setText(verdict, worst === null ? "All is well" : `${where} ${PARTS[worst.part]}: ${worst.text}`)
  for (const part of Object.keys(PARTS)) {
    showPart(
      part,
      findings.filter((finding) => finding.part === part),
    )
  }
}

/** @param {string} part @param {Finding[]} findings the worst first */
function showPart(part, findings) {
  const card = /** @type {HTMLElement} */ (document.querySelector(`[data-part="${part}"]`))
  const level = findings[0]?.level ?? "ok"
  card.dataset["level"] = level
  setText(/** @type {Element} */ (card.querySelector(".level")), LEVEL_TEXTS[level] ?? "")
  const list = /** @type {Element} */ (card.querySelector(".findings"))
  const shown = findings.filter((finding) => finding.level !== "ok")
  const texts = shown.map(({ text, advice }) => `${text}\n${advice ?? ""}`)
  if (list.getAttribute("data-shown") === texts.join("\n")) return
  list.setAttribute("data-shown", texts.join("\n"))
  list.replaceChildren(
    ...shown.map(({ level, text, advice }) => {
      const item = element("li", { "data-level": level }, element("b", {}, `${text}.`))
      if (advice !== null) item.append(" ", advice)
      return item
    }),
  )
}

/** @param {State} now */
function showFlow(now) {
  const { sample, workers, workers_expected: expected, certificate_not_after: end } = now
  setValue("devices", count(sample.devices))
  const limit = sample.limit === null ? "" : `of at most ${count(sample.limit)}, `
  setValue("devices_note", `${limit}${count(sample.waiting)} waiting`)
  setValue("workers", `${workers.length} / ${expected}`)
  const days =
    end === null ? "" : `, certificate valid for ${Math.floor((end - now.at) / 86_400_000)} days`
  const memory = bytes(sample.resident_bytes)
  setValue("gateway_note", `workers, up ${duration(now.uptime_s * 1_000)}, ${memory}${days}`)
  const kinds = [...new Set(workers.map(({ broker }) => broker.kind))]
  setValue("broker", kinds.join(", ") || UNKNOWN)
  const window = `window ${count(sample.window_lines)} / ${count(now.window_limit)}`
  const confirm =
    sample.confirm_p99_ms === null ? "" : `, confirms within ${duration(sample.confirm_p99_ms)}`
  setValue("broker_note", window + confirm)
  for (const field of /** @type {const} */ (["lines_per_s", "confirmed_per_s", "written_per_s"])) {
    setValue(field, rate(sample[field]))
  }
  const all =
    sample.written_per_s === null ? null : sample.written_per_s + (sample.not_written_per_s ?? 0)
  setValue("commands_per_s", rate(all))
}

/**
 * The most frequent ones of now first.
 * @param {string} id @param {InstanceState["commands"]} counts @param {string} empty
 */
function showRates(id, counts, empty) {
  const rows = Object.entries(counts).sort(
    ([, a], [, b]) => (b.per_s ?? 0) - (a.per_s ?? 0) || b.total - a.total,
  )
  showRows(id, rows, {
    key: ([name]) => name,
    cells: ([name, { per_s, total }]) => [name, rate(per_s), count(total)],
    empty,
  })
}

/** @typedef {{ at: number, level: string, message: string, source: string, fields: Readonly<Record<string, unknown>> }} LogEntry */

/** The newest first. @type {(LogEntry & { key: string })[]} */
let entries = []
let nextEntry = 0

follow(`/events?last=${MAX_EVENTS}`, { log: showEntry }, (state) => {
  // The stream begins again with the past ones.
  if (state === "live") entries = []
})

/** Of the level info there are so many that they would push the others out. @param {LogEntry} entry */
function showEntry(entry) {
  if (entry.level === "info") return
  entries.unshift({ ...entry, key: String(nextEntry) })
  nextEntry += 1
  entries.splice(MAX_EVENTS)
  showRows("events", entries, {
    key: ({ key }) => key,
    kind: ({ level }) => `level-${level}`,
    cells: ({ at, level, message, fields, source }) => [
      time(at, Date.now()),
      level,
      `${message}${fieldsText(fields)}`,
      source,
    ],
  })
}

/** @param {Readonly<Record<string, unknown>>} fields */
function fieldsText(fields) {
  const texts = Object.entries(fields)
    .filter(([, value]) => value !== null && value !== "")
    .map(([name, value]) => `${name} ${typeof value === "string" ? value : JSON.stringify(value)}`)
  return texts.length === 0 ? "" : ` (${texts.join(", ")})`
}

if (find("messages") !== null) followMessages()

function followMessages() {
  /** @type {{ key: string, at: number, device_id: string, from_device_seq: number, line: string }[]} */
  const lines = []
  /** @type {ReturnType<typeof setTimeout> | null} */
  let timer = null
  const show = () => {
    timer = null
    showRows("messages", lines, {
      key: ({ key }) => key,
      cells: ({ at, device_id, from_device_seq, line }) => [
        time(at, Date.now()),
        deviceLink(device_id),
        String(from_device_seq),
        line,
      ],
    })
  }
  follow("/messages", {
    line: (message) => {
      const { device_id, connection_id, from_device_seq, line, line_base64 } = message
      const text = line ?? `${line_base64} (base64)`
      const key = `${connection_id}:${from_device_seq}`
      lines.unshift({ key, at: Date.now(), device_id, from_device_seq, line: text })
      lines.splice(MAX_MESSAGES)
      if (timer === null) timer = setTimeout(show, SHOW_MESSAGES_EVERY_MS)
    },
  })
}
