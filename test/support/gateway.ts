/**
 * A gateway for the tests: the real program, `src/main.ts`, in its own process on free ports.
 *
 * It never shares a process with the test, so that signals, exit statuses and supervision are real.
 * Its log is kept without a bound, and shown when it does not start.
 */

import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { until, within } from "./wait.ts"

const MAIN_FILE = join(import.meta.dir, "../../src/main.ts")

export type LogLine = Record<string, unknown> & { readonly msg: string }

export interface TestGateway {
  readonly host: string
  readonly devicePort: number
  readonly httpPort: number
  /** The process that was started: the supervisor, or the worker where there is none. */
  readonly pid: number
  readonly log: readonly LogLine[]
  /** Output that is not a log line. */
  readonly output: () => string
  /** Process ids of the running workers, by slot. */
  readonly workers: () => ReadonlyMap<number, number>
  /** Resolves when the slot has a worker that is not this process. */
  readonly successorOf: (slot: number, pid: number) => Promise<void>
  readonly fetch: (path: string, init?: RequestInit) => Promise<Response>
  /** The value of one metric, summed over its labels, or of one label value. */
  readonly metric: (name: string, label?: string) => Promise<number>
  /**
   * Resolves when each worker has its broker connections, has declared its queues and consumes
   * commands.
   */
  readonly ready: (timeoutMs?: number) => Promise<void>
  readonly signal: (signal: NodeJS.Signals) => void
  /**
   * Resolves with the exit status or the name of the signal, after the whole output is in `log`.
   */
  readonly exited: Promise<number | string>
  /** SIGTERM, then waits; SIGKILL when that takes longer than 20 s. */
  readonly stop: () => Promise<number | string>
}

/** One directory for all gateways of a test process, because making certificates takes time. */
let certificates: string | undefined

export function certificateFiles(): { TLS_CERT_FILE: string; TLS_KEY_FILE: string } {
  if (certificates === undefined) {
    const directory = mkdtempSync(join(tmpdir(), "owsla-certs-"))
    certificates = directory
    process.on("exit", () => rmSync(directory, { recursive: true, force: true }))
    const made = Bun.spawnSync([
      process.execPath,
      join(import.meta.dir, "../../src/ops/certs-command.ts"),
      ...["--dir", directory],
    ])
    if (made.exitCode !== 0) throw new Error(`no certificates: ${made.stderr}`)
  }
  return {
    TLS_CERT_FILE: join(certificates, "server.crt"),
    TLS_KEY_FILE: join(certificates, "server.key"),
  }
}

/** The CA that has signed the certificates of all gateways of this module. */
export function testCaFile(): string {
  return join(certificateFiles().TLS_CERT_FILE, "../ca.crt")
}

const START_TIMEOUT_MS = 60_000
const LOG_END_TIMEOUT_MS = 5_000
const LOOPBACK = "127.0.0.1"
const TOKEN = "a-token-of-the-tests"
const AUTHORIZATION = { authorization: `Bearer ${TOKEN}` }

/** Where it runs. */
export interface GatewayPlace {
  /** A command prefix, such as one that enters a network namespace. */
  readonly prefix?: readonly string[]
  /** The address to listen on and to connect to. */
  readonly host?: string
}

/**
 * Starts a gateway and waits until all its workers listen. Without `AMQP_URL` in `environment` it
 * uses the embedded broker. Rejects with its log when it ends before that.
 */
export async function startGateway(
  environment: Record<string, string> = {},
  { prefix = [], host = LOOPBACK }: GatewayPlace = {},
): Promise<TestGateway> {
  const child = Bun.spawn([...prefix, process.execPath, MAIN_FILE], {
    env: {
      PATH: process.env["PATH"] ?? "",
      HOME: process.env["HOME"] ?? "",
      DEVICE_HOST: host,
      HTTP_HOST: host,
      // An address other than loopback needs a token.
      ...(host === LOOPBACK ? {} : { HTTP_TOKENS: TOKEN }),
      DEVICE_PORT: "0",
      HTTP_PORT: "0",
      INSTANCE_ID: `t${crypto.randomUUID().slice(0, 8)}`,
      LOG_LEVEL: "info",
      ...certificateFiles(),
      ...environment,
    },
    stdio: ["ignore", "pipe", "pipe"],
  })
  const log: LogLine[] = []
  const other: string[] = []
  const outputs = Promise.all([
    readLines(child.stdout, (line) => {
      try {
        log.push(JSON.parse(line))
      } catch {
        other.push(line)
      }
    }),
    readLines(child.stderr, (line) => other.push(line)),
  ])
  const exited = child.exited.then(async (status) => {
    // After their supervisor was killed, workers keep the pipe open until they have drained.
    const read = { what: "the end of the log", timeoutMs: LOG_END_TIMEOUT_MS }
    await within(outputs, read).catch(() => undefined)
    return child.signalCode ?? status
  })
  const expected = environment["AMQP_URL"] === undefined ? 1 : Number(environment["WORKERS"] ?? "2")
  const listening = () => log.filter((line) => line.msg === "listening")
  const output = () => other.join("\n")
  try {
    await Promise.race([
      until(() => listening().length >= expected, {
        what: "the gateway to listen",
        timeoutMs: START_TIMEOUT_MS,
      }),
      exited.then((status) => {
        throw new Error(`the gateway ended with ${status}`)
      }),
    ])
  } catch (error) {
    child.kill("SIGKILL")
    const told = log.map((line) => JSON.stringify(line)).join("\n")
    throw new Error(`${error instanceof Error ? error.message : error}\n${told}\n${output()}`)
  }
  const first = listening()[0]
  const devicePort = Number(first?.["devicePort"])
  const httpPort = Number(first?.["httpPort"])
  const fetchPath = (path: string, init?: RequestInit) =>
    // A keep-alive connection would always reach the same worker.
    fetch(`http://${host}:${httpPort}${path}`, {
      keepalive: false,
      ...init,
      headers: { ...(host === LOOPBACK ? {} : AUTHORIZATION), ...init?.headers },
    })
  const metric = async (name: string, label?: string) =>
    metricValue(await (await fetchPath("/metrics")).text(), name, label)
  return {
    host,
    devicePort,
    httpPort,
    pid: child.pid,
    log,
    output,
    exited,
    workers: () => workersOf(log, child.pid),
    successorOf: async (slot, pid) => {
      const successor = () => workersOf(log, child.pid).get(slot)
      await until(() => (successor() ?? pid) !== pid, { what: "another worker" })
    },
    fetch: fetchPath,
    metric,
    ready: async (timeoutMs) => {
      const all = workersOf(log, child.pid).size
      const ready = async () => (await metric("owsla_broker_ready_workers")) === all
      await until(ready, {
        what: "every worker to have its broker",
        ...(timeoutMs === undefined ? {} : { timeoutMs }),
      })
    },
    signal: (signal) => child.kill(signal),
    stop: async () => {
      child.kill("SIGTERM")
      try {
        return await within(exited, { what: "the gateway to drain", timeoutMs: 20_000 })
      } catch {
        for (const pid of workersOf(log, child.pid).values()) killQuietly(pid)
        child.kill("SIGKILL")
        return exited
      }
    },
  }
}

/** Settings that give a gateway its own queues on a shared broker. */
export function ownQueues(name: (noun: string) => string) {
  return {
    FROM_DEVICE_QUEUE: name("from_device"),
    TO_DEVICE_QUEUE: name("to_device"),
    UNDELIVERED_QUEUE: name("undelivered"),
  }
}

export function metricValue(text: string, name: string, label?: string): number {
  let sum = 0
  for (const line of text.split("\n")) {
    const match = /^(\w+)(\{.*\})? (\S+)$/.exec(line)
    if (match?.[1] !== name) continue
    if (label === undefined || match[2]?.includes(`"${label}"`)) sum += Number(match[3])
  }
  return sum
}

/** User and system CPU time of a process, seconds. */
export function cpuSeconds(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? []
  const clockTicksPerSecond = 100
  return (Number(fields[11]) + Number(fields[12])) / clockTicksPerSecond
}

export function residentBytes(pid: number): number {
  const kib = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]
  return Number(kib) * 1024
}

function workersOf(log: readonly LogLine[], pid: number): Map<number, number> {
  const workers = new Map<number, number>()
  for (const line of log) {
    if (line.msg === "worker started") workers.set(Number(line["slot"]), Number(line["workerPid"]))
    if (line.msg !== "worker ended") continue
    const slot = Number(line["slot"])
    if (workers.get(slot) === line["workerPid"]) workers.delete(slot)
  }
  return log.some((line) => line.msg === "worker started") ? workers : new Map([[0, pid]])
}

function killQuietly(pid: number): void {
  try {
    process.kill(pid, "SIGKILL")
  } catch {
    // Gone already.
  }
}

async function readLines(
  stream: ReadableStream<Uint8Array>,
  each: (line: string) => void,
): Promise<void> {
  const decoder = new TextDecoder()
  let rest = ""
  for await (const chunk of stream) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n")
    rest = lines.pop() ?? ""
    for (const line of lines) each(line)
  }
  if (rest !== "") each(rest)
}
