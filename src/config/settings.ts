/**
 * Every setting, declared once: name, unit, default, range and a sentence. `config.ts` parses them; the
 * tables in docs/CONFIGURATION.md and `.env.example` are made from them.
 *
 * Reads no environment. A setting's text is for operators: what it does and what happens at the bound.
 */

import { availableParallelism, hostname } from "node:os"
import * as v from "valibot"
import { splitUrls, urlFault } from "../amqp/url.ts"
import { MIN_DISTINCT_CHARACTERS, SECRET_RANGE, secretFault } from "../device/hello-secret.ts"
import { INSTANCE_ID } from "../device/ids.ts"
import {
  checkedList,
  choice,
  integer,
  list,
  type SettingInfo,
  settingInfo,
  text,
  urls,
} from "./setting-kinds.ts"

/** Names of queues have 255 bytes at most; "amq." is the broker's own and "owsla." the gateway's. */
const QUEUE_NAME = (name: string) =>
  /^(?!amq\.|owsla\.)\S+$/.test(name) && Buffer.byteLength(name) <= 200

/** RFC 6750, section 2.1. */
const TOKEN = /^[A-Za-z0-9._~+/-]{16,}=*$/
const TOKEN_RANGE = "at least 16 of A-Z a-z 0-9 . _ ~ + / -"

export const settings = v.object({
  AMQP_URL: urls({
    split: splitUrls,
    faultOf: urlFault,
    range: "amqp: or amqps: URLs",
    text: "The broker. Several URLs, separated by commas, are nodes of one cluster, tried in random order. A URL may have the query parameter heartbeat, in seconds. CLOUDAMQP_URL is read when AMQP_URL is not set. Unset: an embedded in-memory broker.",
    secret: true,
  }),
  AMQP_CA_FILE: text({
    default: "",
    match: /^.*$/,
    range: "a path",
    text: "A PEM file of the only CAs to trust for the broker's certificate. Needs an amqps: URL. Unset: the CAs of the system.",
  }),
  FLEET_SECRET: text({
    default: "",
    defaultText: "derived from the password in AMQP_URL",
    match: (value) => value === "" || secretFault(value) === null,
    range: `${SECRET_RANGE}, ${MIN_DISTINCT_CHARACTERS} of them different`,
    text: "Proves to the workers of all instances that a message comes from one of them. The same on all instances of one broker. To be set where instances have different users at the broker.",
    secret: true,
  }),
  INSTANCE_ID: text({
    default: defaultInstanceId(hostname()),
    defaultText: "the host name",
    match: INSTANCE_ID,
    range: INSTANCE_ID.source,
    text: "The name of this machine in connection ids and queue names; unique among the instances on one broker.",
  }),
  WORKERS: integer({
    default: availableParallelism(),
    defaultText: "the number of cores",
    min: 1,
    max: 256,
    text: "Number of worker processes. The embedded broker serves one.",
  }),
  DEVICE_HOST: text({
    default: "0.0.0.0",
    match: /^\S+$/,
    range: "an address",
    text: "The address that devices connect to.",
  }),
  DEVICE_PORT: integer({
    default: 8443,
    min: 0,
    max: 65_535,
    text: "The port that devices connect to. 0 takes a free port, which the log names.",
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
    text: "The private key of that certificate, PEM.",
  }),
  DEVICE_AUTH: choice({
    default: "none",
    of: ["none", "mtls", "hello"],
    text: "How a device proves its identity. none: it does not, and its device id is its connection id. mtls: by its certificate. hello: by its first line.",
  }),
  TLS_CLIENT_CA_FILE: text({
    default: "",
    match: /^.*$/,
    range: "a path",
    text: "With DEVICE_AUTH=mtls: the CAs, PEM, one of which must have signed a device's certificate.",
  }),
  HELLO_SECRETS: checkedList({
    faultOf: secretFault,
    range: `${SECRET_RANGE}, ${MIN_DISTINCT_CHARACTERS} of them different`,
    text: "With DEVICE_AUTH=hello: the secrets, separated by commas, with any of which a device may prove its id; several, for rotation. Make one with openssl rand -hex 32: a device's proof allows trying weak secrets without connecting. A secret that the documentation shows is refused.",
    secret: true,
  }),
  IDENTIFY_TIMEOUT_MS: integer({
    default: 5_000,
    min: 100,
    max: 600_000,
    unit: "ms",
    text: "With DEVICE_AUTH=hello: how long the first line may take after the handshake (not_identified).",
  }),
  DENYLIST_FILE: text({
    default: "",
    match: /^.*$/,
    range: "a path",
    text: "Device ids and SHA-256 fingerprints of certificates that are kept out, one a line; # begins a comment. A change takes effect within 2 s, or a little later when the list has hundreds of thousands of lines.",
  }),
  DEVICE_ACK: choice({
    default: "off",
    of: ["off", "seq"],
    text: "seq: the device receives the line ACK n once the broker has confirmed its line n.",
  }),
  MAX_LINE_BYTES: integer({
    default: 65_536,
    min: 1,
    max: 1_048_576,
    unit: "bytes",
    text: "The longest line in either direction, without its terminator.",
  }),
  LINE_TIMEOUT_MS: integer({
    default: 30_000,
    min: 100,
    max: 600_000,
    unit: "ms",
    text: "How long the end of a line may take after its first byte (line_timeout). Time in which the device is not read does not count.",
  }),
  MAX_PARTIAL_BYTES: integer({
    default: 16_777_216,
    min: 65_536,
    max: 4_294_967_296,
    unit: "bytes",
    text: "Bytes of unfinished lines of one worker; beyond it the device whose unfinished line is the oldest is closed (line_timeout). More than MAX_LINE_BYTES.",
  }),
  MAX_CONNECTIONS: integer({
    default: 0,
    defaultText: "the open-files limit less 256 and MAX_HTTP_CONNECTIONS, at least half of it",
    min: 0,
    max: 1_000_000,
    text: "Connections of one worker. When it is full, a new connection replaces the oldest one that has stalled before it became a device. When there is none, the new connection is refused (overloaded). 0 derives the number from the open-files limit.",
  }),
  MAX_WAITING: integer({
    default: 10_000,
    min: 0,
    max: 1_000_000,
    unit: "connections",
    text: "Accepted connections of one worker that may wait for their handshakes, first come first served; one more is refused (overloaded).",
  }),
  MAX_HANDSHAKES_PER_S: integer({
    default: 0,
    defaultText: "as many as leave connected devices their latency",
    min: 0,
    max: 100_000,
    text: "Handshakes of one worker that may begin in a second. 0 adapts it to the load.",
  }),
  LISTEN_BACKLOG: integer({
    default: 4_096,
    min: 1,
    max: 65_535,
    unit: "connections",
    text: "Connections that the kernel holds until a worker accepts them, up to its own net.core.somaxconn.",
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
    text: "Numbered commands of one connection that may wait for a missing number. One more gives up the oldest gap.",
  }),
  FROM_DEVICE_QUEUE: text({
    default: "from_device",
    match: QUEUE_NAME,
    range: "a queue's name",
    text: "The queue of lines from devices to back-ends.",
  }),
  TO_DEVICE_QUEUE: text({
    default: "to_device",
    match: QUEUE_NAME,
    range: "a queue's name",
    text: "The queue of commands from back-ends to devices.",
  }),
  UNDELIVERED_QUEUE: text({
    default: "to_device.undelivered",
    match: QUEUE_NAME,
    range: "a queue's name",
    text: "The queue of commands that were not written. Consume it or bound it by a policy: it has no bound of its own.",
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
    text: "Lines of one worker that may be unconfirmed. When it is reached, reading from devices pauses until half are confirmed.",
  }),
  PUBLISH_WINDOW_BYTES: integer({
    default: 8_388_608,
    min: 65_536,
    max: 1_073_741_824,
    unit: "bytes",
    text: "Bytes of such lines.",
  }),
  MAX_HELD_BYTES: integer({
    default: 33_554_432,
    min: 65_536,
    max: 4_294_967_296,
    unit: "bytes",
    text: "Bytes received from devices of one worker that may wait for room in the window. Beyond it reading from all its devices pauses and new devices are refused.",
  }),
  CONFIRM_TIMEOUT_MS: integer({
    default: 15_000,
    min: 1_000,
    max: 600_000,
    unit: "ms",
    text: "Reconnect when no publisher confirm arrives for this long.",
  }),
  PREFETCH: integer({
    default: 900,
    min: 4,
    max: 65_535,
    unit: "messages",
    text: "Unacknowledged messages that a worker may hold, divided over its queues; commands that wait for a missing number count too. Shared plans of hosted brokers close a connection at 1,000. Raise it on a broker of your own.",
  }),
  MAX_COMMAND_BYTES: integer({
    default: 67_108_864,
    min: 65_536,
    max: 4_294_967_296,
    unit: "bytes",
    text: "Bytes of unacknowledged commands of one worker. Beyond it consuming pauses.",
  }),
  HTTP_HOST: text({
    default: "127.0.0.1",
    match: /^\S+$/,
    range: "an address",
    text: "The address of health, metrics and the API. Anything but loopback needs HTTP_TOKENS or HTTP_READ_TOKENS.",
  }),
  HTTP_PORT: integer({
    default: 8080,
    min: 0,
    max: 65_535,
    text: "The port of health, metrics and the API. 0 takes a free port, which the log names.",
  }),
  HTTP_TOKENS: list({
    match: TOKEN,
    range: TOKEN_RANGE,
    text: "Bearer tokens, separated by commas, any of which gives access to all routes; several, for rotation.",
    secret: true,
  }),
  HTTP_READ_TOKENS: list({
    match: TOKEN,
    range: TOKEN_RANGE,
    text: "Bearer tokens, separated by commas, any of which gives access to the GET routes only; none of them may be in HTTP_TOKENS too. When HTTP_TOKENS is not set, nobody may send to a device or close its connection.",
    secret: true,
  }),
  MAX_HTTP_CONNECTIONS: integer({
    default: 256,
    min: 1,
    max: 65_536,
    unit: "connections",
    text: "HTTP connections of one worker, a quarter of the open-files limit at most. One more takes the place of the one that has waited longest for a request, or else of the one whose request has been incomplete longest. When all are being answered, the new one is closed.",
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
    text: "How long a drain may take after SIGTERM before the process ends without waiting for confirms.",
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
    text: "The period over which worker deaths are counted.",
  }),
  LOG_LEVEL: choice({
    default: "info",
    of: ["debug", "info", "warn", "error"],
    text: "The lowest level that is logged. Single connections are logged at debug.",
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

export type Settings = v.InferOutput<typeof settings>

/** Every setting in order, as the documentation shows it. */
export const SETTINGS: readonly (SettingInfo & { readonly name: string })[] = Object.entries(
  settings.entries,
).map(([name, schema]) => ({ name, ...settingInfo(schema) }))

/** A host name may hold characters or a length that an instance id may not. */
export function defaultInstanceId(host: string): string {
  const fitting = host.replace(/[^A-Za-z0-9._-]/g, "-")
  if (fitting === "") return "owsla"
  if (fitting.length <= 32) return fitting
  // Long names of machines often differ at their end only.
  return `${fitting.slice(0, 23)}-${Bun.hash.crc32(host).toString(16).padStart(8, "0")}`
}
