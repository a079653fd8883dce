/**
 * The metrics that each process has, worker or supervisor: its build, memory, CPU time and files.
 *
 * The standard names are those that dashboards for any program use. prom-client's own default
 * metrics were rejected: they describe one process, read `/proc` at each collection, and their HELP
 * does not say what is summed.
 */

import { statSync } from "node:fs"
import { Gauge, type Registry } from "prom-client"
import { VERSION } from "../version.ts"
import { collectedMetrics } from "./collected-metrics.ts"
import { openFilesLimit } from "./open-files.ts"

const DESCRIPTORS = "/proc/self/fd"

export function registerProcessMetrics(registry: Registry): void {
  const { counter, gauge } = collectedMetrics(registry)
  new Gauge({
    name: "owsla_build_info",
    help: "Always 1; the labels are the version of the gateway and of Bun",
    labelNames: ["version", "bun"],
    aggregator: "max",
    registers: [registry],
  }).set({ version: VERSION, bun: Bun.version }, 1)
  const memory = "Resident memory of all processes of the instance, bytes"
  gauge("owsla_resident_bytes", memory, residentBytes)
  const cpu = "User and system CPU time of all processes of the instance, seconds"
  counter("owsla_cpu_seconds_total", cpu, cpuSeconds)
  gauge(
    "process_resident_memory_bytes",
    `${memory}. The same as owsla_resident_bytes, by its standard name`,
    residentBytes,
  )
  counter(
    "process_cpu_seconds_total",
    `${cpu}, those that have ended included. The same as owsla_cpu_seconds_total, by its standard name`,
    cpuSeconds,
  )
  const startedAtS = Math.round(Date.now() / 1_000 - process.uptime())
  gauge(
    "process_start_time_seconds",
    "Start of the instance, that is of its oldest process, seconds since 1970",
    () => startedAtS,
    "min",
  )
  const maxFiles = openFilesLimit()
  gauge(
    "process_max_fds",
    "Open-files limit of a process of the instance, the lowest one of all. Linux only",
    () => maxFiles,
    "min",
  )
  gauge(
    "process_open_fds",
    "Open file descriptors of the process of the instance that has most. Not a sum, because the limit process_max_fds is for each process. Linux 6.2 and later",
    openFiles,
    "max",
  )
}

/**
 * Null where the size of the directory is not their number: before Linux 6.2, and on other systems.
 * Reading the directory would take milliseconds with many devices.
 */
function openFiles(): number | null {
  return statSync(DESCRIPTORS, { throwIfNoEntry: false })?.size || null
}

function residentBytes(): number {
  return process.memoryUsage.rss()
}

function cpuSeconds(): number {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1_000_000
}
