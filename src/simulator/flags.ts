/**
 * The flags of `bun run simulate`: one table of schemas, of the same kinds as the gateway's
 * settings, by which the command line is checked and from which the text of `--help` is made. Pure.
 */

import { parseArgs } from "node:util"
import * as v from "valibot"
import { choice, decimal, integer, settingInfo, text } from "../config/setting-kinds.ts"
import { HOSTILE_KINDS, HOSTILE_MAX } from "./hostile-kinds.ts"
import { MAX, MIN_LINE_BYTES, NAME } from "./line.ts"

/** Of at most six digits, so that no distance between lines is lost in a timer. */
const SPEED = /^(max|(?=.*[1-9])\d{1,6}(\.\d{1,3})?)$/

const any = (declared: { readonly default: string; readonly text: string }) =>
  text({ ...declared, match: () => true, range: "text" })

const VALUES = {
  host: any({ default: "127.0.0.1", text: "name or address of the gateway" }),
  port: integer({ default: 8443, min: 1, max: 65_535, text: "device port of the gateway" }),
  addresses: integer({
    ...{ default: 0, min: 0, max: 65_536, defaultText: "" },
    text: "connect from so many loopback addresses, to a gateway on this machine; by default from one",
  }),
  other: any({
    default: "",
    text: "host:port of another gateway; a device goes to the other one whenever its connection ends",
  }),
  ca: any({ default: "", text: "PEM file; without it the gateway's certificate is not checked" }),
  name: text({
    ...{ default: "sim", match: NAME, range: `text that matches ${NAME.source}` },
    text: "devices are <name>-0, <name>-1, ...; at most 16 characters",
  }),
  auth: choice({
    ...{ default: "none", of: ["none", "mtls", "hello"] },
    text: "none, mtls or hello, as the gateway's DEVICE_AUTH",
  }),
  secret: any({ default: "", text: "for hello: one of the gateway's HELLO_SECRETS" }),
  "client-ca-cert": any({ default: "", text: "for mtls: PEM file of the devices' CA" }),
  "client-ca-key": any({ default: "", text: "for mtls: PEM file of its private key" }),
  devices: integer({ default: 10, min: 0, max: MAX.devices, text: "number of devices" }),
  ramp: integer({
    ...{ default: 100, min: 0, max: 100_000 },
    text: "first connections a second; 0: no limit",
  }),
  handshakes: integer({
    ...{ default: 32, min: 1, max: 1_000 },
    text: "handshakes at a time; with more, each takes longer when CPU is short",
  }),
  rate: decimal({
    ...{ default: 1, min: 0, max: 100_000 },
    text: "lines a second of each device, fractions allowed; 0: as fast as its socket accepts them",
  }),
  bytes: integer({
    ...{ default: 128, min: MIN_LINE_BYTES, max: 65_536 },
    text: "bytes of a line, without its LF",
  }),
  duration: integer({
    ...{ default: 10, min: 0, max: 604_800, defaultText: "" },
    text: "seconds of sending after the ramp; default 10, or with --lines their time and 60",
  }),
  lines: integer({
    ...{ default: 0, min: 0, max: MAX.lines, defaultText: "" },
    text: "lines of each device, after which the run ends before its duration",
  }),
  settle: integer({
    ...{ default: 30, min: 0, max: 3_600 },
    text: "seconds until everything sent must be acknowledged and consumed",
  }),
  "backoff-first": integer({ default: 100, min: 10, max: 60_000, text: "ms before a second try" }),
  "backoff-most": integer({ default: 5_000, min: 10, max: 600_000, text: "ms before later tries" }),
  goodbye: any({
    default: "",
    text: "the gateway's GOODBYE_LINE, with {retry_after_ms}: devices obey it when they connect again",
  }),
  "amqp-url": any({ default: "", text: "URL of the broker, for --backend" }),
  "from-device": any({ default: "from_device", text: "queue that the back-end consumes" }),
  partitions: integer({
    ...{ default: 1, min: 1, max: 64 },
    text: "the gateway's FROM_DEVICE_PARTITIONS: the back-end consumes all of them",
  }),
  "to-device": any({ default: "to_device", text: "queue for the back-end's commands" }),
  prefetch: integer({
    ...{ default: 2_000, min: 1, max: 65_535 },
    text: "lines that the back-end may have unacknowledged",
  }),
  "command-every": integer({
    ...{ default: 0, min: 0, max: 1_000_000_000 },
    text: "every n-th line is answered by a command, which its device answers; 0: none",
  }),
  hold: integer({
    ...{ default: 0, min: 0, max: MAX.held },
    text: "commands with hold_ms that the back-end sends to each device before it connects; 0: none",
  }),
  away: integer({
    ...{ default: 10, min: 1, max: 3_600 },
    text: "seconds without devices, divided evenly between the --hold commands of each device",
  }),
  ledger: any({ default: "", text: "directory for the records of what was sent and consumed" }),
  "allow-lost": integer({ default: 0, min: 0, max: MAX.lines, text: "lines that may be lost" }),
  "allow-repeats": integer({
    ...{ default: 0, min: 0, max: MAX.lines },
    text: "held commands that may come twice, and that may have two receipts with one outcome",
  }),
  order: choice({
    ...{ default: "first", of: ["first", "follow"] },
    text: "first or follow: the messages whose order is judged",
  }),
  device: any({ default: "", text: "for replay: the device id, with --auth mtls or hello" }),
  "token-file": any({
    default: "",
    text: "for replay: file with the token of the device, sent as its first line",
  }),
  speed: text({
    ...{ default: "1", match: SPEED, range: "a number above 0, or max" },
    text: "for replay: how many times as fast as recorded, or max",
  }),
}

const SWITCHES = {
  "device-ack": "the gateway runs with DEVICE_ACK=seq: each ACK is recorded and waited for",
  backend: "run a back-end that consumes the lines",
  "no-repeats": "nothing failed: a line that came twice is a duplicate, not recovered",
  json: "print the report as one line of JSON, without progress",
  help: "print this text",
}

const ONLY_VERIFY_FLAGS = ["allow-lost", "allow-repeats", "no-repeats", "order"]
const ONLY_REPLAY_FLAGS = ["device", "token-file", "speed"]
const REPLAY_FLAGS = [
  ...["host", "port", "ca", "auth", "secret", "client-ca-cert", "client-ca-key"],
  ...ONLY_REPLAY_FLAGS,
  ...["json", "help"],
]
const VERIFY_FLAGS = ["ledger", ...ONLY_VERIFY_FLAGS, "json", "help"]

type ValueName = keyof typeof VALUES
export type Values = { readonly [K in ValueName]: v.InferOutput<(typeof VALUES)[K]> }

export type SimulatorCommand = "run" | "verify" | "replay"

/** The flags of a command line. A flag with a fault has its default. */
export interface Flags {
  /** One sentence for each fault. */
  readonly faults: string[]
  readonly command: SimulatorCommand
  /** The words after the command. */
  readonly words: readonly string[]
  readonly values: Values
  /** The values of `--hostile`, each `KIND[:COUNT]`. */
  readonly hostile: readonly string[]
  readonly given: (name: ValueName) => boolean
  readonly on: (name: keyof typeof SWITCHES) => boolean
}

export function parseFlags(args: readonly string[]): Flags {
  const options = Object.fromEntries([
    ...Object.keys(VALUES).map((name) => [name, { type: "string" as const }]),
    ...Object.keys(SWITCHES).map((name) => [name, { type: "boolean" as const }]),
    ["hostile", { type: "string" as const, multiple: true }],
  ])
  // A strict parser reports the first fault only. A lenient one takes a flag for a missing value.
  const separated = args.map((arg, at) => {
    const isValueMissing =
      options[arg.slice(2)]?.type === "string" && args[at + 1]?.startsWith("--") === true
    return isValueMissing && arg.startsWith("--") ? `${arg}=` : arg
  })
  const lenient = { args: separated, options, strict: false, allowPositionals: true } as const
  const { values: texts, positionals } = parseArgs(lenient)
  const [first] = positionals
  const command = first === "verify" || first === "replay" ? first : "run"
  const words = positionals.slice(command === "run" ? 0 : 1)
  const faults = words
    .slice(command === "replay" ? 1 : 0)
    .map((word) => `${JSON.stringify(word)} is neither verify, replay nor a flag`)
  for (const [name, value] of Object.entries(texts)) {
    const fault = faultOf(name, value, command)
    if (fault !== null) faults.push(`--${name} ${fault}`)
  }
  const values = Object.entries(VALUES).map(([name, schema]) => {
    const text = texts[name]
    const isGiven = typeof text === "string" && text !== ""
    const result = v.safeParse(schema as v.GenericSchema, isGiven ? text : undefined)
    for (const { message } of result.issues ?? []) faults.push(`--${name} ${message}`)
    return [name, result.success ? result.output : v.parse(schema as v.GenericSchema, undefined)]
  })
  const hostile = [texts["hostile"] ?? []].flat()
  return {
    ...{ faults, command, words },
    values: Object.fromEntries(values) as Values,
    hostile: hostile.filter((each) => typeof each === "string" && each !== "") as string[],
    given: (name) => texts[name] !== undefined,
    on: (name) => texts[name] === true,
  }
}

/** Why a flag is not accepted here, whatever its value; null when it is. */
function faultOf(name: string, value: unknown, command: SimulatorCommand): string | null {
  if (name in SWITCHES) {
    if (typeof value !== "boolean") return "takes no value"
  } else if (!(name in VALUES) && name !== "hostile") return "is no flag"
  else if ([value].flat().some((each) => typeof each !== "string" || each === "")) {
    return "needs a value"
  }
  if (command === "verify" && !VERIFY_FLAGS.includes(name)) return "does not go with verify"
  if (command === "replay" && !REPLAY_FLAGS.includes(name)) return "does not go with replay"
  if (command !== "verify" && ONLY_VERIFY_FLAGS.includes(name)) return "goes with verify only"
  if (command !== "replay" && ONLY_REPLAY_FLAGS.includes(name)) return "goes with replay only"
  return null
}

/** The text of `--help`. */
export function usage(): string {
  const line = (name: string, value: string, what: string) =>
    `  ${`--${name} ${value}`.padEnd(25)} ${what}`
  const values = Object.entries(VALUES).map(([name, schema]) => {
    const { text, default: byDefault } = settingInfo(schema as v.GenericSchema)
    return line(name, "<value>", byDefault === "" ? text : `${text} (${byDefault})`)
  })
  const kinds = `${" ".repeat(28)}${HOSTILE_KINDS.join(", ")}`
  return [
    "usage: bun run simulate [flags]          run devices, with --backend a back-end, and report",
    "       bun run simulate verify [flags]   judge a ledger",
    "       bun run simulate replay <tape.jsonl> [flags]   send the lines of a recorded tape again",
    "exit status: 0 passed, 1 a promise was broken or devices could not do their part, 2 faulty flags",
    `flags of verify: ${VERIFY_FLAGS.map((name) => `--${name}`).join(" ")}`,
    `flags of replay: ${REPLAY_FLAGS.map((name) => `--${name}`).join(" ")}`,
    ...values,
    ...Object.entries(SWITCHES).map(([name, what]) => line(name, "", what)),
    line(
      "hostile",
      "KIND[:COUNT]",
      `COUNT devices (1 to ${HOSTILE_MAX}) that misbehave; repeatable:`,
    ),
    kinds,
  ].join("\n")
}
