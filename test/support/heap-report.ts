/**
 * Preloaded into each process of a gateway: what it keeps, every `$HEAP_REPORT_MS`, as a line of
 * JSON in `$HEAP_REPORTS/<process id>`. It collects before it looks, because the engine itself
 * collects seldom, and what may go would look like what is kept.
 */

import { heapStats } from "bun:jsc"
import { appendFileSync, readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"

export interface HeapReport {
  readonly atMs: number
  readonly residentBytes: number
  readonly heapBytes: number
  readonly objects: Readonly<Record<string, number>>
}

/** What the environment of a gateway needs for reports into a directory. */
export function heapReports(directory: string, everyMs: number): Record<string, string> {
  return {
    HEAP_REPORTS: directory,
    HEAP_REPORT_MS: String(everyMs),
    BUN_OPTIONS: `--preload ${import.meta.path}`,
  }
}

/** Of each process, by its id: the oldest report first. */
export function readHeapReports(directory: string): ReadonlyMap<string, readonly HeapReport[]> {
  const names = readdirSync(directory).sort((one, other) => Number(one) - Number(other))
  return new Map(
    names.map((name) => {
      const lines = readFileSync(join(directory, name), "utf8").trim().split("\n")
      return [name, lines.map((line): HeapReport => JSON.parse(line))]
    }),
  )
}

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
  }, Number(process.env["HEAP_REPORT_MS"])).unref()
