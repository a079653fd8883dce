/**
 * The command line of `bun run simulate`: one table of flags, from which both the reader and the usage
 * text are made. Pure.
 *
 * Never reads a file or the environment. All faults are reported together, each naming its flag and rule.
 */

import { parseArgs } from "node:util"
import { splitUrls, urlFault } from "../amqp/url.ts"
import { MIN_LINE_BYTES, MOST, NAME } from "./line.ts"

export const HOSTILE_KINDS = [
  "silent",
  "half-handshake",
  "slow-reader",
  "byte-at-a-time",
  "endless-line",
  "garbage",
  "duplicate-id",
  "flapping",
] as const
export type HostileKind = (typeof HOSTILE_KINDS)[number]
/** A few show what there is to see; many would only be a second herd. */
const MAX_HOSTILE = 1_000

const AUTHS = ["none", "mtls", "hello"] as const
const ORDERS = ["first", "follow"] as const

interface NumberFlag {
  readonly least: number
  readonly most: number
  /** Null: there is a default only in the light of other flags. */
  readonly default: number | null
  readonly what: string
}

const NUMBERS = {
  port: { least: 1, most: 65_535, default: 8443, what: "where the gateway listens" },
  devices: { least: 0, most: MOST.devices, default: 10, what: "how many connect" },
  ramp: {
    ...{ least: 0, most: 100_000, default: 100 },
    what: "first connections a second; 0: as fast as they go",
  },
  handshakes: {
    ...{ least: 1, most: 1000, default: 32 },
    what: "begun at a time; more makes old ones wait for new ones when CPU is short",
  },
  rate: {
    ...{ least: 0, most: 100_000, default: 1 },
    what: "lines a second of each device, fractions too; 0: as fast as its socket takes them",
  },
  bytes: { least: MIN_LINE_BYTES, most: 65_536, default: 128, what: "of a line, without its LF" },
  duration: {
    ...{ least: 0, most: 604_800, default: null },
    what: "seconds of sending after the ramp; default 10, with --lines as many as these need and 60",
  },
  lines: {
    ...{ least: 0, most: MOST.lines, default: null },
    what: "each device sends so many, then the run ends before its duration does",
  },
  settle: {
    ...{ least: 0, most: 3600, default: 30 },
    what: "seconds that may pass until everything sent is acknowledged and taken",
  },
  "backoff-first": { least: 10, most: 60_000, default: 100, what: "ms, before a second try" },
  "backoff-most": { least: 10, most: 600_000, default: 5000, what: "ms, before any later try" },
  prefetch: { least: 1, most: 65_535, default: 2000, what: "lines held unacknowledged" },
  "command-every": {
    ...{ least: 0, most: 1_000_000_000, default: 0 },
    what: "each n-th line is answered by a command, which the device answers; 0: none",
  },
  "allow-lost": { least: 0, most: MOST.lines, default: 0, what: "lines that may be lost" },
} satisfies Record<string, NumberFlag>

const TEXTS = {
  host: { default: "127.0.0.1", what: "the gateway's name or address" },
  ca: { default: "", what: "PEM file; without it the gateway's certificate is not checked" },
  name: { default: "sim", what: "devices are <name>-0, <name>-1, ...; at most 16 characters" },
  auth: { default: "none", what: "none, mtls or hello, as the gateway's DEVICE_AUTH" },
  secret: { default: "", what: "for hello; one of the gateway's HELLO_SECRETS" },
  "client-ca-cert": { default: "", what: "for mtls: PEM file of the CA that signs the devices'" },
  "client-ca-key": { default: "", what: "its private key, PEM file" },
  "amqp-url": { default: "", what: "the broker, for --backend" },
  "from-device": { default: "from_device", what: "the queue that the back-end consumes" },
  "to-device": { default: "to_device", what: "the queue for its commands" },
  ledger: { default: "", what: "directory; what was sent and taken is written there" },
  order: { default: "first", what: "first or follow: by which messages order is judged" },
} satisfies Record<string, { default: string; what: string }>

const SWITCHES = {
  "device-ack": "the gateway runs with DEVICE_ACK=seq: each ACK is noted and waited for",
  backend: "a back-end takes the lines too",
  "no-repeats": "nothing failed: what came twice is duplicated and not recovered",
  json: "the report as one line of JSON, and no progress",
  help: "this text",
} satisfies Record<string, string>

const VERIFY_FLAGS = ["ledger", "allow-lost", "no-repeats", "order", "json", "help"]
const ONLY_VERIFY_FLAGS = ["allow-lost", "no-repeats", "order"]
const HOSTILE_WHAT = `beside the devices, COUNT (1) that misbehave; again and again. KIND is one of
                        ${HOSTILE_KINDS.join(", ")}`

export type Auth =
  | { readonly kind: "none" }
  | { readonly kind: "hello"; readonly secret: string }
  | { readonly kind: "mtls"; readonly caCertFile: string; readonly caKeyFile: string }

export interface BackEndOptions {
  readonly amqpUrl: string
  readonly fromDevice: string
  readonly toDevice: string
  readonly prefetch: number
  /** 0: no commands. */
  readonly commandEvery: number
}

export interface HostileOptions {
  readonly kind: HostileKind
  readonly count: number
}

export interface RunOptions {
  readonly host: string
  readonly port: number
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
  readonly backoff: { readonly firstMs: number; readonly maxMs: number }
  readonly backEnd: BackEndOptions | null
  readonly ledger: string | null
  readonly hostile: readonly HostileOptions[]
  readonly json: boolean
}

export interface VerifyOptions {
  readonly ledger: string
  readonly allowLost: number
  readonly noRepeats: boolean
  readonly order: "first" | "follow"
  readonly json: boolean
}

export type Request =
  | { readonly kind: "help" }
  | { readonly kind: "run"; readonly options: RunOptions }
  | { readonly kind: "verify"; readonly options: VerifyOptions }

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
  const flags = new Flags(args)
  if (flags.on("help")) return { kind: "help" }
  const request: Request = flags.verifies
    ? { kind: "verify", options: verifyOptions(flags) }
    : { kind: "run", options: runOptions(flags) }
  if (flags.faults.length > 0) throw new UsageError(flags.faults)
  return request
}

/** Reads flags by the tables and gathers what is wrong with them; what is wrong reads as its default. */
class Flags {
  readonly faults: string[] = []
  readonly verifies: boolean
  readonly #values: Readonly<Record<string, unknown>>

  constructor(args: readonly string[]) {
    const text = (name: string) => [name, { type: "string" }]
    const options: Record<string, { type: "string" | "boolean"; multiple?: boolean }> = {
      ...Object.fromEntries([...Object.keys(NUMBERS), ...Object.keys(TEXTS)].map(text)),
      ...Object.fromEntries(Object.keys(SWITCHES).map((name) => [name, { type: "boolean" }])),
      hostile: { type: "string", multiple: true },
    }
    // Not strict, since that tells of the first fault alone; but then a flag would be taken for a value.
    const apart = args.map((arg, at) => {
      const type = options[arg.slice(2)]?.type
      const valueMissing = type === "string" && args[at + 1]?.startsWith("--") === true
      return valueMissing && arg.startsWith("--") ? `${arg}=` : arg
    })
    const lenient = { args: apart, options, strict: false, allowPositionals: true } as const
    const { values, positionals } = parseArgs(lenient)
    this.#values = values
    this.verifies = positionals[0] === "verify"
    for (const word of positionals.slice(this.verifies ? 1 : 0)) {
      this.faults.push(`${JSON.stringify(word)} is neither verify nor a flag`)
    }
    for (const [name, value] of Object.entries(values)) this.#check(name, value)
  }

  #check(name: string, value: unknown): void {
    const isSwitch = name in SWITCHES
    if (!isSwitch && !(name in NUMBERS) && !(name in TEXTS) && name !== "hostile") {
      this.faults.push(`--${name} is no flag`)
    } else if (isSwitch && typeof value !== "boolean") {
      this.faults.push(`--${name} takes no value`)
    } else if (
      !isSwitch &&
      [value].flat().some((each) => typeof each !== "string" || each === "")
    ) {
      this.faults.push(`--${name} needs a value`)
    } else if (this.verifies && !VERIFY_FLAGS.includes(name)) {
      this.faults.push(`--${name} does not go with verify`)
    } else if (!this.verifies && ONLY_VERIFY_FLAGS.includes(name)) {
      this.faults.push(`--${name} goes with verify only`)
    }
  }

  given(name: keyof typeof NUMBERS | keyof typeof TEXTS): boolean {
    return this.#values[name] !== undefined
  }

  on(name: keyof typeof SWITCHES): boolean {
    return this.#values[name] === true
  }

  text(name: keyof typeof TEXTS): string {
    const value = this.#values[name]
    return typeof value === "string" ? value : TEXTS[name].default
  }

  oneOf<T extends string>(name: keyof typeof TEXTS, words: readonly T[]): T {
    const found = words.find((word) => word === this.text(name))
    if (found === undefined) this.faults.push(`--${name} must be one of ${words.join(", ")}`)
    return found ?? (TEXTS[name].default as T)
  }

  /** Only `rate` may have a fraction. */
  number(name: keyof typeof NUMBERS): number {
    const { least, most, default: otherwise }: NumberFlag = NUMBERS[name]
    const value = this.#values[name]
    if (typeof value !== "string" || value === "") return otherwise ?? 0
    const number = Number(value)
    const fraction = name === "rate"
    const digits = fraction ? /^\d+(\.\d+)?$/ : /^\d+$/
    if (digits.test(value) && number >= least && number <= most) return number
    this.faults.push(
      `--${name} must be a ${fraction ? "" : "whole "}number from ${least} to ${most}`,
    )
    return otherwise ?? 0
  }

  hostile(): HostileOptions[] {
    const values = [this.#values["hostile"] ?? []].flat().filter((each) => typeof each === "string")
    return values.map((value) => {
      const [word, number = "1", ...more] = value.split(":")
      const kind = HOSTILE_KINDS.find((each) => each === word) ?? "silent"
      const count = /^\d{1,4}$/.test(number) ? Number(number) : 0
      if (kind !== word) this.faults.push(`--hostile ${value}: ${word} is no kind`)
      if (count < 1 || count > MAX_HOSTILE || more.length > 0) {
        this.faults.push(`--hostile ${value}: write KIND:COUNT, COUNT from 1 to ${MAX_HOSTILE}`)
      }
      return { kind, count }
    })
  }
}

function verifyOptions(flags: Flags): VerifyOptions {
  if (!flags.given("ledger")) flags.faults.push("verify needs --ledger")
  return {
    ledger: flags.text("ledger"),
    allowLost: flags.number("allow-lost"),
    noRepeats: flags.on("no-repeats"),
    order: flags.oneOf("order", ORDERS),
    json: flags.on("json"),
  }
}

function runOptions(flags: Flags): RunOptions {
  const ratePerS = flags.number("rate")
  const lines = flags.given("lines") ? flags.number("lines") : null
  const neededS = lines === null ? 10 : 60 + (ratePerS === 0 ? 0 : lines / ratePerS)
  const durationS = flags.given("duration") ? flags.number("duration") : neededS
  const backoff = { firstMs: flags.number("backoff-first"), maxMs: flags.number("backoff-most") }
  const devices = flags.number("devices")
  const auth = readAuth(flags)
  const hostile = flags.hostile()
  const name = flags.text("name")
  const { faults } = flags
  if (!NAME.test(name)) faults.push(`--name must match ${NAME.source}`)
  if (backoff.firstMs > backoff.maxMs) faults.push("--backoff-first exceeds --backoff-most")
  if (devices === 0 && hostile.length === 0 && !flags.on("backend")) {
    faults.push("--devices 0 leaves nothing to do without --backend or --hostile")
  }
  if (auth.kind === "none" && hostile.some(({ kind }) => kind === "duplicate-id")) {
    faults.push("--hostile duplicate-id needs --auth mtls or hello")
  }
  return {
    host: flags.text("host"),
    port: flags.number("port"),
    caFile: flags.text("ca") || null,
    devices,
    name,
    rampPerS: flags.number("ramp"),
    handshakes: flags.number("handshakes"),
    ratePerS,
    bytes: flags.number("bytes"),
    lines,
    durationMs: durationS * 1000,
    settleMs: flags.number("settle") * 1000,
    auth,
    deviceAck: flags.on("device-ack"),
    backoff,
    backEnd: readBackEnd(flags),
    ledger: flags.text("ledger") || null,
    hostile,
    json: flags.on("json"),
  }
}

function readAuth(flags: Flags): Auth {
  const kind = flags.oneOf("auth", AUTHS)
  const secret = flags.text("secret")
  const caCertFile = flags.text("client-ca-cert")
  const caKeyFile = flags.text("client-ca-key")
  const needs = (name: "secret" | "client-ca-cert" | "client-ca-key", mode: Auth["kind"]) => {
    if (kind === mode && !flags.given(name)) flags.faults.push(`--auth ${mode} needs --${name}`)
    if (kind !== mode && flags.given(name)) flags.faults.push(`--${name} goes with --auth ${mode}`)
  }
  needs("secret", "hello")
  needs("client-ca-cert", "mtls")
  needs("client-ca-key", "mtls")
  if (kind === "hello") return { kind, secret }
  if (kind === "mtls") return { kind, caCertFile, caKeyFile }
  return { kind }
}

function readBackEnd(flags: Flags): BackEndOptions | null {
  const url = flags.text("amqp-url")
  const prefetch = flags.number("prefetch")
  const commandEvery = flags.number("command-every")
  if (!flags.on("backend")) {
    for (const name of ["from-device", "to-device", "prefetch", "command-every"] as const) {
      if (flags.given(name)) flags.faults.push(`--${name} goes with --backend`)
    }
    if (flags.given("amqp-url")) flags.faults.push("--amqp-url goes with --backend")
    return null
  }
  // The URL holds a password: it is never repeated.
  const urls = splitUrls(url)
  if (urls.length === 0 || !urls.every((one) => urlFault(one) === null)) {
    flags.faults.push("--backend needs --amqp-url, an amqp: or amqps: URL")
  }
  return {
    amqpUrl: url,
    fromDevice: flags.text("from-device"),
    toDevice: flags.text("to-device"),
    prefetch,
    commandEvery,
  }
}

/** The text of `--help`. */
export function usage(): string {
  const line = (name: string, value: string, what: string) =>
    `  ${`--${name} ${value}`.padEnd(21)} ${what}`
  const number = ([name, flag]: [string, NumberFlag]) =>
    line(name, "<n>", `${flag.what}${flag.default === null ? "" : ` (${flag.default})`}`)
  const text = ([name, flag]: [string, { default: string; what: string }]) =>
    line(name, "<v>", `${flag.what}${flag.default === "" ? "" : ` (${flag.default})`}`)
  return [
    "usage: bun run simulate [flags]          devices, and a back-end with --backend; then a report",
    "       bun run simulate verify [flags]   judges a ledger",
    "exit status: 0 good, 1 the promise is broken or devices could not do their part, 2 asked wrongly",
    `flags of verify: ${VERIFY_FLAGS.map((name) => `--${name}`).join(" ")}`,
    ...Object.entries(TEXTS).map(text),
    ...Object.entries(NUMBERS).map(number),
    ...Object.entries(SWITCHES).map(([name, what]) => line(name, "", what)),
    line("hostile", "KIND[:COUNT]", HOSTILE_WHAT),
  ].join("\n")
}
