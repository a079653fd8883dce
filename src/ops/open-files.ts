/**
 * The open-files limit of this process, and the numbers of device and HTTP connections below it. At
 * the limit `accept` fails and the event loop uses all CPU time, so connections are limited before
 * that.
 */

import { readFileSync } from "node:fs"

/**
 * Descriptors for the broker, the log, libraries, and accepted connections that are about to be
 * refused.
 */
export const RESERVED_FILES = 256

/** The soft limit; null when it is unknown (other systems than Linux). */
export function openFilesLimit(): number | null {
  try {
    const soft = /^Max open files\s+(\d+)/m.exec(readFileSync("/proc/self/limits", "utf8"))?.[1]
    return soft === undefined ? null : Number(soft)
  } catch {
    return null
  }
}

/**
 * The maximum of HTTP connections of a worker: `wanted`, but at most a quarter of the limit, and at
 * least one.
 */
export function httpConnectionsUnder(limit: number | null, wanted: number): number {
  return limit === null ? wanted : Math.max(1, Math.min(wanted, Math.floor(limit / 4)))
}

/** The maximum of device connections of a worker besides its HTTP connections; at least one. */
export function connectionsUnder(limit: number | null, httpConnections: number): number {
  if (limit === null) return 10_000
  const reserved = Math.min(RESERVED_FILES + httpConnections, Math.ceil(limit / 2))
  return Math.max(1, limit - reserved)
}
