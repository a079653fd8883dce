/**
 * All settings, each declared once with name, unit, default, range and description. `config.ts`
 * parses them. The tables in docs/CONFIGURATION.md and `.env.example` are generated from them.
 *
 * Reads no environment. The descriptions are for operators: they say what a setting does and what
 * happens at the bound.
 */

import { availableParallelism, hostname } from "node:os"
import { isatty } from "node:tty"
import * as v from "valibot"
import { splitUrls, urlFault } from "../amqp/url.ts"
import { TOKEN_ENTRY, TOKEN_ENTRY_RANGE } from "../bearer-token.ts"
import { CIDR_RANGE, cidrFault } from "../device/address.ts"
import { FRAMINGS } from "../device/framing.ts"
import { MIN_DISTINCT_CHARACTERS, SECRET_RANGE, secretFault } from "../device/hello-secret.ts"
import { INSTANCE_ID } from "../device/ids.ts"
import { MAX_SHARDS } from "../fleet/shards.ts"
import {
  checkedList,
  choice,
  decimal,
  integer,
  list,
  type SettingInfo,
  settingInfo,
  text,
  urls,
} from "./setting-kinds.ts"

/**
 * AMQP allows 255 bytes. Names that start with "amq." are reserved for the broker, with "owsla."
 * for the gateway.
 */
const QUEUE_NAME = (name: string) =>
  /^(?!amq\.|owsla\.)\S+$/.test(name) && Buffer.byteLength(name) <= 200

const STANDARD_OUTPUT = 1

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
    text: "A PEM file with the only CAs that are trusted for the broker's certificate. Needs an amqps: URL. Unset: the CAs of the system.",
  }),
  FLEET_SECRET: text({
    default: "",
    defaultText: "derived from the password in AMQP_URL",
    match: (value) => value === "" || secretFault(value) === null,
    range: `${SECRET_RANGE}, ${MIN_DISTINCT_CHARACTERS} of them different`,
    text: "The secret by which workers of all instances authenticate their messages. It must be the same on all instances of one broker. Set it when instances have different broker users.",
    secret: true,
  }),
  FLEET_SHARDS: integer({
    default: 16,
    min: 1,
    max: MAX_SHARDS,
    text: "The shards of the fleet's directory. Each shard has one worker as its keeper, who knows where the devices of that shard are and holds commands for them. It must be the same on all instances. One worker for each 8 shards keeps some, at least 2 workers, so more shards divide the work between more workers: 16 serve up to 16 workers, and 1,024 serve 600.",
  }),
  INSTANCE_ID: text({
    default: defaultInstanceId(hostname()),
    defaultText: "the host name",
    match: INSTANCE_ID,
    range: INSTANCE_ID.source,
    text: "The name of this instance in connection ids and queue names. It must be unique among the instances on one broker.",
  }),
  WORKERS: integer({
    default: availableParallelism(),
    defaultText: "the number of cores",
    min: 1,
    max: 256,
    text: "Number of worker processes. The embedded broker serves one only.",
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
    text: "The port that devices connect to. 0 binds any free port; the log contains its number.",
  }),
  TLS_CERT_FILE: text({
    default: "certs/server.crt",
    match: /^.+$/,
    range: "a path",
    text: "The server certificate for devices and its chain, PEM. When neither this nor TLS_KEY_FILE is set and the files are missing, a development certificate is made.",
  }),
  TLS_KEY_FILE: text({
    default: "certs/server.key",
    match: /^.+$/,
    range: "a path",
    text: "The private key of that certificate, PEM.",
  }),
  TLS_RESUMPTION: choice({
    default: "tickets",
    of: ["tickets", "none"],
    text: "tickets: a device that returns to the same worker may resume its TLS session, which saves it the check of the certificate. none: no tickets, and each connection costs the gateway about an eighth less CPU time and memory.",
  }),
  TLS_MIN_VERSION: choice({
    default: "1.2",
    of: ["1.2", "1.3"],
    text: "The lowest version of TLS that devices may use. With 1.2 only suites with ECDHE and AEAD are offered.",
  }),
  TLS_MAX_RECORD_BYTES: integer({
    default: 16_384,
    min: 512,
    max: 16_384,
    unit: "bytes",
    text: "The longest plaintext of a TLS record that devices receive, the handshake included. Lower it when devices have small receive buffers. Each record adds 21 to 29 bytes.",
  }),
  DEVICE_AUTH: choice({
    default: "none",
    of: ["none", "mtls", "hello", "token"],
    text: "How a device proves its identity. none: no proof, and its device id is its connection id. mtls: by its certificate. hello: by its first line. token: by a signed token in its first line.",
  }),
  TLS_CLIENT_CA_FILE: text({
    default: "",
    match: /^.*$/,
    range: "a path",
    text: "With DEVICE_AUTH=mtls: the CAs, PEM. One of them must have signed the device's certificate.",
  }),
  HELLO_SECRETS: checkedList({
    faultOf: secretFault,
    range: `${SECRET_RANGE}, ${MIN_DISTINCT_CHARACTERS} of them different`,
    text: "With DEVICE_AUTH=hello: secrets, separated by commas. A device proves its id with any one of them; use several for rotation. Make one with openssl rand -hex 32: a device's proof allows an offline search for a weak secret. A secret that the documentation shows is refused.",
    secret: true,
  }),
  TOKEN_KEYS_FILE: text({
    default: "",
    match: /^.*$/,
    range: "a path",
    text: "With DEVICE_AUTH=token: the public keys that verify tokens, a JWK Set or PEM. Ed25519 keys verify EdDSA, P-256 keys ES256, RSA keys of at least 2,048 bits RS256. A change takes effect within 2 s, for devices that connect from then on.",
  }),
  TOKEN_ISSUER: text({
    default: "",
    match: /^.*$/,
    range: "a text",
    text: "With DEVICE_AUTH=token: the iss claim that tokens must have. Unset: not checked.",
  }),
  TOKEN_AUDIENCE: text({
    default: "",
    match: /^.*$/,
    range: "a text",
    text: "With DEVICE_AUTH=token: a value that the aud claim of tokens must have or contain. Set it when the issuer also makes tokens for other services. Unset: not checked, with a warning at the start.",
  }),
  IDENTIFY_TIMEOUT_MS: integer({
    default: 5_000,
    min: 100,
    max: 600_000,
    unit: "ms",
    text: "With DEVICE_AUTH=hello or token: a device whose first line is not complete this long after the handshake is closed (not_identified).",
  }),
  DENYLIST_FILE: text({
    default: "",
    match: /^.*$/,
    range: "a path",
    text: "A file of refused device ids and SHA-256 fingerprints of certificates, one in each line; # starts a comment. A change takes effect within 2 s, or a little later when the list has hundreds of thousands of lines.",
  }),
  DEVICE_ACK: choice({
    default: "off",
    of: ["off", "seq"],
    text: "seq: the device receives the line ACK n once the broker has confirmed its line n.",
  }),
  DEVICE_FRAMING: choice({
    default: "line",
    of: FRAMINGS,
    text: "What delimits lines, in both directions. line: LF. u16, u32: a big-endian length of 2 or 4 bytes before each line, which may then contain any bytes. It must be the same on all instances.",
  }),
  MAX_LINE_BYTES: integer({
    default: 65_536,
    min: 1,
    max: 1_048_576,
    unit: "bytes",
    text: "The longest line in either direction, without LF or length. With DEVICE_FRAMING=u16 the default and the maximum are 65535.",
  }),
  LINE_TIMEOUT_MS: integer({
    default: 30_000,
    min: 100,
    max: 600_000,
    unit: "ms",
    text: "A device whose line is not complete this long after its first byte is closed (line_timeout). Time in which the device is not read does not count.",
  }),
  MAX_PARTIAL_BYTES: integer({
    default: 16_777_216,
    min: 65_536,
    max: 4_294_967_296,
    unit: "bytes",
    text: "Bytes of unfinished lines of one worker. Beyond it the device with the oldest unfinished line is closed (line_timeout). Must be at least MAX_LINE_BYTES and its LF or length.",
  }),
  DEVICE_LINES_PER_S: integer({
    default: 0,
    defaultText: "no limit",
    min: 0,
    max: 1_000_000,
    text: "Lines per second that are taken from one device, after a burst of two seconds' worth. Beyond it the device is not read until the rate allows its next line; nothing is lost, and the connection stays open. 0 sets no limit.",
  }),
  DEVICE_BYTES_PER_S: integer({
    default: 0,
    defaultText: "no limit",
    min: 0,
    max: 1_000_000_000,
    text: "Bytes of lines per second, with their LF or length, that are taken from one device, after a burst of two seconds' worth. Beyond it the device is not read until the rate allows its next line. 0 sets no limit.",
  }),
  MAX_CONNECTIONS: integer({
    default: 0,
    defaultText: "the open-files limit less 256 and MAX_HTTP_CONNECTIONS, at least half of it",
    min: 0,
    max: 1_000_000,
    text: "Connections of one worker. At the limit a new connection replaces the oldest one that has stalled before admission. When there is none, the new connection is refused (overloaded). 0 derives the number from the open-files limit.",
  }),
  MAX_WAITING: integer({
    default: 10_000,
    min: 0,
    max: 1_000_000,
    unit: "connections",
    text: "Accepted connections of one worker that may wait for their handshakes, first in first out. Beyond it new connections are refused (overloaded).",
  }),
  MAX_HANDSHAKES_PER_S: integer({
    default: 0,
    defaultText: "adapted to the load",
    min: 0,
    max: 100_000,
    text: "Handshakes that one worker may start per second. 0 adapts the number to the load, so that connected devices keep their latency.",
  }),
  LISTEN_BACKLOG: integer({
    default: 4_096,
    min: 1,
    max: 65_535,
    unit: "connections",
    text: "Connections that the kernel holds until a worker accepts them, at most net.core.somaxconn.",
  }),
  HANDSHAKE_TIMEOUT_MS: integer({
    default: 10_000,
    min: 100,
    max: 600_000,
    unit: "ms",
    text: "A connection whose TLS handshake takes longer is closed (handshake_timeout).",
  }),
  PROXY_PROTOCOL: choice({
    default: "off",
    of: ["off", "required"],
    text: "off: a connection starts with TLS, and its address is that of its socket. required: each connection starts with a header of the PROXY protocol, version 1 or 2, from a proxy of PROXY_FROM. The address in it is the device's in presence, log, device list and limits. A connection without one is closed (not_proxied).",
  }),
  PROXY_FROM: checkedList({
    faultOf: cidrFault,
    range: CIDR_RANGE,
    text: "With PROXY_PROTOCOL=required: the addresses of the proxies, separated by commas. A connection from another address is closed (not_proxied).",
  }),
  MAX_CONNECTIONS_PER_ADDRESS: integer({
    default: 0,
    defaultText: "no limit",
    min: 0,
    max: 1_000_000,
    text: "Connections from one IPv4 address, or one IPv6 /64, to each worker. More are refused before TLS (overloaded_address). Devices behind one NAT share an address. 0 sets no limit.",
  }),
  MAX_HANDSHAKES_PER_ADDRESS_PER_S: integer({
    default: 0,
    defaultText: "no limit",
    min: 0,
    max: 100_000,
    text: "New connections per second that each worker accepts from one IPv4 address, or one IPv6 /64. One second's worth may come at once. More are refused before TLS (overloaded_address). 0 sets no limit.",
  }),
  FLAP_LIMIT: integer({
    default: 0,
    defaultText: "no limit",
    min: 0,
    max: 100,
    unit: "connections",
    text: "A named device that connects more often than this within FLAP_WINDOW_MS, to any instances, is refused by all of them for FLAP_BAN_MS (flapping). GET /bans lists such devices, DELETE /bans/:id lifts a ban. 0 sets no limit.",
  }),
  FLAP_WINDOW_MS: integer({
    default: 60_000,
    min: 1_000,
    max: 3_600_000,
    unit: "ms",
    text: "The time within which the connections of a device are counted.",
  }),
  FLAP_BAN_MS: integer({
    default: 300_000,
    min: 1_000,
    max: 86_400_000,
    unit: "ms",
    text: "How long a device that connected too often is refused.",
  }),
  IDLE_TIMEOUT_MS: integer({
    default: 600_000,
    min: 1_000,
    max: 86_400_000,
    unit: "ms",
    text: "A device that sends nothing for this long, not even an empty line, is closed (idle).",
  }),
  MAX_CONNECTION_AGE_MS: integer({
    default: 0,
    defaultText: "no limit",
    min: 0,
    max: 2_592_000_000,
    unit: "ms",
    text: "Each connection is closed at a random age between 80 % and 120 % of this, once its lines are confirmed and nothing is being written (aged). So devices spread over the instances again after one was added. 0 sets no limit.",
  }),
  GOODBYE_LINE: text({
    default: "",
    match: (line) => Buffer.byteLength(line) <= 200 && !/\p{Cc}/u.test(line),
    range: "at most 200 bytes without control characters",
    text: "The last line to a device before the gateway closes its connection as drained, kicked, aged, taken_over, denied, gated or flapping, such as BYE {reason} {retry_after_ms}. {retry_after_ms} is at most 3,600,000. For flapping it is the rest of the ban, for gated the gate's own if it has one. Otherwise it is spread so that devices that wait for it come back no faster than the fleet can admit them. No command should look like this line. Empty: no such line.",
  }),
  SLOW_DEVICE_TIMEOUT_MS: integer({
    default: 30_000,
    min: 1_000,
    max: 600_000,
    unit: "ms",
    text: "A device that accepts none of the bytes sent to it for this long is closed (slow_device).",
  }),
  MAX_OUTGOING_BYTES: integer({
    default: 1_048_576,
    min: 1_024,
    max: 67_108_864,
    unit: "bytes",
    text: "Bytes of commands that wait for the socket of one device. Beyond it commands end as slow_device. Must be at least MAX_LINE_BYTES and its LF or length.",
  }),
  SEQ_GAP_TIMEOUT_MS: integer({
    default: 2_000,
    min: 1,
    max: 600_000,
    unit: "ms",
    text: "How long a numbered command waits for a missing number. Then the gap is given up.",
  }),
  SEQ_WINDOW: integer({
    default: 1_024,
    min: 1,
    max: 16_384,
    unit: "commands",
    text: "Numbered commands of one connection that may wait for a missing number. Beyond it the oldest gap is given up.",
  }),
  MAX_REPLY_MS: integer({
    default: 60_000,
    min: 1,
    max: 600_000,
    unit: "ms",
    text: "The largest reply_timeout_ms of a command. It should be the same on all instances.",
  }),
  MAX_HOLD_MS: integer({
    default: 604_800_000,
    min: 1,
    max: 31_536_000_000,
    unit: "ms",
    text: "The largest hold_ms of a command: how long it may be held for a device that is not connected. It should be the same on all instances.",
  }),
  MAX_HELD_PER_DEVICE: integer({
    default: 50,
    min: 1,
    max: 1_000,
    unit: "commands",
    text: "Commands that are held for one device. One more ends as hold_full.",
  }),
  MAX_HELD: integer({
    default: 100_000,
    min: 1,
    max: 10_000_000,
    unit: "commands",
    text: "Commands that are held in the whole fleet. One more ends as hold_full. Workers tell each other their numbers about every two seconds, so the bound may be exceeded by what arrives in that time.",
  }),
  FROM_DEVICE_QUEUE: text({
    default: "from_device",
    match: QUEUE_NAME,
    range: "a queue's name",
    text: "The queue of lines from devices to back-ends.",
  }),
  FROM_DEVICE_PARTITIONS: integer({
    default: 1,
    min: 1,
    max: 64,
    unit: "queues",
    text: "Above 1 the lines are divided over so many queues by a hash of the device id. Their names are FROM_DEVICE_QUEUE, a dot and the number of the partition, from 0. The broker delivers each of them to one consumer at a time. Must be the same on all instances.",
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
    text: "The queue of commands that were not written. It has no bound: consume it, or bound it by a policy.",
  }),
  QUEUE_TYPE: choice({
    default: "quorum",
    of: ["quorum", "classic"],
    text: "The type of the queues declared at start. An existing queue of another type is used unchanged.",
  }),
  PUBLISH_WINDOW_LINES: integer({
    default: 2_000,
    min: 1,
    max: 65_536,
    unit: "lines",
    text: "Unconfirmed lines of one worker. At the limit reading from devices pauses until half of them are confirmed.",
  }),
  PUBLISH_WINDOW_BYTES: integer({
    default: 8_388_608,
    min: 65_536,
    max: 1_073_741_824,
    unit: "bytes",
    text: "Bytes of unconfirmed lines of one worker. At the limit reading from devices pauses until half of them are confirmed. Must be at least MAX_LINE_BYTES.",
  }),
  PUBLISH_GATHER_MS: integer({
    default: 2,
    min: 0,
    max: 100,
    unit: "ms",
    text: "The longest time for which a message waits for later ones, so that the broker gets several in one write. Messages wait only while so many come that this saves CPU time of the gateway and the broker. 0: they never wait.",
  }),
  MAX_HELD_BYTES: integer({
    default: 33_554_432,
    min: 65_536,
    max: 4_294_967_296,
    unit: "bytes",
    text: "Bytes of received lines of one worker that may wait for room in the publish window. Beyond it reading from all its devices pauses and new devices are refused.",
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
    text: "Unacknowledged messages of one worker on its consuming connection, divided over its queues. Commands that wait for a missing number count. Shared plans of hosted brokers close a connection at 1,000. Raise it on your own broker.",
  }),
  MAX_COMMAND_BYTES: integer({
    default: 67_108_864,
    min: 65_536,
    max: 4_294_967_296,
    unit: "bytes",
    text: "Bytes of unacknowledged commands of one worker. Beyond it consuming pauses. The commands that a worker keeps held have the same bound of their own, and beyond it commands end as hold_full.",
  }),
  HTTP_HOST: text({
    default: "127.0.0.1",
    match: /^\S+$/,
    range: "an address",
    text: "The address of health, metrics and the API. Any address other than loopback needs HTTP_TOKENS or HTTP_READ_TOKENS.",
  }),
  HTTP_PORT: integer({
    default: 8080,
    min: 0,
    max: 65_535,
    text: "The port of health, metrics and the API. 0 binds any free port; the log contains its number.",
  }),
  HTTP_TOKENS: list({
    match: TOKEN_ENTRY,
    range: TOKEN_ENTRY_RANGE,
    text: "Bearer tokens, separated by commas, each with an optional name, such as alice:0123456789abcdef. The name is in the audit entries of the log. Each token gives access to all routes; use several for rotation.",
    secret: true,
  }),
  HTTP_READ_TOKENS: list({
    match: TOKEN_ENTRY,
    range: TOKEN_ENTRY_RANGE,
    text: "Bearer tokens, separated by commas, each with an optional name, such as grafana:0123456789abcdef. Each gives access to GET routes only. None of them may be in HTTP_TOKENS. When only this list is set, no client can send commands, close connections or the gate, lift bans or drain.",
    secret: true,
  }),
  METRICS_HOST: text({
    default: "127.0.0.1",
    match: /^\S+$/,
    range: "an address",
    text: "The address of METRICS_PORT. Any program that reaches it can read the metrics without a token, so it must be an address of a private network.",
  }),
  METRICS_PORT: integer({
    default: 0,
    defaultText: "no such port",
    min: 0,
    max: 65_535,
    text: "A second HTTP port, with /metrics, /live and /ready only, without a token, for scrapers that cannot send one. MAX_HTTP_CONNECTIONS applies to each of both ports. 0: no such port.",
  }),
  MAX_HTTP_CONNECTIONS: integer({
    default: 256,
    min: 1,
    max: 65_536,
    unit: "connections",
    text: "HTTP connections of one worker on a port, at most a quarter of the open-files limit. At the limit a new connection replaces the one that has waited longest for a request, otherwise the one whose request has been incomplete longest. When all are being answered, the new one is closed.",
  }),
  SEND_TIMEOUT_MS: integer({
    default: 5_000,
    min: 100,
    max: 60_000,
    unit: "ms",
    text: "How long POST /devices/:id/send waits for the outcome (timeout), and POST /broadcasts for its counts. For a command that waits for a reply, reply_timeout_ms is added.",
  }),
  DRAIN_TIMEOUT_MS: integer({
    default: 60_000,
    min: 100,
    max: 280_000,
    unit: "ms",
    text: "How long a drain may take. Devices are closed evenly over 70 % of it, also after POST /drain. When it is over, the process ends without waiting for confirms. Set the grace period of the platform to at least 10 s more.",
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
  WORKER_STALL_TIMEOUT_MS: integer({
    default: 30_000,
    min: 0,
    max: 3_600_000,
    unit: "ms",
    text: "A worker that does not answer the supervisor for this long, because its event loop has stalled, is killed and replaced. It counts as a death for MAX_RESTARTS. 0: never.",
  }),
  LOG_LEVEL: choice({
    default: "info",
    of: ["debug", "info", "warn", "error"],
    text: "The lowest level that is logged. Events of single connections are logged at debug.",
  }),
  LOG_FORMAT: choice({
    default: isatty(STANDARD_OUTPUT) ? "text" : "json",
    defaultText: "text on a terminal, otherwise json",
    of: ["json", "text"],
    text: "json: one object in each line. text: for reading on a terminal.",
  }),
  TRACE_SAMPLE: decimal({
    default: 0,
    min: 0,
    max: 1,
    text: "The share of lines that begin a trace: their messages get the header traceparent, and a span goes to OTLP_URL.",
  }),
  OTLP_URL: text({
    default: "http://127.0.0.1:4318/v1/traces",
    match: /^https?:\/\/[^\s@]+$/,
    range: "an http: or https: URL without credentials",
    text: "Where spans are sent: OTLP over HTTP in JSON, as OpenTelemetry collectors take it. Spans that it does not take are dropped.",
  }),
  NODE_ENV: text({
    default: "",
    match: /^.*$/,
    range: "production or another word",
    text: "production: the embedded broker is a configuration error, and so is a start without TLS_CERT_FILE and TLS_KEY_FILE.",
  }),
})

export type Settings = v.InferOutput<typeof settings>

/** All settings, in the order of the documentation. */
export const SETTINGS: readonly (SettingInfo & { readonly name: string })[] = Object.entries(
  settings.entries,
).map(([name, schema]) => ({ name, ...settingInfo(schema) }))

/** Converts a host name to a valid instance id: it may be too long or contain other characters. */
export function defaultInstanceId(host: string): string {
  const fitting = host.replace(/[^A-Za-z0-9._-]/g, "-")
  if (fitting === "") return "owsla"
  if (fitting.length <= 32) return fitting
  // Long host names often differ at their end only, so the id ends with a hash.
  return `${fitting.slice(0, 23)}-${Bun.hash.crc32(host).toString(16).padStart(8, "0")}`
}
