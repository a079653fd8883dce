/**
 * The configuration: the one place that reads the environment. Every setting is declared once, with
 * unit, default, range and a sentence; the table in README.md and `.env.example` are made from these
 * declarations.
 *
 * Parsed once at start and frozen. All faults are reported together, naming the variable and the rule,
 * never the value of a secret.
 */

import { accessSync, constants, readFileSync } from "node:fs"
import { availableParallelism, hostname } from "node:os"
import * as v from "valibot"
import { INSTANCE_ID } from "./device/ids.ts"
import { choice, integer, list, type SettingInfo, settingInfo, text } from "./settings.ts"

/** Durable queues have names of 255 bytes at most; "amq." is the broker's own. */
const QUEUE_NAME = /^(?!amq\.)[^\s]{1,200}$/

const settings = v.object({
  AMQP_URL: text({
    default: "",
    match: (value) => value === "" || isAmqpUrl(value),
    range: "an amqp: or amqps: URL",
    text: "The broker. CLOUDAMQP_URL is read when this is not set. Unset: an embedded in-memory broker.",
    secret: true,
  }),
  INSTANCE_ID: text({
    default: defaultInstanceId(hostname()),
    defaultText: "the host name",
    match: INSTANCE_ID,
    range: INSTANCE_ID.source,
    text: "Names this machine in connection ids and queue names; unique among the instances on one broker.",
  }),
  WORKERS: integer({
    default: availableParallelism(),
    defaultText: "the number of cores",
    min: 1,
    max: 256,
    text: "Worker processes. The embedded broker serves one.",
  }),
  DEVICE_HOST: text({
    default: "0.0.0.0",
    match: /^\S+$/,
    range: "an address",
    text: "Where devices connect.",
  }),
  DEVICE_PORT: integer({
    default: 8443,
    min: 0,
    max: 65_535,
    text: "Where devices connect. 0 takes a free port, which the log names.",
  }),
  TLS_CERT_FILE: text({
    default: "certs/server.crt",
    match: /^.+$/,
    range: "a path",
    text: "The certificate that devices see, PEM, with its chain. Made for development when neither this nor TLS_KEY_FILE is set and the files are missing.",
  }),
  TLS_KEY_FILE: text({
    default: "certs/server.key",
    match: /^.+$/,
    range: "a path",
    text: "Its private key, PEM.",
  }),
  DEVICE_AUTH: choice({
    default: "none",
    of: ["none"],
    text: "How a device says who it is. none: its device id is its connection id.",
  }),
  DEVICE_ACK: choice({
    default: "off",
    of: ["off", "seq"],
    text: "seq: once the broker has confirmed line n, the device is sent the line ACK n.",
  }),
  MAX_LINE_BYTES: integer({
    default: 65_536,
    min: 1,
    max: 1_048_576,
    unit: "bytes",
    text: "The longest line in either direction, without its terminator.",
  }),
  MAX_CONNECTIONS: integer({
    default: 0,
    defaultText: "the open-files limit less a reserve",
    min: 0,
    max: 1_000_000,
    text: "Connections of one worker; one more is refused (overloaded). 0 derives it from the open-files limit.",
  }),
  HANDSHAKE_TIMEOUT_MS: integer({
    default: 10_000,
    min: 100,
    max: 600_000,
    unit: "ms",
    text: "How long a TLS handshake may take.",
  }),
  IDLE_TIMEOUT_MS: integer({
    default: 600_000,
    min: 1_000,
    max: 86_400_000,
    unit: "ms",
    text: "A device that sends nothing for this long, not even an empty line, is closed (idle).",
  }),
  SLOW_DEVICE_TIMEOUT_MS: integer({
    default: 30_000,
    min: 1_000,
    max: 600_000,
    unit: "ms",
    text: "A device that takes none of the bytes offered to it for this long is closed (slow_device).",
  }),
  MAX_OUTGOING_BYTES: integer({
    default: 1_048_576,
    min: 1_024,
    max: 67_108_864,
    unit: "bytes",
    text: "Commands that wait for one device's socket; one more ends as slow_device.",
  }),
  SEQ_GAP_TIMEOUT_MS: integer({
    default: 2_000,
    min: 1,
    max: 600_000,
    unit: "ms",
    text: "How long a numbered command waits for a missing number.",
  }),
  SEQ_WINDOW: integer({
    default: 1_024,
    min: 1,
    max: 16_384,
    unit: "commands",
    text: "Numbered commands of one connection that may wait for a missing number.",
  }),
  FROM_DEVICE_QUEUE: text({
    default: "from_device",
    match: QUEUE_NAME,
    range: "a queue's name",
    text: "Lines from devices to back-ends.",
  }),
  TO_DEVICE_QUEUE: text({
    default: "to_device",
    match: QUEUE_NAME,
    range: "a queue's name",
    text: "Commands from back-ends to devices.",
  }),
  UNDELIVERED_QUEUE: text({
    default: "to_device.undelivered",
    match: QUEUE_NAME,
    range: "a queue's name",
    text: "Commands that were not written. Consume it or bound it by a policy: it has no bound of its own.",
  }),
  QUEUE_TYPE: choice({
    default: "quorum",
    of: ["quorum", "classic"],
    text: "The type of the queues declared at start; a queue that exists with another is used as it is.",
  }),
  PUBLISH_WINDOW_LINES: integer({
    default: 2_000,
    min: 1,
    max: 65_536,
    unit: "lines",
    text: "Lines of one worker that may be unconfirmed; then devices are read no further until half are confirmed.",
  }),
  PUBLISH_WINDOW_BYTES: integer({
    default: 8_388_608,
    min: 65_536,
    max: 1_073_741_824,
    unit: "bytes",
    text: "The same in bytes.",
  }),
  MAX_HELD_BYTES: integer({
    default: 33_554_432,
    min: 65_536,
    max: 4_294_967_296,
    unit: "bytes",
    text: "Bytes read from devices that wait for room in the window; beyond it no device of the worker is read and new ones are refused.",
  }),
  CONFIRM_TIMEOUT_MS: integer({
    default: 15_000,
    min: 1_000,
    max: 600_000,
    unit: "ms",
    text: "A broker that leaves a message unconfirmed for this long is taken for mute: its connection is made anew.",
  }),
  PREFETCH: integer({
    default: 8_192,
    min: 1,
    max: 65_535,
    unit: "commands",
    text: "Commands of each queue that a worker may hold unacknowledged, those that wait for a number included.",
  }),
  MAX_COMMAND_BYTES: integer({
    default: 67_108_864,
    min: 65_536,
    max: 4_294_967_296,
    unit: "bytes",
    text: "Bytes of commands that a worker holds unacknowledged; beyond it the queues are read no further.",
  }),
  HTTP_HOST: text({
    default: "127.0.0.1",
    match: /^\S+$/,
    range: "an address",
    text: "Where health, metrics and the API are served. Anything but loopback needs HTTP_TOKENS.",
  }),
  HTTP_PORT: integer({
    default: 8080,
    min: 0,
    max: 65_535,
    text: "Its port. 0 takes a free port, which the log names.",
  }),
  HTTP_TOKENS: list({
    match: /^[A-Za-z0-9._~+/-]{16,}=*$/,
    range: "at least 16 of A-Z a-z 0-9 . _ ~ + / -",
    text: "Bearer tokens, separated by commas, any of which opens the API; several, for rotation.",
    secret: true,
  }),
  SEND_TIMEOUT_MS: integer({
    default: 5_000,
    min: 100,
    max: 60_000,
    unit: "ms",
    text: "How long POST /devices/:id/send waits for the outcome.",
  }),
  DRAIN_TIMEOUT_MS: integer({
    default: 60_000,
    min: 100,
    max: 280_000,
    unit: "ms",
    text: "How long SIGTERM waits for confirms before the process ends all the same.",
  }),
  MAX_RESTARTS: integer({
    default: 5,
    min: 0,
    max: 1_000,
    text: "Restart intensity: more worker deaths than this within MAX_RESTARTS_WINDOW_MS end the instance with status 1.",
  }),
  MAX_RESTARTS_WINDOW_MS: integer({
    default: 10_000,
    min: 100,
    max: 3_600_000,
    unit: "ms",
    text: "The time over which deaths are counted.",
  }),
  LOG_LEVEL: choice({
    default: "info",
    of: ["debug", "info", "warn", "error"],
    text: "The least severe that is logged. Single connections are logged at debug.",
  }),
  LOG_FORMAT: choice({
    default: "json",
    of: ["json", "text"],
    text: "json: one object a line. text: for reading on a terminal.",
  }),
  NODE_ENV: text({
    default: "",
    match: /^.*$/,
    range: "production or another word",
    text: "production: the embedded broker is a configuration error.",
  }),
})

type Settings = v.InferOutput<typeof settings>
export type Environment = Readonly<Record<string, string | undefined>>

/** Every setting in order, as the documentation shows it. */
export const SETTINGS: readonly (SettingInfo & { readonly name: string })[] = Object.entries(
  settings.entries,
).map(([name, schema]) => ({ name, ...settingInfo(schema) }))

export type Config = ReturnType<typeof shape>

/** A configuration that can't be used. `faults` holds one sentence for each thing that is wrong. */
export class ConfigurationError extends Error {
  override readonly name = "ConfigurationError"
  readonly faults: readonly string[]

  constructor(faults: readonly string[]) {
    super(`${faults.length} fault(s) in the configuration`)
    this.faults = faults
  }
}

/**
 * @param unreadable why a file cannot be read, or null.
 * @throws ConfigurationError with every fault found.
 */
export function loadConfig(
  environment: Environment = process.env,
  unreadable: (path: string) => string | null = unreadableFile,
): Config {
  const faults: string[] = []
  const values = withFiles(environment, faults)
  const parsed = v.safeParse(settings, values)
  for (const issue of parsed.issues ?? []) {
    const name = String(issue.path?.[0]?.key)
    const secret = SETTINGS.find((setting) => setting.name === name)?.secret === true
    const hosted = name === "AMQP_URL" && values["AMQP_URL"] === values["CLOUDAMQP_URL"]
    const told = secret ? "" : `, not ${JSON.stringify(values[name])}`
    faults.push(`${hosted ? "CLOUDAMQP_URL" : name}: ${issue.message}${told}`)
  }
  faults.push(...relations(parsed.output as Partial<Settings>, values))
  for (const name of ["TLS_CERT_FILE", "TLS_KEY_FILE"]) {
    // Only files that were named: those of the defaults may yet be made.
    const reason = values[name] === undefined ? null : unreadable(values[name])
    if (reason !== null) faults.push(`${name}: ${reason}`)
  }
  if (environment["NODE_TLS_REJECT_UNAUTHORIZED"] === "0") {
    faults.push("NODE_TLS_REJECT_UNAUTHORIZED: 0 would switch off the checks of certificates")
  }
  if (faults.length > 0 || !parsed.success) throw new ConfigurationError(faults)
  return deepFreeze(shape(parsed.output, values))
}

/** Rules between settings. A setting that is at fault itself may be missing or of any type. */
function relations(settings: Partial<Settings>, values: Environment): string[] {
  const faults: string[] = []
  const { HTTP_HOST, HTTP_TOKENS, AMQP_URL, NODE_ENV } = settings
  if (
    HTTP_HOST !== undefined &&
    !isLoopback(HTTP_HOST) &&
    Array.isArray(HTTP_TOKENS) &&
    HTTP_TOKENS.length === 0
  ) {
    faults.push(`HTTP_HOST: ${JSON.stringify(HTTP_HOST)} is not loopback and needs HTTP_TOKENS`)
  }
  if (AMQP_URL === "" && NODE_ENV === "production") {
    faults.push("AMQP_URL: needed with NODE_ENV=production; the embedded broker keeps nothing")
  }
  const workersSet = values["WORKERS"] !== undefined && settings.WORKERS !== 1
  if (AMQP_URL === "" && workersSet) {
    faults.push("WORKERS: the embedded broker serves one process; set AMQP_URL or WORKERS=1")
  }
  if ((values["TLS_CERT_FILE"] === undefined) !== (values["TLS_KEY_FILE"] === undefined)) {
    faults.push("TLS_CERT_FILE and TLS_KEY_FILE: set both or neither")
  }
  const { PUBLISH_WINDOW_BYTES: window, MAX_LINE_BYTES: line, MAX_OUTGOING_BYTES: out } = settings
  if (isNumber(window) && isNumber(line) && window < line) {
    faults.push("PUBLISH_WINDOW_BYTES: must be at least MAX_LINE_BYTES")
  }
  if (isNumber(out) && isNumber(line) && out <= line) {
    faults.push("MAX_OUTGOING_BYTES: must be more than MAX_LINE_BYTES")
  }
  return faults
}

function unreadableFile(path: string): string | null {
  try {
    accessSync(path, constants.R_OK)
    return null
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}

/** The environment with empty variables left out and each secret's `NAME_FILE` read. */
function withFiles(environment: Environment, faults: string[]): Record<string, string> {
  const values: Record<string, string> = {}
  for (const [name, value] of Object.entries(environment)) {
    if (value !== undefined && value !== "") values[name] = value
  }
  const secrets = SETTINGS.filter((setting) => setting.secret).map((setting) => setting.name)
  for (const name of [...secrets, "CLOUDAMQP_URL"]) {
    const file = values[`${name}_FILE`]
    if (file === undefined) continue
    if (values[name] !== undefined) faults.push(`${name}: set it or ${name}_FILE, not both`)
    // Without the path: whoever puts the secret itself there by mistake should not find it in the log.
    try {
      values[name] = readFileSync(file, "utf8").trim()
      if (values[name] === "") faults.push(`${name}_FILE: the file is empty`)
    } catch (error) {
      const code = error instanceof Error && "code" in error ? String(error.code) : "unreadable"
      faults.push(`${name}_FILE: the file cannot be read (${code})`)
    }
  }
  const hosted = values["CLOUDAMQP_URL"]
  if (hosted !== undefined) values["AMQP_URL"] ??= hosted
  return values
}

/** The settings as the parts of the gateway take them. */
function shape(settings: Settings, values: Environment) {
  return {
    instanceId: settings.INSTANCE_ID,
    /** Null: the embedded broker. */
    amqpUrl: settings.AMQP_URL === "" ? null : settings.AMQP_URL,
    workers: settings.AMQP_URL === "" ? 1 : settings.WORKERS,
    drainTimeoutMs: settings.DRAIN_TIMEOUT_MS,
    tls: {
      certFile: settings.TLS_CERT_FILE,
      keyFile: settings.TLS_KEY_FILE,
      /** Neither file is set, so development certificates may be made. */
      development: values["TLS_CERT_FILE"] === undefined && values["TLS_KEY_FILE"] === undefined,
    },
    device: {
      host: settings.DEVICE_HOST,
      port: settings.DEVICE_PORT,
      auth: settings.DEVICE_AUTH,
      ack: settings.DEVICE_ACK,
      maxLineBytes: settings.MAX_LINE_BYTES,
      /** Null: derived from the open-files limit. */
      maxConnections: settings.MAX_CONNECTIONS === 0 ? null : settings.MAX_CONNECTIONS,
      maxOutgoingBytes: settings.MAX_OUTGOING_BYTES,
      maxHeldBytes: settings.MAX_HELD_BYTES,
      handshakeTimeoutMs: settings.HANDSHAKE_TIMEOUT_MS,
      idleTimeoutMs: settings.IDLE_TIMEOUT_MS,
      slowDeviceTimeoutMs: settings.SLOW_DEVICE_TIMEOUT_MS,
      gapTimeoutMs: settings.SEQ_GAP_TIMEOUT_MS,
      windowCommands: settings.SEQ_WINDOW,
    },
    broker: {
      fromDeviceQueue: settings.FROM_DEVICE_QUEUE,
      toDeviceQueue: settings.TO_DEVICE_QUEUE,
      undeliveredQueue: settings.UNDELIVERED_QUEUE,
      queueType: settings.QUEUE_TYPE,
      windowLines: settings.PUBLISH_WINDOW_LINES,
      windowBytes: settings.PUBLISH_WINDOW_BYTES,
      confirmTimeoutMs: settings.CONFIRM_TIMEOUT_MS,
      prefetch: settings.PREFETCH,
      maxCommandBytes: settings.MAX_COMMAND_BYTES,
    },
    http: {
      host: settings.HTTP_HOST,
      port: settings.HTTP_PORT,
      tokens: settings.HTTP_TOKENS,
      sendTimeoutMs: settings.SEND_TIMEOUT_MS,
    },
    restarts: { most: settings.MAX_RESTARTS, windowMs: settings.MAX_RESTARTS_WINDOW_MS },
    log: { level: settings.LOG_LEVEL, format: settings.LOG_FORMAT },
  } as const
}

/** What the AMQP client can take apart: a virtual host with a stray % would make it throw. */
function isAmqpUrl(value: string): boolean {
  try {
    const { protocol, hostname, pathname, username, password } = new URL(value)
    for (const part of [pathname, username, password]) decodeURIComponent(part)
    return (protocol === "amqp:" || protocol === "amqps:") && hostname !== ""
  } catch {
    return false
  }
}

export function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || /^127\.\d+\.\d+\.\d+$/.test(host)
}

/** A host name may hold characters or a length that an instance id may not. */
export function defaultInstanceId(host: string): string {
  const fitting = host.replace(/[^A-Za-z0-9._-]/g, "-")
  if (fitting === "") return "owsla"
  if (fitting.length <= 32) return fitting
  // Long names of machines often differ at their end only.
  return `${fitting.slice(0, 23)}-${Bun.hash.crc32(host).toString(16).padStart(8, "0")}`
}

function deepFreeze<T extends object>(value: T): T {
  for (const part of Object.values(value)) {
    if (typeof part === "object" && part !== null) deepFreeze(part)
  }
  return Object.freeze(value)
}

function isNumber(value: unknown): value is number {
  return typeof value === "number"
}
