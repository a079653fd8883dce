/**
 * The open-files limit of this process, and how many devices fit under it. At the limit the kernel
 * accepts nothing and the event loop spins, so connections are capped below it.
 */

import { readFileSync } from "node:fs"

/** For the broker, HTTP, the log, libraries, and accepted connections that are about to be refused. */
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

/** How many connections a worker may hold under this limit; at least one. */
export function connectionsUnder(limit: number | null): number {
  if (limit === null) return 10_000
  return Math.max(1, limit - Math.min(RESERVED_FILES, Math.ceil(limit / 2)))
}
