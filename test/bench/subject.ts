/**
 * What a bench puts under load: the gateway, a bare TLS server to compare it with, or any other TLS
 * line server that runs already (`--beside`). Each says where it listens and which processes are
 * its own, so that all are measured in the same way.
 */

import { existsSync } from "node:fs"
import {
  certificateFiles,
  cpuSeconds,
  residentBytes,
  type TestGateway,
} from "../support/gateway.ts"
import { until } from "../support/wait.ts"
import { startChild } from "./child.ts"

export interface Subject {
  readonly name: string
  readonly port: number
  readonly pids: () => readonly number[]
  /** Connections that it admitted since its start; null for one that can't be asked. */
  readonly admitted: (() => Promise<number>) | null
  /** Connections that it has now. */
  readonly open: (() => Promise<number>) | null
  readonly stop: () => Promise<unknown>
}

/** Another server, by `--beside <port>,<pid>`. */
export interface Beside {
  readonly port: number
  readonly pid: number
}

/** A bare server can also be asked for the bytes that came, and told to write. */
export interface BareServer extends Subject {
  readonly admitted: () => Promise<number>
  readonly open: () => Promise<number>
  readonly bytes: () => Promise<number>
  /** Writes this many lines to each connection, one a turn; resolves when that is done. */
  readonly write: (lines: number) => Promise<void>
}

/**
 * @param ca of the devices' certificates; none is asked for without it.
 * @param echo whether it writes back every chunk.
 */
export async function bareServer(ca: string | null = null, echo = false): Promise<BareServer> {
  const { TLS_CERT_FILE, TLS_KEY_FILE } = certificateFiles()
  const child = startChild("bare.ts", {
    cert: TLS_CERT_FILE,
    key: TLS_KEY_FILE,
    ...(ca === null ? {} : { ca }),
    ...(echo ? { echo: "yes" } : {}),
  })
  const { port = 0 } = await child.told("port")
  const status = async (field: "admitted" | "open" | "bytes") => {
    child.say("status")
    return (await child.told(field))[field] ?? 0
  }
  return {
    name: "bare server",
    port,
    pids: () => [child.pid],
    admitted: () => status("admitted"),
    open: () => status("open"),
    bytes: () => status("bytes"),
    write: async (lines) => {
      child.say(`write ${lines}`)
      await child.told("written")
    },
    stop: child.stop,
  }
}

export function gatewaySubject(gateway: TestGateway): Subject {
  return {
    name: "gateway",
    port: gateway.devicePort,
    pids: () => processIds(gateway),
    admitted: () => gateway.metric("owsla_connections_admitted_total"),
    open: () => gateway.metric("owsla_connections"),
    stop: gateway.stop,
  }
}

export function besideSubject({ port, pid }: Beside): Subject {
  return {
    name: "beside",
    port,
    pids: () => [pid],
    admitted: null,
    open: null,
    stop: () => Promise.resolve(),
  }
}

/** The supervisor's and its workers'. */
export function processIds(gateway: TestGateway): readonly number[] {
  return [...new Set([gateway.pid, ...gateway.workers().values()])]
}

/** Resolves when these processes together use less than this share of a core for `forMs`. */
export async function untilIdle(
  pids: readonly number[],
  { share, forMs, timeoutMs }: { share: number; forMs: number; timeoutMs: number },
): Promise<void> {
  const idle = async () => {
    const before = cpuOf(pids)
    await Bun.sleep(forMs)
    return cpuOf(pids) - before < (share * forMs) / 1000
  }
  await until(idle, { what: "the servers to be idle", timeoutMs })
}

/** Of those that still run: RabbitMQ has helpers that come and go. */
export function cpuOf(pids: readonly number[]): number {
  return sumOfRunning(pids, cpuSeconds)
}

/** Of those that still run. */
export function residentOf(pids: readonly number[]): number {
  return sumOfRunning(pids, residentBytes)
}

function sumOfRunning(pids: readonly number[], of: (pid: number) => number): number {
  let sum = 0
  for (const pid of pids) {
    try {
      sum += of(pid)
    } catch (error) {
      if (existsSync(`/proc/${pid}/stat`)) throw error
    }
  }
  return sum
}
