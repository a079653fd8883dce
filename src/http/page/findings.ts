/**
 * What is wrong, and where: the devices, the gateway or the broker. Each part has at least one
 * finding, the worst first.
 *
 *   state now ──┬─► broker:  away, blocked, slow ─┐
 *   the last ───┼─► gateway: workers, gate, lag   ├─► findings ─► the first part with the worst level
 *   15 minutes ─┴─► devices: fewer, silent, queue ┘              is the verdict
 *
 * The parts are in the order of causes: without the broker no line is confirmed, and without
 * workers no device is connected. Pure. Bound: one finding for each rule.
 */

import type { InstanceState } from "./instance-state.ts"

export const PARTS = ["broker", "gateway", "devices"] as const
export type Part = (typeof PARTS)[number]

/** Ascending. A note needs no action. */
export const LEVELS = ["ok", "note", "warning", "problem"] as const
export type Level = (typeof LEVELS)[number]

export interface Finding {
  readonly part: Part
  readonly level: Level
  readonly text: string
  /** What to do; null when nothing is to be done. */
  readonly advice: string | null
}

/** One moment of the last 15 minutes. */
export interface Before {
  readonly at: number
  readonly devices: number | null
  readonly lines_per_s: number | null
  readonly restarts: number | null
  readonly faults: number | null
}

const MS_PER_S = 1_000
const MS_PER_DAY = 86_400_000
const MS_PER_MINUTE = 60_000
/** Of the publish window. */
const FULL = 0.95
const SLOW_CONFIRM_MS = 1_000
const SLOW_LOOP_MS = 200
const NEAR_LIMIT = 0.9
/** Fewer devices than this share of the most within 15 minutes. */
const FEWER = 0.8
/** Below this, a few devices are a large share. */
const MIN_DEVICES = 20
const SILENT_MS = 3 * MS_PER_MINUTE
const CERTIFICATE_WARNING_DAYS = 14
const CERTIFICATE_PROBLEM_DAYS = 3

/** @param before ascending by time. */
export function findingsOf(state: InstanceState, before: readonly Before[]): Finding[] {
  const found = [
    ...brokerFindings(state),
    ...gatewayFindings(state, before),
    ...deviceFindings(state, before),
  ]
  const rank = ({ level }: Finding) => LEVELS.indexOf(level)
  return PARTS.flatMap((part) =>
    found.filter((finding) => finding.part === part).sort((a, b) => rank(b) - rank(a)),
  )
}

function brokerFindings(state: InstanceState): Finding[] {
  const { workers, sample, window_limit: limit } = state
  const make = maker("broker")
  const found: Finding[] = []
  const away = workers.filter(({ broker }) => broker.kind === "away" || broker.kind === "closed")
  const blocked = workers.filter(({ broker }) => broker.kind === "blocked")
  const of = (some: InstanceState["workers"]) =>
    `${some.length} of ${plural(workers.length, "worker")}`
  if (away.length > 0) {
    found.push(
      make(
        "problem",
        `No connection to the broker on ${of(away)}${reasonOf(away)}`,
        "Check the broker, the network and the credentials. Devices stay connected, and no accepted line is lost.",
      ),
    )
  }
  if (blocked.length > 0) {
    found.push(
      make(
        "problem",
        `The broker accepts no messages from ${of(blocked)}${reasonOf(blocked)}`,
        "Check the alarms of the broker: memory and disk. Devices stay connected, and no accepted line is lost.",
      ),
    )
  }
  const { window_lines: lines, confirm_p99_ms: confirmMs, waiting_for_room: waiting } = sample
  if (lines !== null && limit > 0 && lines >= FULL * limit) {
    const devices = waiting === null ? "" : `; the lines of ${plural(waiting, "device")} wait`
    found.push(
      make(
        "warning",
        `The publish window is full: ${lines} of ${limit} lines are not confirmed${devices}`,
        "The broker confirms more slowly than devices send. Check its disk, the queue type and its length.",
      ),
    )
  }
  if (confirmMs !== null && confirmMs > SLOW_CONFIRM_MS) {
    found.push(
      make(
        "warning",
        `Confirms are slow: ${shortMs(confirmMs)} for the slowest hundredth of the lines`,
        "Check the disk and the load of the broker.",
      ),
    )
  }
  if (found.length > 0 || workers.length === 0) return found
  const confirms = confirmMs === null ? "" : `, confirms within ${shortMs(confirmMs)}`
  return [make("ok", `Ready for ${plural(workers.length, "worker")}${confirms}`)]
}

function gatewayFindings(state: InstanceState, before: readonly Before[]): Finding[] {
  const make = maker("gateway")
  const found: Finding[] = []
  const { workers, workers_expected: expected, sample, draining, gate } = state
  if (workers.length < expected) {
    found.push(
      make(
        "problem",
        `${expected - workers.length} of ${plural(expected, "worker")} did not answer`,
        "A worker is starting, is stopped or hangs. Look for worker ended and fault in the log.",
      ),
    )
  }
  const restarts = since(before, "restarts", sample.restarts)
  if (restarts > 0) {
    found.push(
      make(
        "problem",
        `${plural(restarts, "worker")} died and ${restarts === 1 ? "was" : "were"} replaced within 15 minutes`,
        "Look for worker ended in the log: SIGKILL usually means that the machine ran out of memory.",
      ),
    )
  }
  const faults = since(before, "faults", sample.faults)
  if (faults > 0) {
    found.push(
      make(
        "warning",
        `${plural(faults, "internal error")} within 15 minutes`,
        "Look for fault in the log, and report it.",
      ),
    )
  }
  for (const reason of new Set(workers.flatMap(({ refusing }) => refusing ?? []))) {
    if (reason === "gated" || reason === "drained") continue
    const refusing = workers.filter((worker) => worker.refusing === reason)
    found.push(
      make(
        "problem",
        `${plural(refusing.length, "worker")} of ${workers.length} refuse new devices: ${reason}`,
        reason === "overloaded"
          ? "The worker is full. Add workers, machines or open files."
          : "Handshakes begin again when the cause is over.",
      ),
    )
  }
  if (draining !== null) {
    const { closed, left } = draining
    found.push(
      make(
        "warning",
        `The instance is draining: ${plural(closed, "device")} closed, ${left} left`,
        "It takes no devices until DELETE /drain, or is being stopped.",
      ),
    )
  }
  if (!gate.open) {
    const whom = gate.prefix === "" ? "all new devices" : `new devices ${gate.prefix}…`
    found.push(
      make(
        "warning",
        `The gate is closed for ${whom}`,
        "Open it under Access when devices may come.",
      ),
    )
  }
  if (workers.some(({ consuming_paused: isPaused }) => isPaused)) {
    found.push(
      make(
        "warning",
        "Commands are not consumed: unacknowledged ones have reached MAX_COMMAND_BYTES",
        "Devices are slow, or the broker does not confirm receipts.",
      ),
    )
  }
  const { lag_p99_ms: lagMs } = sample
  if (lagMs !== null && lagMs > SLOW_LOOP_MS) {
    found.push(
      make(
        "warning",
        `The event loop is late by ${shortMs(lagMs)}`,
        "The machine has too few cores for this load, or another program uses them.",
      ),
    )
  }
  found.push(...certificateFindings(state))
  if (found.some(({ level }) => level !== "note") || workers.length === 0) return found
  const serving = workers.filter(({ state }) => state === "serving").length
  return [make("ok", `${plural(serving, "worker")} of ${expected} serving`), ...found]
}

function certificateFindings({ at, certificate_not_after: end }: InstanceState): Finding[] {
  if (end === null) return []
  const days = Math.floor((end - at) / MS_PER_DAY)
  if (days >= CERTIFICATE_WARNING_DAYS) return []
  const level = days < CERTIFICATE_PROBLEM_DAYS ? "problem" : "warning"
  const text =
    end <= at ? "The certificate has expired" : `The certificate expires in ${plural(days, "day")}`
  return [maker("gateway")(level, text, "Write the new files and send SIGHUP to the supervisor.")]
}

function deviceFindings(state: InstanceState, before: readonly Before[]): Finding[] {
  const make = maker("devices")
  const found: Finding[] = []
  const { at, sample, bans } = state
  const devices = sample.devices ?? 0
  const { limit, lines_per_s: linesPerS } = sample
  const most = before.reduce<Before | null>(
    (most, moment) => ((moment.devices ?? 0) > (most?.devices ?? 0) ? moment : most),
    null,
  )
  const peak = most?.devices ?? 0
  if (most !== null && peak >= MIN_DEVICES && devices < FEWER * peak) {
    const share = Math.round((1 - devices / peak) * 100)
    const minutes = Math.max(1, Math.round((at - most.at) / MS_PER_MINUTE))
    found.push(
      make(
        "problem",
        `${share} % fewer devices than ${plural(minutes, "minute")} ago: ${devices} of ${peak}`,
        "See why connections end, below. When most ended at once as peer_closed, check the network, the load balancer and the power on site.",
      ),
    )
  } else if (devices === 0) {
    found.push(
      make(
        "warning",
        "No device is connected",
        "See Refusals. When it is empty, devices do not reach the device port: check DNS, firewall and load balancer.",
      ),
    )
  }
  const silentSince = silentSinceMs(before, linesPerS)
  if (devices > 0 && silentSince !== null && at - silentSince >= SILENT_MS) {
    const minutes = Math.round((at - silentSince) / MS_PER_MINUTE)
    found.push(
      make(
        "problem",
        `No line has arrived for ${plural(minutes, "minute")}, although ${plural(devices, "device")} ${devices === 1 ? "is" : "are"} connected`,
        "When broker and gateway are well, the devices send nothing: check their firmware or what they measure.",
      ),
    )
  }
  if (limit !== null && limit > 0 && devices >= NEAR_LIMIT * limit) {
    found.push(
      make(
        "warning",
        `${devices} of at most ${limit} devices are connected`,
        "Further devices are refused as overloaded. Add workers, machines or open files.",
      ),
    )
  }
  const waiting = sample.waiting ?? 0
  if (waiting > 0) {
    const ms = state.estimated_wait_ms
    const last = ms === null ? "" : `; the last one is connected in about ${shortMs(ms)}`
    found.push(make("note", `${plural(waiting, "device")} wait for their handshake${last}`))
  }
  if (bans > 0) {
    found.push(make("note", `${plural(bans, "device")} banned`, "See Access for the reasons."))
  }
  if (found.some(({ level }) => level !== "note")) return found
  const lines = linesPerS === null ? "" : `, ${perS(linesPerS)} lines a second`
  return [make("ok", `${plural(devices, "device")} connected${lines}`), ...found]
}

/** When lines stopped arriving, if there were lines before; null while there are some. */
function silentSinceMs(before: readonly Before[], linesPerS: number | null): number | null {
  if (linesPerS !== 0) return null
  const last = before.findLastIndex((moment) => (moment.lines_per_s ?? 0) > 0)
  return last === -1 ? null : (before[last]?.at ?? null)
}

/** By how much a total has risen since the first moment that is known. */
function since(
  before: readonly Before[],
  field: "restarts" | "faults",
  now: number | null,
): number {
  const then = before.find((moment) => moment[field] !== null)?.[field] ?? now
  return Math.max(0, (now ?? 0) - (then ?? 0))
}

function maker(part: Part) {
  return (level: Level, text: string, advice: string | null = null): Finding => ({
    ...{ part, level, text, advice },
  })
}

function reasonOf(workers: InstanceState["workers"]): string {
  const reason = workers.find(({ broker }) => broker.reason !== undefined)?.broker.reason
  return reason === undefined ? "" : `: ${reason}`
}

function plural(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? "" : "s"}`
}

function perS(rate: number): string {
  return rate < 10 && rate > 0 ? rate.toFixed(1) : String(Math.round(rate))
}

function shortMs(ms: number): string {
  if (ms < MS_PER_S) return `${Math.round(ms)} ms`
  const seconds = ms / MS_PER_S
  return seconds < 10 ? `${seconds.toFixed(1)} s` : `${Math.round(seconds)} s`
}
