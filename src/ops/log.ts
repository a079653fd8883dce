/**
 * The log: writes events as lines to standard output, and passes those at level info and above on
 * as data, for `/events` and `/audit`.
 *
 * Never logs a secret or the contents of a line. Never blocks (`output.ts`): log lines that
 * standard output does not accept are dropped and counted.
 */

import { isatty } from "node:tty"
import pino, { type Logger } from "pino"
import pretty from "pino-pretty"
import type { Counters } from "../counters.ts"
import type { EventBus } from "../events.ts"
import type { LogEntry } from "../log-entry.ts"
import { addressesText } from "../process/addresses.ts"
import { Output } from "./output.ts"

export interface LogOptions {
  readonly level: "debug" | "info" | "warn" | "error"
  readonly format: "json" | "text"
}

const STANDARD_OUTPUT = 1
/** A longer line is passed on without its fields. */
const MAX_ENTRY_LENGTH = 8_192
/** A longer message is cut. */
const MAX_MESSAGE_LENGTH = 2_048

const NOT_READY = {
  away: "broker away; devices stay connected and their lines wait",
  blocked: "broker blocks publishers; the lines of devices wait",
}

/** The field `kind` of lines about what operators have done. */
const AUDIT = "audit"

/** What pino sets on a destination with its symbol `pino.metadata`, before each write. */
interface WrittenLine {
  lastLevel?: number
  lastMsg?: string
  lastObj?: Record<string, unknown> | null
}

/**
 * @param about fields of each log line, such as the worker's id.
 * @param observe gets each line at level info and above, also those below `options.level`.
 */
export function createLog(
  options: LogOptions,
  about: { readonly name: string; readonly pid: number },
  counters: Pick<Counters, "logLinesDropped">,
  observe: (entry: LogEntry) => void,
): Logger {
  const format =
    options.format === "text"
      ? pretty.prettyFactory({ colorize: isatty(STANDARD_OUTPUT), ignore: "pid,hostname" })
      : (line: string) => line
  const output = Output.toDescriptor(STANDARD_OUTPUT, (lines) => {
    counters.logLinesDropped += lines
  })
  const { values: levels } = pino.levels
  const lowest = levels[options.level] ?? 0
  const info = levels["info"] ?? 0
  const destination: WrittenLine & { write(line: string): void } = {
    [Symbol.for("pino.metadata")]: true,
    write(line) {
      const level = this.lastLevel ?? info
      if (level >= lowest) output.write(format(line))
      if (level >= info) observe(entryOf(this, about.name, line.length > MAX_ENTRY_LENGTH))
    },
  }
  const timestamp = pino.stdTimeFunctions.isoTime
  const level = options.level === "debug" ? "debug" : "info"
  const log = pino({ level, base: about, timestamp }, destination)
  output.resumed = (lines) => {
    log.warn({ lines }, `${lines} log lines dropped: standard output did not accept them`)
  }
  return log
}

function entryOf(written: WrittenLine, source: string, isLong: boolean): LogEntry {
  const { lastLevel = 0, lastMsg = "", lastObj } = written
  const { kind, ...fields } = lastObj ?? {}
  const { values: levels } = pino.levels
  return {
    at: Date.now(),
    level: lastLevel === levels["info"] ? "info" : lastLevel === levels["warn"] ? "warn" : "error",
    kind: kind === AUDIT ? "audit" : "log",
    source,
    message: lastMsg.slice(0, MAX_MESSAGE_LENGTH),
    fields: isLong ? {} : fields,
  }
}

/** Subscribes the log to the events. @param format of the lines. */
export function logEvents(events: EventBus, log: Logger, format: LogOptions["format"]): void {
  events.on("listening", ({ devicePort, httpPort, maxConnections }) => {
    log.info({ devicePort, httpPort, maxConnections }, "listening")
  })
  events.on("connection_admitted", ({ connection }) => {
    const { remoteAddress } = connection
    const { tlsVersion } = connection.peer
    const { deviceId } = connection.endpoint?.recipient ?? {}
    log.debug(
      { connection: connection.id, deviceId, remoteAddress, tlsVersion },
      "connection admitted",
    )
  })
  events.on("connection_closed", ({ connection, reason }) => {
    const { linesIn = 0, linesOut = 0 } = connection.endpoint ?? {}
    log.debug({ connection: connection.id, reason, linesIn, linesOut }, "connection closed")
  })
  events.on("connection_refused", ({ refusal }) => log.debug(refusal, "connection refused"))
  events.on("refusals", ({ message, fields }) => log.info(fields, message))
  events.on("audit", ({ entry }) => {
    const { action, target, by, address } = entry
    const what = target === null ? action : `${action} ${target}`
    log.info({ kind: AUDIT, ...entry }, `${what}, by ${by ?? "a local program"} from ${address}`)
  })
  events.on("certificate_renewed", () => log.info("certificate renewed for new connections"))
  events.on("reading_suspended", ({ heldBytes }) => {
    log.warn(
      { heldBytes },
      "reading from devices paused: lines wait for the broker (MAX_HELD_BYTES)",
    )
  })
  events.on("reading_resumed", ({ heldBytes }) =>
    log.info({ heldBytes }, "reading from devices resumed"),
  )
  events.on("broker_state", ({ state }) => {
    const { kind } = state
    if (kind === "ready" || kind === "closed") log.info({ broker: kind }, `broker ${kind}`)
    else log.warn({ broker: kind, reason: state.reason }, `${NOT_READY[kind]}: ${state.reason}`)
  })
  events.on("broker_warning", ({ message }) => log.warn(message))
  events.on("broker_mute", ({ unconfirmedMs }) => {
    log.warn({ unconfirmedMs }, "no publisher confirm within CONFIRM_TIMEOUT_MS, reconnecting")
  })
  events.on("tape_started", ({ tape }) => log.info(tape, "tape started"))
  events.on("tape_ended", ({ tape, reason }) => {
    log.info({ device_id: tape.device_id, reason }, "tape ended")
  })
  events.on("drain", (progress) => {
    if (progress.phase === "cut_short") {
      const lost = `${progress.unconfirmedLines} lines are not confirmed by the broker`
      log.error(progress, `drain cut short, longer than DRAIN_TIMEOUT_MS: ${lost} and may be lost`)
    } else log.info(progress, "drain")
  })
  events.on("fault", ({ error, where }) => {
    // Not the error itself: errors of the AMQP client refer to the client, and so to the password.
    const { name, message, stack } = error
    log.error({ where, error: { name, message, stack } }, "fault")
  })
  events.on("notice", ({ message }) => log.warn(message))
  events.on("worker_started", ({ slot, pid }) =>
    log.info({ slot, workerPid: pid }, "worker started"),
  )
  events.on("worker_ended", ({ slot, pid, status, action }) => {
    // While the instance stops, each worker ends with status 0.
    const level = action === "none" && status === "status 0" ? "info" : "warn"
    log[level]({ slot, workerPid: pid, status, action }, "worker ended")
  })
  events.on("instance_started", (addresses) => {
    // A person reads text: fields would be printed with quotes, which are not to be pasted.
    if (format === "text") log.info(`instance started\n${addressesText(addresses)}`)
    else log.info(addresses, "instance started")
  })
  events.on("instance_draining", () => log.info("instance draining"))
  events.on("reload_started", () => log.info("reload started"))
  events.on("reload_ended", () => log.info("reload ended"))
  events.on("instance_ended", ({ status, reason }) => {
    const level = status === 0 ? "info" : "error"
    log[level]({ status, reason }, "instance ended")
  })
}
