/**
 * Preloaded into each process of a gateway under the soak: what it keeps, once a minute, as a line
 * of JSON in `$HEAP_REPORTS/<process id>`. It collects before it looks, because the engine itself
 * collects seldom, so that what may go would look like what is kept.
 */

import { heapStats } from "bun:jsc"
import { appendFileSync } from "node:fs"
import { join } from "node:path"

export interface HeapReport {
  readonly atMs: number
  readonly residentBytes: number
  readonly heapBytes: number
  readonly objects: Readonly<Record<string, number>>
}

const EVERY_MS = 60_000
const directory = process.env["HEAP_REPORTS"]

if (directory !== undefined)
  setInterval(() => {
    Bun.gc(true)
    const { heapSize, objectTypeCounts } = heapStats()
    const report: HeapReport = {
      atMs: Date.now(),
      residentBytes: process.memoryUsage.rss(),
      heapBytes: heapSize,
      objects: objectTypeCounts,
    }
    appendFileSync(join(directory, String(process.pid)), `${JSON.stringify(report)}\n`)
  }, EVERY_MS).unref()
