/**
 * Checks the limits of the machine against the number of connections: open files, the accept queue
 * (`somaxconn`) and connection tracking. Pure: reads through `Machine`.
 *
 * The open-files limit is that of the systemd unit when there is one, because the limit of a shell
 * differs from that of a service. Otherwise it is that of this process.
 */

import type { Config } from "../../config/config.ts"
import { connectionsUnder, httpConnectionsUnder, RESERVED_FILES } from "../open-files.ts"
import { type Finding, failure, ok, skipped, warning } from "./finding.ts"
import type { Machine } from "./machine.ts"
import type { SystemdUnit } from "./systemd-unit.ts"

const SOMAXCONN = "/proc/sys/net/core/somaxconn"
const CONNTRACK_MAX = "/proc/sys/net/netfilter/nf_conntrack_max"
/** Below it the limit was probably not set on purpose. */
const SMALL_LIMIT = 4_096

export interface LimitsOptions {
  readonly config: Config
  readonly machine: Machine
  /** Null when there is no unit. */
  readonly unit: SystemdUnit | null
  /** The soft limit of this process; null when it is unknown. */
  readonly openFiles: number | null
}

export function checkOpenFiles({ config, unit, openFiles }: LimitsOptions): Finding[] {
  const limit = unit?.openFiles ?? openFiles
  if (limit === null) return [skipped("open_files", "this system does not tell its limit")]
  const whose = unit === null ? "of this process" : `in ${unit.name}`
  const http = httpConnections(config, limit)
  const wanted = config.device.maxConnections
  const possible = connectionsUnder(limit, http)
  const files = `the open-files limit ${whose} is ${number(limit)}`
  if (wanted !== null && wanted + RESERVED_FILES + http > limit) {
    const needed = wanted + RESERVED_FILES + http
    return [
      failure(
        "open_files",
        `${files}, but MAX_CONNECTIONS=${wanted} needs ${number(needed)} for each worker`,
        `set LimitNOFILE=${needed} in the unit, or ulimit -n ${needed} in the shell, or lower MAX_CONNECTIONS`,
      ),
    ]
  }
  const devices = wanted ?? possible
  const message = `${files}: each worker accepts ${number(devices)} devices`
  if (wanted === null && limit < SMALL_LIMIT) {
    const advice = "set LimitNOFILE=200000 in the unit, or ulimit -n 200000 in the shell"
    return [warning("open_files", message, advice)]
  }
  return [ok("open_files", message)]
}

export function checkSomaxconn({ config, machine }: LimitsOptions): Finding[] {
  const { backlog } = config.device
  const max = numberIn(machine.read(SOMAXCONN))
  if (max === null) return [skipped("somaxconn", `${SOMAXCONN} cannot be read`)]
  if (max >= backlog) {
    const message = `net.core.somaxconn is ${number(max)}, LISTEN_BACKLOG ${number(backlog)}`
    return [ok("somaxconn", message)]
  }
  return [
    warning(
      "somaxconn",
      `net.core.somaxconn is ${number(max)} and limits LISTEN_BACKLOG=${backlog}: in a storm the kernel drops connections, and devices try again after a second`,
      `sysctl net.core.somaxconn=${backlog}`,
    ),
  ]
}

export function checkConntrack(options: LimitsOptions): Finding[] {
  const max = numberIn(options.machine.read(CONNTRACK_MAX))
  if (max === null) return [ok("conntrack", "the kernel does not track connections")]
  const { config } = options
  const devices = devicesOf(options)
  const connections = devices * config.workers
  if (max >= connections) {
    const message = `nf_conntrack_max is ${number(max)}, for up to ${number(connections)} devices`
    return [ok("conntrack", message)]
  }
  return [
    warning(
      "conntrack",
      `nf_conntrack_max is ${number(max)}, fewer than the ${number(connections)} devices of ${config.workers} worker(s): if the firewall tracks connections, the kernel drops new ones`,
      `sysctl net.netfilter.nf_conntrack_max=${2 * connections}, or exempt the device port with notrack`,
    ),
  ]
}

/** Devices that one worker accepts. */
export function devicesOf({ config, unit, openFiles }: LimitsOptions): number {
  const limit = unit?.openFiles ?? openFiles
  const http = httpConnections(config, limit)
  return config.device.maxConnections ?? connectionsUnder(limit, http)
}

/** HTTP connections of a worker on both ports, as the worker counts them. */
function httpConnections({ http, metrics }: Config, limit: number | null): number {
  return httpConnectionsUnder(limit, http.maxConnections) * (metrics === null ? 1 : 2)
}

function numberIn(text: string | null): number | null {
  return text !== null && /^\d+\s*$/.test(text) ? Number(text) : null
}

function number(value: number): string {
  return value.toLocaleString("en")
}
