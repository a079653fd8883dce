/**
 * The configuration. Only this module reads the environment. It parses the settings of
 * `settings.ts`, checks the rules between them, and groups them for the parts of the gateway.
 *
 * Parsed once at start and frozen. All faults are reported together. Each names the variable and
 * the rule, and none contains the value of a secret.
 */

import { X509Certificate } from "node:crypto"
import { accessSync, constants, readFileSync } from "node:fs"
import * as v from "valibot"
import { readBearerToken } from "../bearer-token.ts"
import { isPartitionOf } from "../broker/topology.ts"
import { FRAMINGS, MAX_FRAMED_BYTES, OVERHEAD_BYTES } from "../device/framing.ts"
import { fileErrorText } from "../errors.ts"
import { misspelled as findMisspelled } from "./misspelled.ts"
import { SETTINGS, type Settings, settings } from "./settings.ts"

/** The default of RabbitMQ and of the AMQP client for a URL without a password. */
const DEFAULT_PASSWORD = "guest"
/** Settings that name files which must be readable at start. */
const FILES = [
  "TLS_CERT_FILE",
  "TLS_KEY_FILE",
  "TLS_CLIENT_CA_FILE",
  "TOKEN_KEYS_FILE",
  "DENYLIST_FILE",
]
/** Settings whose value may be in a file that `<name>_FILE` names. */
const SECRETS = [
  ...SETTINGS.filter((setting) => setting.secret).map((setting) => setting.name),
  "CLOUDAMQP_URL",
]
/** All that this module reads. */
const NAMES = [
  ...SETTINGS.map(({ name }) => name),
  ...["CLOUDAMQP_URL", ...SECRETS.map((name) => `${name}_FILE`)],
]
const PEM_CERTIFICATE = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g

export type Environment = Readonly<Record<string, string | undefined>>

export type Config = ReturnType<typeof shape>

/** The configuration is not valid. `faults` has one sentence for each fault. */
export class ConfigurationError extends Error {
  override readonly name = "ConfigurationError"
  readonly faults: readonly string[]

  constructor(faults: readonly string[]) {
    super(`${faults.length} fault(s) in the configuration`)
    this.faults = faults
  }
}

/**
 * @param unreadable returns why a file cannot be read, or null.
 * @throws ConfigurationError with all faults.
 */
export function loadConfig(
  environment: Environment = process.env,
  unreadable: (path: string) => string | null = unreadableFile,
): Config {
  const { config, faults } = inspectConfig(environment, unreadable)
  if (faults.length === 0) return config
  const hints = misspellings(config).map(({ risk, advice }) => `${risk}; ${advice}`)
  throw new ConfigurationError([...faults, ...hints])
}

export interface Inspection {
  /** Invalid settings have their defaults in it. Use it only if `faults` is empty. */
  readonly config: Config
  readonly faults: readonly string[]
  /** The names of the settings whose own values are not valid. */
  readonly invalid: readonly string[]
  /** The names of the settings that the environment sets. */
  readonly set: readonly string[]
}

/**
 * The configuration and all its faults, for the doctor, which checks the rest of a faulty one.
 * Takes the parameters of `loadConfig`.
 */
export function inspectConfig(
  environment: Environment = process.env,
  unreadable: (path: string) => string | null = unreadableFile,
): Inspection {
  const faults: string[] = []
  const invalid: string[] = []
  const values = withFiles(environment, faults)
  const parsed = v.safeParse(settings, values)
  for (const issue of parsed.issues ?? []) {
    const name = String(issue.path?.[0]?.key)
    const secret = SETTINGS.find((setting) => setting.name === name)?.secret === true
    const hosted = name === "AMQP_URL" && values["AMQP_URL"] === values["CLOUDAMQP_URL"]
    const quoted = secret ? "" : `, not ${JSON.stringify(values[name])}`
    faults.push(`${hosted ? "CLOUDAMQP_URL" : name}: ${issue.message}${quoted}`)
    invalid.push(name)
  }
  faults.push(...relations(parsed.output as Partial<Settings>, values))
  for (const name of FILES) {
    // Only files that are set: the gateway may still make those of the defaults.
    const reason = values[name] === undefined ? null : unreadable(values[name])
    if (reason !== null) faults.push(`${name}: ${reason}`)
  }
  const ca = readCa(values["AMQP_CA_FILE"], faults)
  if (environment["NODE_TLS_REJECT_UNAUTHORIZED"] === "0") {
    faults.push("NODE_TLS_REJECT_UNAUTHORIZED: 0 would switch off the checks of certificates")
  }
  const set = SETTINGS.map(({ name }) => name).filter((name) => values[name] !== undefined)
  const valid = Object.entries(values).filter(([name]) => !invalid.includes(name))
  const output = v.parse(settings, Object.fromEntries(valid))
  return { config: deepFreeze(shape(output, values, ca)), faults, invalid, set }
}

/** What the environment tells about the platform that runs this process. */
export interface Platform {
  readonly isFly: boolean
  readonly isKubernetes: boolean
}

export function readPlatform(environment: Environment = process.env): Platform {
  return {
    isFly: environment["FLY_APP_NAME"] !== undefined,
    isKubernetes: environment["KUBERNETES_SERVICE_HOST"] !== undefined,
  }
}

/** False when the user wants no colours (no-color.org). */
export function allowsColour(environment: Environment = process.env): boolean {
  return (environment["NO_COLOR"] ?? "") === ""
}

/**
 * Only the secrets of `DEVICE_AUTH=hello`, for the tool that prints HELLO lines.
 * @throws ConfigurationError when `HELLO_SECRETS` is not set or not valid.
 */
export function loadHelloSecrets(environment: Environment = process.env): readonly string[] {
  const faults: string[] = []
  const { HELLO_SECRETS } = withFiles(environment, faults)
  const parsed = v.safeParse(settings.entries.HELLO_SECRETS, HELLO_SECRETS)
  for (const { message } of parsed.issues ?? []) faults.push(`HELLO_SECRETS: ${message}`)
  if (HELLO_SECRETS === undefined) faults.push("HELLO_SECRETS: set it, or HELLO_SECRETS_FILE")
  if (faults.length > 0 || !parsed.success) throw new ConfigurationError(faults)
  return parsed.output
}

/**
 * Checks the rules between settings. A setting that is not valid itself may be missing or have any
 * type.
 */
function relations(settings: Partial<Settings>, values: Environment): string[] {
  const faults: string[] = []
  const { HTTP_HOST, HTTP_TOKENS, HTTP_READ_TOKENS, AMQP_URL, NODE_ENV } = settings
  if (Array.isArray(HTTP_TOKENS) && Array.isArray(HTTP_READ_TOKENS)) {
    const open = HTTP_TOKENS.length + HTTP_READ_TOKENS.length === 0
    if (open && HTTP_HOST !== undefined && !isLoopback(HTTP_HOST)) {
      const needed = "needs HTTP_TOKENS or HTTP_READ_TOKENS"
      faults.push(`HTTP_HOST: ${JSON.stringify(HTTP_HOST)} is not loopback and ${needed}`)
    }
    const acting = HTTP_TOKENS.map((entry) => readBearerToken(entry).token)
    if (HTTP_READ_TOKENS.some((entry) => acting.includes(readBearerToken(entry).token))) {
      faults.push("HTTP_READ_TOKENS: must have no token of HTTP_TOKENS")
    }
  }
  const embedded = Array.isArray(AMQP_URL) && AMQP_URL.length === 0
  if (embedded && NODE_ENV === "production") {
    faults.push("AMQP_URL: needed with NODE_ENV=production; the embedded broker keeps nothing")
  }
  if (NODE_ENV === "production" && isDevelopment(values)) {
    const needed = "needed with NODE_ENV=production; no development certificate is made"
    faults.push(`TLS_CERT_FILE and TLS_KEY_FILE: ${needed}`)
  }
  const workersSet = values["WORKERS"] !== undefined && settings.WORKERS !== 1
  if (embedded && workersSet) {
    faults.push("WORKERS: the embedded broker serves one process; set AMQP_URL or WORKERS=1")
  }
  const { AMQP_CA_FILE } = settings
  const encrypted = Array.isArray(AMQP_URL) && AMQP_URL.some((url) => /^amqps:/i.test(url))
  if (AMQP_CA_FILE !== undefined && AMQP_CA_FILE !== "" && !encrypted) {
    faults.push("AMQP_CA_FILE: needs an amqps: URL in AMQP_URL")
  }
  if ((values["TLS_CERT_FILE"] === undefined) !== (values["TLS_KEY_FILE"] === undefined)) {
    faults.push("TLS_CERT_FILE and TLS_KEY_FILE: set both or neither")
  }
  const { DEVICE_AUTH, TLS_CLIENT_CA_FILE, HELLO_SECRETS } = settings
  if (DEVICE_AUTH === "mtls" && TLS_CLIENT_CA_FILE === "") {
    faults.push("TLS_CLIENT_CA_FILE: needed with DEVICE_AUTH=mtls")
  }
  if (DEVICE_AUTH === "hello" && Array.isArray(HELLO_SECRETS) && HELLO_SECRETS.length === 0) {
    faults.push("HELLO_SECRETS: needed with DEVICE_AUTH=hello")
  }
  const { PROXY_PROTOCOL, PROXY_FROM } = settings
  if (PROXY_PROTOCOL === "required" && Array.isArray(PROXY_FROM) && PROXY_FROM.length === 0) {
    faults.push("PROXY_FROM: needed with PROXY_PROTOCOL=required, the addresses of the proxies")
  }
  if (DEVICE_AUTH === "token" && settings.TOKEN_KEYS_FILE === "") {
    faults.push("TOKEN_KEYS_FILE: needed with DEVICE_AUTH=token")
  }
  faults.push(...queueFaults(settings))
  faults.push(...portFaults(settings))
  faults.push(...lineFaults(settings, values))
  return faults
}

/** Checks that no port has two purposes. */
function portFaults({ DEVICE_PORT, HTTP_PORT, METRICS_PORT }: Partial<Settings>): string[] {
  const ports = Object.entries({ DEVICE_PORT, HTTP_PORT, METRICS_PORT })
  return ports.flatMap(([name, port], at) =>
    ports
      .slice(at + 1)
      .filter(([, other]) => isNumber(port) && port !== 0 && port === other)
      .map(([other]) => `${name} and ${other}: must be different ports`),
  )
}

/** Checks that no queue has two purposes. */
function queueFaults(settings: Partial<Settings>): string[] {
  const { FROM_DEVICE_QUEUE, FROM_DEVICE_PARTITIONS, TO_DEVICE_QUEUE, UNDELIVERED_QUEUE } = settings
  const queues = [FROM_DEVICE_QUEUE, TO_DEVICE_QUEUE, UNDELIVERED_QUEUE]
  if (new Set(queues).size < queues.length) {
    return ["FROM_DEVICE_QUEUE, TO_DEVICE_QUEUE and UNDELIVERED_QUEUE: must be different queues"]
  }
  if (FROM_DEVICE_PARTITIONS === 1 || FROM_DEVICE_QUEUE === undefined) return []
  return Object.entries({ TO_DEVICE_QUEUE, UNDELIVERED_QUEUE })
    .filter(([, queue]) => queue !== undefined && isPartitionOf(FROM_DEVICE_QUEUE, queue))
    .map(([name]) => `${name}: must not be the name of a partition with FROM_DEVICE_PARTITIONS`)
}

/** Checks the bounds that must fit the longest line. */
function lineFaults(settings: Partial<Settings>, values: Environment): string[] {
  const { MAX_LINE_BYTES, PUBLISH_WINDOW_BYTES: window } = settings
  const framing = FRAMINGS.find((name) => name === settings.DEVICE_FRAMING)
  if (!isNumber(MAX_LINE_BYTES) || framing === undefined) return []
  const faults: string[] = []
  const max = MAX_FRAMED_BYTES[framing]
  if (values["MAX_LINE_BYTES"] !== undefined && MAX_LINE_BYTES > max) {
    faults.push(`MAX_LINE_BYTES: must be at most ${max} with DEVICE_FRAMING=${framing}`)
  }
  const line = Math.min(MAX_LINE_BYTES, max)
  if (isNumber(window) && window < line) {
    faults.push("PUBLISH_WINDOW_BYTES: must be at least MAX_LINE_BYTES")
  }
  const overhead = OVERHEAD_BYTES[framing]
  for (const name of ["MAX_PARTIAL_BYTES", "MAX_OUTGOING_BYTES"] as const) {
    const bytes = settings[name]
    if (isNumber(bytes) && bytes < line + overhead) {
      const least = `MAX_LINE_BYTES + ${overhead}`
      faults.push(`${name}: must be at least ${least} with DEVICE_FRAMING=${framing}`)
    }
  }
  return faults
}

/** The CAs for the broker's certificate in PEM; null when AMQP_CA_FILE is not set or not valid. */
function readCa(path: string | undefined, faults: string[]): string | null {
  if (path === undefined) return null
  try {
    const pem = readFileSync(path, "utf8")
    const certificates = pem.match(PEM_CERTIFICATE) ?? []
    if (certificates.length === 0) throw new Error("no PEM certificate in the file")
    for (const certificate of certificates) new X509Certificate(certificate)
    return certificates.join("\n")
  } catch (error) {
    faults.push(`AMQP_CA_FILE: ${fileErrorText(path, error)}`)
    return null
  }
}

function unreadableFile(path: string): string | null {
  try {
    accessSync(path, constants.R_OK)
    return null
  } catch (error) {
    return fileErrorText(path, error)
  }
}

/** The environment without empty variables, with each secret read from its `NAME_FILE`. */
function withFiles(environment: Environment, faults: string[]): Record<string, string> {
  const values: Record<string, string> = {}
  for (const [name, value] of Object.entries(environment)) {
    if (value !== undefined && value !== "") values[name] = value
  }
  for (const name of SECRETS) {
    const file = values[`${name}_FILE`]
    if (file === undefined) continue
    if (values[name] !== undefined) faults.push(`${name}: set it or ${name}_FILE, not both`)
    // Do not log the path: the variable may contain the secret itself by mistake.
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

/** Whether neither file is set, so that development certificates may be made. */
function isDevelopment(values: Environment): boolean {
  return values["TLS_CERT_FILE"] === undefined && values["TLS_KEY_FILE"] === undefined
}

/** Groups the settings for the parts of the gateway. */
function shape(settings: Settings, values: Environment, ca: string | null) {
  const embedded = settings.AMQP_URL.length === 0
  return {
    instanceId: settings.INSTANCE_ID,
    misspelled: findMisspelled(Object.keys(values), NAMES),
    /** Null with the embedded broker. */
    amqp: embedded ? null : { urls: settings.AMQP_URL, ca },
    /**
     * Shared by all instances on the broker. Null with the embedded broker, which serves one
     * process only.
     */
    fleetSecret: embedded ? null : settings.FLEET_SECRET || passwordsOf(settings.AMQP_URL),
    fleetShards: settings.FLEET_SHARDS,
    workers: embedded ? 1 : settings.WORKERS,
    drainTimeoutMs: settings.DRAIN_TIMEOUT_MS,
    tls: {
      certFile: settings.TLS_CERT_FILE,
      keyFile: settings.TLS_KEY_FILE,
      development: isDevelopment(values),
    },
    device: {
      host: settings.DEVICE_HOST,
      port: settings.DEVICE_PORT,
      auth: settings.DEVICE_AUTH,
      /** Null when no device certificate is requested. */
      clientCaFile: settings.DEVICE_AUTH === "mtls" ? settings.TLS_CLIENT_CA_FILE : null,
      helloSecrets: settings.HELLO_SECRETS,
      /** Null unless devices identify themselves by tokens. */
      token: settings.DEVICE_AUTH === "token" ? tokenShape(settings) : null,
      identifyTimeoutMs: settings.IDENTIFY_TIMEOUT_MS,
      denylistFile: settings.DENYLIST_FILE === "" ? null : settings.DENYLIST_FILE,
      ack: settings.DEVICE_ACK,
      framing: settings.DEVICE_FRAMING,
      /** The default is a byte longer than a length of 2 bytes can say. */
      maxLineBytes: Math.min(settings.MAX_LINE_BYTES, MAX_FRAMED_BYTES[settings.DEVICE_FRAMING]),
      linesPerS: settings.DEVICE_LINES_PER_S,
      bytesPerS: settings.DEVICE_BYTES_PER_S,
      /** Null to derive it from the open-files limit. */
      maxConnections: settings.MAX_CONNECTIONS === 0 ? null : settings.MAX_CONNECTIONS,
      admission: { maxWaiting: settings.MAX_WAITING, perS: settings.MAX_HANDSHAKES_PER_S },
      /** Null when addresses are not limited. */
      addressLimits:
        settings.MAX_CONNECTIONS_PER_ADDRESS + settings.MAX_HANDSHAKES_PER_ADDRESS_PER_S === 0
          ? null
          : {
              maxConnections: settings.MAX_CONNECTIONS_PER_ADDRESS,
              handshakesPerS: settings.MAX_HANDSHAKES_PER_ADDRESS_PER_S,
            },
      /** Null when devices may connect as often as they like. */
      flapping:
        settings.FLAP_LIMIT === 0
          ? null
          : {
              limit: settings.FLAP_LIMIT,
              windowMs: settings.FLAP_WINDOW_MS,
              banMs: settings.FLAP_BAN_MS,
            },
      /** Null when devices connect without a PROXY header. */
      proxyFrom: settings.PROXY_PROTOCOL === "required" ? settings.PROXY_FROM : null,
      backlog: settings.LISTEN_BACKLOG,
      resumption: settings.TLS_RESUMPTION,
      minVersion: settings.TLS_MIN_VERSION,
      maxRecordBytes: settings.TLS_MAX_RECORD_BYTES,
      maxOutgoingBytes: settings.MAX_OUTGOING_BYTES,
      maxHeldBytes: settings.MAX_HELD_BYTES,
      maxPartialBytes: settings.MAX_PARTIAL_BYTES,
      lineTimeoutMs: settings.LINE_TIMEOUT_MS,
      handshakeTimeoutMs: settings.HANDSHAKE_TIMEOUT_MS,
      idleTimeoutMs: settings.IDLE_TIMEOUT_MS,
      maxAgeMs: settings.MAX_CONNECTION_AGE_MS,
      /** Empty for none. */
      goodbyeLine: settings.GOODBYE_LINE,
      slowDeviceTimeoutMs: settings.SLOW_DEVICE_TIMEOUT_MS,
      gapTimeoutMs: settings.SEQ_GAP_TIMEOUT_MS,
      windowCommands: settings.SEQ_WINDOW,
      maxReplyMs: settings.MAX_REPLY_MS,
    },
    hold: {
      maxHoldMs: settings.MAX_HOLD_MS,
      maxPerDevice: settings.MAX_HELD_PER_DEVICE,
      maxHeld: settings.MAX_HELD,
    },
    broker: {
      fromDeviceQueue: settings.FROM_DEVICE_QUEUE,
      fromDevicePartitions: settings.FROM_DEVICE_PARTITIONS,
      toDeviceQueue: settings.TO_DEVICE_QUEUE,
      undeliveredQueue: settings.UNDELIVERED_QUEUE,
      queueType: settings.QUEUE_TYPE,
      windowLines: settings.PUBLISH_WINDOW_LINES,
      windowBytes: settings.PUBLISH_WINDOW_BYTES,
      gatherMs: settings.PUBLISH_GATHER_MS,
      confirmTimeoutMs: settings.CONFIRM_TIMEOUT_MS,
      prefetch: settings.PREFETCH,
      maxCommandBytes: settings.MAX_COMMAND_BYTES,
    },
    http: {
      host: settings.HTTP_HOST,
      port: settings.HTTP_PORT,
      tokens: settings.HTTP_TOKENS,
      readTokens: settings.HTTP_READ_TOKENS,
      maxConnections: settings.MAX_HTTP_CONNECTIONS,
      sendTimeoutMs: settings.SEND_TIMEOUT_MS,
    },
    /** Null without METRICS_PORT. */
    metrics:
      settings.METRICS_PORT === 0
        ? null
        : {
            host: settings.METRICS_HOST,
            port: settings.METRICS_PORT,
            isLoopback: isLoopback(settings.METRICS_HOST),
          },
    /** Null when no lines are traced. */
    traces:
      settings.TRACE_SAMPLE === 0 ? null : { share: settings.TRACE_SAMPLE, url: settings.OTLP_URL },
    restarts: { max: settings.MAX_RESTARTS, windowMs: settings.MAX_RESTARTS_WINDOW_MS },
    /** 0: a worker that does not answer is never killed. */
    stallTimeoutMs: settings.WORKER_STALL_TIMEOUT_MS,
    /** Null unless systemd has started this process and expects messages. */
    systemd: systemdShape(values),
    log: { level: settings.LOG_LEVEL, format: settings.LOG_FORMAT },
  } as const
}

/** The variables that systemd sets; see sd_notify(3) and sd_watchdog_enabled(3). */
function systemdShape(values: Environment) {
  const { NOTIFY_SOCKET: socket, WATCHDOG_PID: pid, WATCHDOG_USEC: timeoutUs } = values
  if (socket === undefined) return null
  const isMeant = pid === undefined || pid === String(process.pid)
  const watchdogMs = isMeant && Number(timeoutUs) > 0 ? Number(timeoutUs) / 1_000 : null
  return { socket, watchdogMs }
}

function tokenShape(settings: Settings) {
  return {
    keysFile: settings.TOKEN_KEYS_FILE,
    /** Null when it is not checked. */
    issuer: settings.TOKEN_ISSUER || null,
    /** Null when it is not checked. */
    audience: settings.TOKEN_AUDIENCE || null,
  }
}

/** The passwords in the URLs, in an order that does not depend on the order of the URLs. */
function passwordsOf(urls: readonly string[]): string {
  const passwords = urls.map((url) => decodeURIComponent(new URL(url).password) || DEFAULT_PASSWORD)
  return [...new Set(passwords)].sort().join("\n")
}

/** A valid setting that is dangerous. Each text is one clause; the log has both. */
export interface Risk {
  readonly risk: string
  /** What to do about it. */
  readonly advice: string
}

/** Warnings about a valid configuration. */
export function risks(config: Config): Risk[] {
  const { amqp, device } = config
  const found = misspellings(config)
  if (amqp === null) {
    found.push({
      risk: "embedded broker: nothing is kept, for a first try only",
      advice: "set AMQP_URL",
    })
  }
  if (device.auth === "none" && !isLoopback(device.host)) {
    found.push({
      risk: `DEVICE_AUTH=none on ${device.host}: every device that reaches the port is admitted`,
      advice:
        "set DEVICE_AUTH to hello, mtls or token, or let only trusted networks reach the port",
    })
  }
  if (device.token !== null && device.token.audience === null) {
    found.push({
      risk: "TOKEN_AUDIENCE is not set: tokens that the issuer has made for other services are accepted too",
      advice: "set TOKEN_AUDIENCE to the audience (aud) that the issuer gives to tokens of devices",
    })
  }
  return found
}

function misspellings({ misspelled }: Config): Risk[] {
  return misspelled.map(({ name, setting }) => ({
    risk: `${name} is not a setting and has no effect`,
    advice: `did you mean ${setting}?`,
  }))
}

export function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || /^127\.\d+\.\d+\.\d+$/.test(host)
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
