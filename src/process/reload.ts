/**
 * Reload: how an instance takes a new certificate, and new CAs of devices. Connections stay, except those of devices that
 * these CAs do not vouch for (`device/recheck.ts`).
 *
 *   serving ──SIGHUP──► reading the files ─┬─ good ─► a second listener on the same port, the old one
 *      ▲                                   │          stopped; its connections stay ───────────────┐
 *      │                                   └─ bad ──► told; the old certificate serves on ─────────┤
 *      └───────────────────────────────────────────────────────────────────────────────────────────┘
 *
 * The supervisor reads, once for all workers, and hands on what it has checked: a worker that is replaced
 * later gets the same. Never ends a process. Bound: one reading a signal.
 */

import type { ListenerTls } from "../device/listener.ts"
import { errorText } from "../errors.ts"

/**
 * @param read the files, checked; throws what is wrong with them.
 * @param take hands on what was read.
 * @param refused told what was wrong.
 */
export function reloadOnHangup(
  read: () => ListenerTls,
  take: (tls: ListenerTls) => void,
  refused: (message: string) => void,
): void {
  process.on("SIGHUP", () => {
    try {
      take(read())
    } catch (error) {
      const reason = errorText(error)
      refused(`the new certificate is refused and the old one stays: ${reason}`)
    }
  })
}
