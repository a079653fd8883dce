/**
 * Reload: an instance reads its certificate and the devices' CAs again. Connections stay open,
 * except those of devices whose certificates the new CAs do not trust (`device/recheck.ts`).
 *
 *   serving ──SIGHUP──► reading the files ─┬─ good ─► a second listener on the same port, the old one
 *      ▲                                   │          stopped; its connections stay ───────────────┐
 *      │                                   └─ bad ──► logged; the old certificate stays ───────────┤
 *      └───────────────────────────────────────────────────────────────────────────────────────────┘
 *
 * The supervisor reads and checks the files once for all workers; a worker that is replaced later
 * gets the same. A reload never ends a process. Bound: the files are read once for each signal.
 */

import type { ListenerTls } from "../device/tls-port.ts"
import { errorText } from "../errors.ts"
import type { EventBus } from "../events.ts"

/**
 * @param read reads and checks the files; throws an error with their faults.
 * @param take receives the new certificate.
 */
export function reloadOnHangup(
  events: EventBus,
  read: () => ListenerTls,
  take: (tls: ListenerTls) => void,
): void {
  process.on("SIGHUP", () => {
    events.emit("reload_started", {})
    try {
      take(read())
    } catch (error) {
      const reason = errorText(error)
      const message = `the new certificate is refused and the old one stays: ${reason}`
      events.emit("notice", { message })
    }
    events.emit("reload_ended", {})
  })
}
