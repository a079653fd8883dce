/**
 * Sends the state of the instance to systemd (sd_notify(3)), when systemd has started the process
 * with `Type=notify`.
 *
 *   starting ──instance_started──► READY=1 ──instance_draining──► STOPPING=1, EXTEND_TIMEOUT_USEC
 *                                   │   ▲
 *                       reload_started  reload_ended
 *                                   ▼   │
 *                       RELOADING=1, MONOTONIC_USEC
 *
 * Every tick: STATUS; WATCHDOG=1, if the unit has WatchdogSec; and in a drain EXTEND_TIMEOUT_USEC,
 * because TimeoutStopSec may be shorter than DRAIN_TIMEOUT_MS. The ticks come from the event loop
 * of this process, so they stop when it stalls, and systemd restarts the service. The supervisor
 * replaces workers that stall.
 *
 * An error is logged once and has no other effect.
 */

import { errorText } from "../errors.ts"
import type { EventBus } from "../events.ts"
import { NotifySocket } from "./notify-socket.ts"

export interface SystemdOptions {
  /** The value of NOTIFY_SOCKET. */
  readonly socket: string
  /** systemd restarts the service when it gets no WATCHDOG=1 for this long; null: it does not. */
  readonly watchdogMs: number | null
}

const MAX_TICK_MS = 5_000
/** Two messages may be lost before systemd acts. */
const TICKS_IN_TIMEOUT = 3
const EXTEND_TIMEOUT_USEC = `EXTEND_TIMEOUT_USEC=${MAX_TICK_MS * TICKS_IN_TIMEOUT * 1_000}`

/** @param status one line for `systemctl status`; called every tick. */
export function notifySystemd(
  { socket: name, watchdogMs }: SystemdOptions,
  events: EventBus,
  status: () => string,
): void {
  let isBroken = false
  const failed = (reason: string) => {
    if (!isBroken) events.emit("notice", { message: `systemd gets no messages: ${reason}` })
    isBroken = true
  }
  let socket: NotifySocket
  try {
    socket = new NotifySocket(name)
  } catch (error) {
    failed(errorText(error))
    return
  }
  const notify = (...assignments: string[]) => {
    if (!socket.send(assignments.join("\n"))) failed("sendto on NOTIFY_SOCKET failed")
  }

  let isDraining = false
  events.on("instance_started", () => notify("READY=1"))
  events.on("reload_started", () => {
    notify("RELOADING=1", `MONOTONIC_USEC=${socket.monotonicUs()}`)
  })
  events.on("reload_ended", () => notify("READY=1"))
  events.on("instance_draining", () => {
    isDraining = true
    notify("STOPPING=1", EXTEND_TIMEOUT_USEC)
  })
  const tick = () => {
    const watchdog = watchdogMs === null ? [] : ["WATCHDOG=1"]
    const extension = isDraining ? [EXTEND_TIMEOUT_USEC] : []
    notify(`STATUS=${status()}`, ...watchdog, ...extension)
  }
  setInterval(tick, Math.min(MAX_TICK_MS, (watchdogMs ?? MAX_TICK_MS) / TICKS_IN_TIMEOUT))
}
