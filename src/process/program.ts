/**
 * The program, loaded by `main.ts`. It reads the configuration, makes development certificates when
 * none are set, and runs as the supervisor, as a worker of the supervisor (`--worker`), or, with
 * the embedded broker, as the only worker. Each role loads only the modules that it needs, to save
 * memory.
 *
 * Exit status: 0 drained, 1 failed, 2 faults in the configuration.
 */

import { dirname } from "node:path"
import { parseArgs } from "node:util"
import { type Config, ConfigurationError, loadConfig } from "../config/config.ts"
import { Counters } from "../counters.ts"
import { workerId } from "../device/ids.ts"
import { TokenKeysError } from "../device/token-keys.ts"
import { asError, errorText } from "../errors.ts"
import { EventBus } from "../events.ts"
import type { LogEntry } from "../log-entry.ts"
import { CertificateError, ensureDevelopmentCertificates } from "../ops/certificates.ts"
import { createLog, logEvents } from "../ops/log.ts"
import { Output } from "../ops/output.ts"
import { readListenerTls } from "../ops/server-certificate.ts"
import { readTokenKeys } from "../ops/token-keys-file.ts"
import { InstanceLog } from "./instance-log.ts"
import type { InstanceSummary } from "./instance-status.ts"
import { ownProgram } from "./own-program.ts"
import { SupervisorChannel } from "./supervisor-channel.ts"
import { exitOnUncaught } from "./uncaught.ts"
import { WorkerLog } from "./worker-log.ts"

const STANDARD_ERROR = 2

interface WorkerRole {
  readonly slot: number
  readonly devicePort: number
  readonly httpPort: number
}

/** @param args the options of the command line. */
export async function start(args: readonly string[]): Promise<void> {
  try {
    await run(args)
  } catch (error) {
    // Bun's own report writes to standard error and blocks when the pipe is full.
    const { stack, message } = asError(error)
    exit(1, [stack ?? message])
  }
}

async function run(args: readonly string[]): Promise<void> {
  const role = readRole(args)
  if (role !== null) {
    await workUnderSupervisor(role)
    return
  }
  const config = readConfig()
  const alone = config.amqp === null
  const instanceLog = new InstanceLog()
  const { events, counters } = logged(config, alone ? 0 : null, instanceLog.add)
  if (config.tls.development) await developmentCertificates(config, events)
  const readTls = () => readListenerTls(config.tls, config.device.clientCaFile)
  const { token } = config.device
  const tls = await usable(readTls)
  const tokenKeys = token === null ? null : await usable(() => readTokenKeys(token.keysFile))
  refuseTakenPorts(config)
  if (!alone) {
    const { Supervisor } = await import("./supervisor.ts")
    const program = ownProgram()
    const supervisor = new Supervisor(config, events, counters, instanceLog, program, readTls)
    await notifyingSystemd(config, events, () => supervisor.summary)
    supervisor.start(tls, tokenKeys)
    return
  }
  await notifyingSystemd(config, events, null)
  const { runWorker } = await import("./worker-process.ts")
  const { port: devicePort } = config.device
  const { port: httpPort } = config.http
  const ports = { devicePort, httpPort }
  await runWorker({
    config,
    slot: 0,
    ...ports,
    events,
    counters,
    tls,
    tokenKeys,
    // The embedded broker has no other workers.
    rules: [],
    log: {
      recent: async () => instanceLog.recent(),
      follow: (tap) => instanceLog.follow(tap),
    },
    orders: { from: "signals", readTls },
  })
}

/**
 * Loads what systemd needs only when systemd has started this process.
 *
 * @param summary null with the embedded broker.
 */
async function notifyingSystemd(
  { systemd }: Config,
  events: EventBus,
  summary: (() => InstanceSummary) | null,
): Promise<void> {
  if (systemd === null) return
  const { InstanceStatus } = await import("./instance-status.ts")
  const { notifySystemd } = await import("../ops/systemd.ts")
  const status = new InstanceStatus()
  notifySystemd(systemd, events, () =>
    summary === null ? "embedded broker" : status.line(summary(), performance.now()),
  )
}

/** Reads neither environment nor files; the supervisor sends the configuration. */
async function workUnderSupervisor(role: WorkerRole): Promise<void> {
  const { runWorker } = await import("./worker-process.ts")
  const channel = new SupervisorChannel()
  const { config, tls, tokenKeys, rules } = await channel.first()
  const log = new WorkerLog((message) => channel.send(message))
  const orders = { from: "supervisor", channel, workerLog: log } as const
  const { events, counters } = logged(config, role.slot, log.add)
  await runWorker({ ...role, events, counters, config, tls, tokenKeys, rules, log, orders })
}

/**
 * @param slot of a worker; null: the supervisor.
 * @param observe gets each line at level info and above.
 */
function logged(
  config: Config,
  slot: number | null,
  observe: (entry: LogEntry) => void,
): { events: EventBus; counters: Counters } {
  const events = new EventBus()
  const counters = new Counters()
  const name = slot === null ? config.instanceId : workerId(config.instanceId, slot)
  const { format } = config.log
  const about = { name, pid: process.pid }
  logEvents(events, createLog(config.log, about, counters, observe), format)
  exitOnUncaught(events)
  return { events, counters }
}

function readRole(args: readonly string[]): WorkerRole | null {
  const values = parseArguments(args)
  if (values.worker === undefined) return null
  return {
    slot: Number(values.worker),
    devicePort: Number(values["device-port"]),
    httpPort: Number(values["http-port"]),
  }
}

function parseArguments(args: readonly string[]) {
  const option = { type: "string" } as const
  const options = { worker: option, "device-port": option, "http-port": option }
  try {
    return parseArgs({ args: [...args], options }).values
  } catch (error) {
    const hint =
      "The settings are environment variables; see docs/CONFIGURATION.md. --help lists the commands."
    exit(2, [errorText(error), hint])
  }
}

function readConfig(): Config {
  try {
    return loadConfig()
  } catch (error) {
    if (!(error instanceof ConfigurationError)) throw error
    exit(2, ["The configuration has faults:", ...error.faults.map((fault) => `  ${fault}`)])
  }
}

async function developmentCertificates(config: Config, events: EventBus): Promise<void> {
  const { certFile, keyFile } = config.tls
  try {
    const directory = dirname(certFile)
    const made = await ensureDevelopmentCertificates({ directory, certFile, keyFile })
    if (made.state === "made") {
      const message = `development certificates made in ${directory}/`
      events.emit("notice", { message })
    } else if (made.expired) {
      const message = `${certFile} expired at ${made.notAfter.toISOString()}; see bun run certs`
      events.emit("notice", { message })
    }
  } catch (error) {
    if (!(error instanceof CertificateError)) throw error
    exit(1, [error.message])
  }
}

/** A file that cannot be used at the start is a fault of the configuration. */
async function usable<T>(read: () => T | Promise<T>): Promise<T> {
  try {
    return await read()
  } catch (error) {
    if (!(error instanceof CertificateError || error instanceof TokenKeysError)) throw error
    exit(2, ["The configuration has faults:", `  ${error.message}`])
  }
}

/**
 * Workers share their ports, so a second instance that is started by mistake would share them too,
 * and devices would connect to either. A bind without `reusePort` detects it.
 */
function refuseTakenPorts({ device, http, metrics }: Config): void {
  const listeners = { DEVICE: device, HTTP: http, ...(metrics && { METRICS: metrics }) }
  for (const [name, { host, port }] of Object.entries(listeners)) {
    if (port === 0) continue
    try {
      const options = { hostname: host, port, exclusive: true, socket: { data: () => undefined } }
      Bun.listen(options).stop(true)
    } catch (error) {
      const inUse = error instanceof Error && "code" in error && error.code === "EADDRINUSE"
      const reason = inUse ? "the port is in use, perhaps by another gateway" : String(error)
      exit(1, [`${name}_HOST, ${name}_PORT: cannot listen on ${host}:${port}: ${reason}`])
    }
  }
}

/** Prints faults that prevent the start, when there is no log yet. */
function exit(status: number, lines: readonly string[]): never {
  const output = Output.toDescriptor(STANDARD_ERROR, () => undefined)
  output.write(`${lines.join("\n")}\n`)
  process.exit(status)
}
