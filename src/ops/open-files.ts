/**
 * The open-files limit of this process, and how many devices and HTTP connections fit under it. At the limit the kernel
 * accepts nothing and the event loop spins, so connections are capped below it.
 */

import { readFileSync } from "node:fs"

/** For the broker, the log, libraries, and accepted connections that are about to be refused. */
const RESERVED_FILES = 256

/** The soft limit; null where the system does not tell. */
export function openFilesLimit(): number | null {
  try {
    const soft = /^Max open files\s+(\d+)/m.exec(readFileSync("/proc/self/limits", "utf8"))?.[1]
    return soft === undefined ? null : Number(soft)
  } catch {
    return null
  }
}

/** How many HTTP connections a worker may hold under this limit: no more than a quarter of it; at least one. */
export function httpConnectionsUnder(limit: number | null, wanted: number): number {
  return limit === null ? wanted : Math.max(1, Math.min(wanted, Math.floor(limit / 4)))
}

/** How many devices a worker may hold under this limit beside its HTTP connections; at least one. */
export function connectionsUnder(limit: number | null, httpConnections: number): number {
  if (limit === null) return 10_000
  const reserved = Math.min(RESERVED_FILES + httpConnections, Math.ceil(limit / 2))
  return Math.max(1, limit - reserved)
}
