/**
 * The options of `bun run simulate`, from its flags: what they mean together. Pure: reads no file
 * and no environment. All faults are reported together, each naming its flag and rule.
 */

import { splitUrls, urlFault } from "../amqp/url.ts"
import { lineQueues } from "../broker/topology.ts"
import { type Flags, parseFlags } from "./flags.ts"
import { type GoodbyeReader, goodbyeReader } from "./goodbye.ts"
import { HOSTILE_KINDS, HOSTILE_MAX, type HostileKind } from "./hostile-kinds.ts"

export type Auth =
  | { readonly kind: "none" }
  | { readonly kind: "hello"; readonly secret: string }
  | { readonly kind: "mtls"; readonly caCertFile: string; readonly caKeyFile: string }

export interface BackEndOptions {
  readonly amqpUrl: string
  /** The queues of lines: one, or all partitions. */
  readonly fromDevice: readonly string[]
  readonly toDevice: string
  readonly prefetch: number
  /** 0: no commands. */
  readonly commandEvery: number
  /** Null when no commands are held. */
  readonly hold: HoldOptions | null
}

export interface HoldOptions {
  /** Held commands of each device. */
  readonly commands: number
  /** The time in which they are sent and no device is connected. */
  readonly awayMs: number
}

export interface HostileOptions {
  readonly kind: HostileKind
  readonly count: number
}

export interface Address {
  readonly host: string
  readonly port: number
}

export interface RunOptions extends Address {
  /** Loopback addresses to connect from; 0: whichever the system takes. */
  readonly addresses: number
  /** Another gateway; null when all connect to one. */
  readonly other: Address | null
  readonly caFile: string | null
  readonly devices: number
  readonly name: string
  /** Connections a second; 0: as fast as they go. */
  readonly rampPerS: number
  /** At a time. */
  readonly handshakes: number
  /** Lines a second of each device; 0: as fast as they go. */
  readonly ratePerS: number
  readonly bytes: number
  readonly lines: number | null
  readonly durationMs: number
  readonly settleMs: number
  readonly auth: Auth
  readonly deviceAck: boolean
  /** Null when devices do not know goodbye lines. */
  readonly goodbye: GoodbyeReader | null
  readonly backoff: { readonly firstMs: number; readonly maxMs: number }
  readonly backEnd: BackEndOptions | null
  readonly ledger: string | null
  readonly hostile: readonly HostileOptions[]
  readonly json: boolean
}

export interface VerifyOptions {
  readonly ledger: string
  readonly allowLost: number
  readonly allowRepeats: number
  readonly noRepeats: boolean
  readonly order: "first" | "follow"
  readonly json: boolean
}

export interface ReplayOptions extends Address {
  readonly file: string
  readonly caFile: string | null
  readonly auth: Auth | { readonly kind: "token"; readonly file: string }
  /** Empty when the gateway names the device. */
  readonly device: string
  /** How many times as fast as recorded. */
  readonly speed: number | "max"
  readonly json: boolean
}

export type Request =
  | { readonly kind: "help" }
  | { readonly kind: "run"; readonly options: RunOptions }
  | { readonly kind: "verify"; readonly options: VerifyOptions }
  | { readonly kind: "replay"; readonly options: ReplayOptions }

export class UsageError extends Error {
  override readonly name = "UsageError"
  readonly faults: readonly string[]

  constructor(faults: readonly string[]) {
    super(faults.join("\n"))
    this.faults = faults
  }
}

/** @throws UsageError with all faults. */
export function parseRequest(args: readonly string[]): Request {
  const flags = parseFlags(args)
  if (flags.on("help")) return { kind: "help" }
  const request = requestOf(flags)
  if (flags.faults.length > 0) throw new UsageError(flags.faults)
  return request
}

function requestOf(flags: Flags): Request {
  switch (flags.command) {
    case "run":
      return { kind: "run", options: runOptions(flags) }
    case "verify":
      return { kind: "verify", options: verifyOptions(flags) }
    case "replay":
      return { kind: "replay", options: replayOptions(flags) }
  }
}

function replayOptions(flags: Flags): ReplayOptions {
  const { values, faults, given, on, words } = flags
  const [file = ""] = words
  const auth = authOf(flags)
  const isNamed = auth.kind !== "none"
  if (file === "") faults.push("replay needs the file of a tape")
  if (isNamed !== given("device"))
    faults.push("--device goes with --auth mtls or hello, and they need it")
  if (isNamed && given("token-file")) faults.push("--token-file does not go with --auth")
  return {
    ...{ file, host: values.host, port: values.port, caFile: values.ca || null },
    auth: given("token-file") ? { kind: "token", file: values["token-file"] } : auth,
    device: values.device,
    speed: values.speed === "max" ? "max" : Number(values.speed),
    json: on("json"),
  }
}

function verifyOptions({ values, faults, given, on }: Flags): VerifyOptions {
  if (!given("ledger")) faults.push("verify needs --ledger")
  return {
    ledger: values.ledger,
    allowLost: values["allow-lost"],
    allowRepeats: values["allow-repeats"],
    noRepeats: on("no-repeats"),
    order: values.order,
    json: on("json"),
  }
}

function runOptions(flags: Flags): RunOptions {
  const { values, faults, given, on } = flags
  const lines = given("lines") ? values.lines : null
  const neededS = lines === null ? 10 : 60 + (values.rate === 0 ? 0 : lines / values.rate)
  const durationS = given("duration") ? values.duration : neededS
  const backoff = { firstMs: values["backoff-first"], maxMs: values["backoff-most"] }
  const auth = authOf(flags)
  const hostile = hostileOf(flags)
  const goodbye = given("goodbye") ? goodbyeReader(values.goodbye) : null
  if (given("goodbye") && goodbye === null) {
    faults.push("--goodbye must contain {retry_after_ms}, once")
  }
  if (backoff.firstMs > backoff.maxMs) faults.push("--backoff-first exceeds --backoff-most")
  if (values.devices === 0 && hostile.length === 0 && !on("backend")) {
    faults.push("--devices 0 leaves nothing to do without --backend or --hostile")
  }
  if (auth.kind === "none" && hostile.some(({ kind }) => kind === "duplicate-id")) {
    faults.push("--hostile duplicate-id needs --auth mtls or hello")
  }
  if (values.hold > 0 && (auth.kind === "none" || values.devices === 0)) {
    faults.push("--hold needs --devices, and --auth mtls or hello")
  }
  if (given("away") && values.hold === 0) faults.push("--away goes with --hold")
  return {
    host: values.host,
    port: values.port,
    addresses: values.addresses,
    other: otherOf(flags),
    caFile: values.ca || null,
    devices: values.devices,
    name: values.name,
    rampPerS: values.ramp,
    handshakes: values.handshakes,
    ratePerS: values.rate,
    bytes: values.bytes,
    lines,
    durationMs: durationS * 1000,
    settleMs: values.settle * 1000,
    auth,
    deviceAck: on("device-ack"),
    goodbye,
    backoff,
    backEnd: backEndOf(flags),
    ledger: values.ledger || null,
    hostile,
    json: on("json"),
  }
}

function otherOf({ values, faults, given }: Flags): Address | null {
  if (!given("other")) return null
  const [, host = "", digits = ""] = /^(.+):(\d{1,5})$/.exec(values.other) ?? []
  const port = Number(digits)
  if (host === "" || port < 1 || port > 65_535) faults.push("--other must be host:port")
  return { host, port }
}

function hostileOf({ hostile, faults }: Flags): HostileOptions[] {
  return hostile.map((value) => {
    const [word, number = "1", ...more] = value.split(":")
    const kind = HOSTILE_KINDS.find((each) => each === word) ?? "silent"
    const count = /^\d{1,4}$/.test(number) ? Number(number) : 0
    if (kind !== word) faults.push(`--hostile ${value}: ${word} is no kind`)
    if (count < 1 || count > HOSTILE_MAX || more.length > 0) {
      faults.push(`--hostile ${value}: write KIND:COUNT, COUNT from 1 to ${HOSTILE_MAX}`)
    }
    return { kind, count }
  })
}

function authOf({ values, faults, given }: Flags): Auth {
  const { auth: kind, secret } = values
  const needs = (name: "secret" | "client-ca-cert" | "client-ca-key", mode: Auth["kind"]) => {
    if (kind === mode && !given(name)) faults.push(`--auth ${mode} needs --${name}`)
    if (kind !== mode && given(name)) faults.push(`--${name} goes with --auth ${mode}`)
  }
  needs("secret", "hello")
  needs("client-ca-cert", "mtls")
  needs("client-ca-key", "mtls")
  if (kind === "hello") return { kind, secret }
  if (kind === "none") return { kind }
  return { kind, caCertFile: values["client-ca-cert"], caKeyFile: values["client-ca-key"] }
}

function backEndOf({ values, faults, given, on }: Flags): BackEndOptions | null {
  if (!on("backend")) {
    const names = [
      ...(["from-device", "partitions", "to-device"] as const),
      ...(["prefetch", "command-every", "amqp-url", "hold"] as const),
    ]
    for (const name of names) if (given(name)) faults.push(`--${name} goes with --backend`)
    return null
  }
  // The URL holds a password: it is never repeated.
  const urls = splitUrls(values["amqp-url"])
  if (urls.length === 0 || !urls.every((one) => urlFault(one) === null)) {
    faults.push("--backend needs --amqp-url, an amqp: or amqps: URL")
  }
  return {
    amqpUrl: values["amqp-url"],
    fromDevice: lineQueues(values["from-device"], values.partitions),
    toDevice: values["to-device"],
    prefetch: values.prefetch,
    commandEvery: values["command-every"],
    hold: values.hold === 0 ? null : { commands: values.hold, awayMs: values.away * 1000 },
  }
}
