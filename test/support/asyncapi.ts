/**
 * docs/asyncapi.yaml: the messages between the gateway and its back-ends as an AsyncAPI 3.0
 * document. Made by `bun run docs`.
 *
 * Names, limits and closed lists come from the sources, and payloads in JSON from the schemas there.
 * What the gateway reads from headers by hand is described by hand; tests compare it with what the
 * code reads, and real messages with all schemas.
 *
 * AsyncAPI describes application headers, but no properties of AMQP: the extension
 * `x-amqp-properties` has a schema of them, with their names in AMQP 0-9-1. The operations are those
 * of the gateway: it receives commands and sends lines.
 */

import type { JsonSchema } from "@valibot/to-json-schema"
import * as v from "valibot"
import { PUBLISH_ID_HEADER } from "../../src/broker/broker.ts"
import { KEPT_AS } from "../../src/broker/republishing.ts"
import {
  BROADCAST_EXCHANGE,
  BROADCASTS,
  COMMANDS_EXCHANGE,
  EXCHANGES,
  heldQueue,
  PRESENCE_EXCHANGE,
  workerQueue,
} from "../../src/broker/topology.ts"
import { MAX_OPTION_BYTES, MAX_TRACE_BYTES } from "../../src/commands/command-options.ts"
import { DETAIL_HEADER, OUTCOME_HEADER, receiptSchema } from "../../src/commands/outcomes.ts"
import { SETTINGS } from "../../src/config/settings.ts"
import { CLOSE_REASONS } from "../../src/device/close-reason.ts"
import { isKept, OUTCOMES } from "../../src/device/command.ts"
import { CONNECTION_ID, DEVICE_ID } from "../../src/device/ids.ts"
import { DEFAULT_PER_S, MAX_BROADCAST_IDS, MAX_PER_S } from "../../src/fleet/broadcast-request.ts"
import type { PresenceEvent } from "../../src/fleet/presence.ts"
import { shownCountsSchema } from "../../src/http/broadcasts.ts"
import { outputSchema } from "../../src/http/json-schema.ts"
import { VERSION } from "../../src/version.ts"

/** The text of docs/asyncapi.yaml. */
export function asyncApiText(): string {
  // A copy, since a value that occurs twice would become an anchor and an alias.
  const copy: unknown = JSON.parse(JSON.stringify(ASYNCAPI))
  const heading = "# Made by bun run docs from test/support/asyncapi.ts."
  return `${heading}\n${Bun.YAML.stringify(copy, null, 2)}\n`
}

export interface MessageDescription {
  readonly name: string
  readonly title: string
  readonly summary: string
  readonly contentType: string
  readonly headers: JsonSchema
  readonly payload: JsonSchema
  readonly "x-amqp-properties": JsonSchema
}

const text: JsonSchema = { type: "string" }
const integer: JsonSchema = { type: "integer", minimum: 0 }
const deviceId: JsonSchema = { type: "string", pattern: DEVICE_ID.source }
const connectionId: JsonSchema = { type: "string", pattern: CONNECTION_ID.source }
const trace: JsonSchema = {
  type: "string",
  description: `W3C Trace Context, passed on when it has at most ${MAX_TRACE_BYTES} bytes.`,
}
/** Publishers of the command line can send strings only. */
const digits = (description: string, minimum: number, maximum?: number): JsonSchema => ({
  description,
  anyOf: [
    { type: "integer", minimum, ...(maximum === undefined ? {} : { maximum }) },
    { type: "string", pattern: "^[0-9]+$" },
  ],
})
const option = (description: string): JsonSchema => ({
  ...{ type: "string", minLength: 1, maxLength: MAX_OPTION_BYTES },
  description: `${description} At most ${MAX_OPTION_BYTES} bytes of UTF-8.`,
})

const LINE: JsonSchema = {
  type: "string",
  format: "binary",
  description: "The bytes of the line, without LF or length.",
}

function objectOf(
  properties: Readonly<Record<string, JsonSchema>>,
  required: readonly string[] = Object.keys(properties),
): JsonSchema {
  return { type: "object", required: [...required], properties: { ...properties } }
}

const traceHeaders = { traceparent: trace, tracestate: trace }

const line: MessageDescription = {
  name: "line",
  title: "A line of a device",
  summary: "Published again until the broker has confirmed it: discard repeats by message_id.",
  contentType: "application/octet-stream",
  headers: objectOf(
    {
      connection_id: connectionId,
      device_id: deviceId,
      from_device_seq: { ...integer, description: "0 for the first line of the connection." },
      epoch: { ...integer, description: "When the connection was admitted, ms since 1970." },
      in_reply_to: {
        ...text,
        description: "On a line that has answered a command: the message_id of the command.",
      },
      ...traceHeaders,
    },
    ["connection_id", "device_id", "from_device_seq", "epoch"],
  ),
  payload: LINE,
  "x-amqp-properties": objectOf({
    message_id: { ...text, description: "<connection_id>:<from_device_seq>." },
    reply_to: { ...text, description: "The queue of the worker that holds the connection." },
    timestamp: { ...integer, description: "When the line was read, seconds since 1970." },
    app_id: { const: "owsla" },
    delivery_mode: { const: 2 },
  }),
}

const commandHeaders = {
  connection_id: connectionId,
  device_id: deviceId,
  to_device_seq: digits("The number of the command on its connection, from 0.", 0),
  hold_ms: digits("How long it is held for a device that is not connected.", 1),
  supersede_key: option("Of the waiting commands with one key only the newest is written."),
  reply_token: {
    ...option("The first word of the line that answers."),
    pattern: "^[^ \\t]+$",
  },
  reply_prefix: option("The beginning of the line that answers."),
  reply_next: {
    enum: [true, false, "true"],
    description: "The next line answers. false is as if it were missing.",
  },
  reply_timeout_ms: digits("How long the command waits for the line that answers.", 1),
  ...traceHeaders,
} satisfies Record<string, JsonSchema>

const receiptProperties = {
  reply_to: { ...text, description: "The queue for the receipt; none of the gateway." },
  correlation_id: { ...text, description: "The correlation_id of the receipt." },
} satisfies Record<string, JsonSchema>

const command: MessageDescription = {
  name: "command",
  title: "A command to a device",
  summary: "Has exactly one outcome, and on request a receipt.",
  contentType: "application/octet-stream",
  headers: {
    ...objectOf(commandHeaders, []),
    anyOf: [{ required: ["connection_id"] }, { required: ["device_id"] }],
  },
  payload: LINE,
  "x-amqp-properties": objectOf(
    {
      message_id: { ...text, description: "Recommended: the command is not written twice." },
      expiration: { type: "string", pattern: "^[0-9]{1,15}$", description: "Milliseconds." },
      timestamp: { ...integer, description: "The expiration counts from here. Seconds." },
      ...receiptProperties,
    },
    [],
  ),
}

/** On messages that the gateway publishes for commands. */
const publishId: JsonSchema = {
  type: "string",
  description: "Internal: by it the gateway recognises a message that the broker returns.",
}

const receiptMessage = (name: string, title: string, payload: JsonSchema): MessageDescription => ({
  ...{ name, title, payload },
  summary: "Published to the reply_to of the message, with its correlation_id.",
  contentType: "application/json",
  headers: objectOf({ [PUBLISH_ID_HEADER]: publishId, ...traceHeaders }, []),
  "x-amqp-properties": objectOf(
    {
      content_type: { const: "application/json" },
      type: { const: "owsla.receipt" },
      app_id: { const: "owsla" },
      correlation_id: text,
      delivery_mode: { const: 2 },
    },
    ["content_type", "type", "app_id", "delivery_mode"],
  ),
})

const receipt = receiptMessage(
  "receipt",
  "The outcome of a command",
  outputSchema(v.omit(receiptSchema, ["offered"])),
)
const broadcastReceipt = receiptMessage(
  "broadcastReceipt",
  "The outcomes of a broadcast",
  outputSchema(v.object({ ...shownCountsSchema.entries, at: v.number() })),
)

const undelivered: MessageDescription = {
  name: "undelivered",
  title: "A command that was not written",
  summary: "A copy of the command, with its headers and properties, and the reason.",
  contentType: "application/octet-stream",
  headers: {
    ...objectOf(
      {
        [OUTCOME_HEADER]: { type: "string", enum: OUTCOMES.filter(isKept) },
        [DETAIL_HEADER]: text,
        [KEPT_AS.CC]: { description: "The header CC of the command." },
        [KEPT_AS.BCC]: { description: "The header BCC of the command." },
        [KEPT_AS.userId]: { ...text, description: "The user_id of the command." },
        [PUBLISH_ID_HEADER]: publishId,
      },
      [OUTCOME_HEADER, DETAIL_HEADER],
    ),
    description: "In addition to the headers of the command, which may be invalid.",
  },
  payload: LINE,
  "x-amqp-properties": objectOf({ delivery_mode: { const: 2 } }),
}

const connected = {
  device_id: v.string(),
  connection_id: v.string(),
  epoch: v.number(),
  instance: v.string(),
  worker: v.string(),
  remote_address: v.string(),
  tls_version: v.string(),
  at: v.number(),
}
const connectedSchema = v.object(connected) satisfies v.GenericSchema<unknown, PresenceEvent>
const disconnectedSchema = v.object({
  ...connected,
  reason: v.picklist(CLOSE_REASONS),
  lines_in: v.number(),
  lines_out: v.number(),
}) satisfies v.GenericSchema<unknown, PresenceEvent>

const presence = (name: string, title: string, schema: v.GenericSchema): MessageDescription => ({
  ...{ name, title },
  summary: "Keep the largest epoch of each device, and ignore events with a smaller one.",
  contentType: "application/json",
  headers: objectOf({}),
  payload: outputSchema(schema),
  "x-amqp-properties": objectOf({
    content_type: { const: "application/json" },
    message_id: text,
    timestamp: integer,
    app_id: { const: "owsla" },
    delivery_mode: { const: 2 },
  }),
})

const broadcast: MessageDescription = {
  name: "broadcast",
  title: "One line for many devices",
  summary: "Written to devices that are connected now. Exactly one of to, to_prefix and to_ids.",
  contentType: "application/octet-stream",
  headers: {
    ...objectOf(
      {
        to: { const: "all" },
        to_prefix: deviceId,
        to_ids: {
          description: "Device or connection ids: an array, or a string with commas.",
          anyOf: [
            { type: "array", items: deviceIdWithSpaces(), maxItems: MAX_BROADCAST_IDS },
            text,
          ],
        },
        per_s: {
          ...digits("Lines a second, over the whole fleet.", 1, MAX_PER_S),
          default: DEFAULT_PER_S,
        },
        supersede_key: commandHeaders.supersede_key,
        ...traceHeaders,
      },
      [],
    ),
    oneOf: [{ required: ["to"] }, { required: ["to_prefix"] }, { required: ["to_ids"] }],
  },
  payload: LINE,
  "x-amqp-properties": objectOf({ message_id: text, expiration: text, ...receiptProperties }, []),
}

/** Spaces around an id are ignored. */
function deviceIdWithSpaces(): JsonSchema {
  return { type: "string", pattern: "^\\s*[A-Za-z0-9._:-]{1,128}\\s*$" }
}

export const MESSAGES = {
  line,
  command,
  receipt,
  broadcastReceipt,
  undelivered,
  connected: presence("connected", "A device has connected", connectedSchema),
  disconnected: presence("disconnected", "A device has disconnected", disconnectedSchema),
  broadcast,
} satisfies Record<string, MessageDescription>

type MessageName = keyof typeof MESSAGES

const BINDING_VERSION = "0.3.0"

function queue(name: string) {
  const about = { name, durable: true, exclusive: false, autoDelete: false, vhost: "/" }
  return { amqp: { is: "queue", queue: about, bindingVersion: BINDING_VERSION } }
}

function exchange(name: string) {
  const type = EXCHANGES.find((declared) => declared.name === name)?.type
  const about = { name, type, durable: true, autoDelete: false, vhost: "/" }
  return { amqp: { is: "routingKey", exchange: about, bindingVersion: BINDING_VERSION } }
}

function messagesOf(...names: readonly MessageName[]) {
  return Object.fromEntries(
    names.map((name) => [name, { $ref: `#/components/messages/${name}` }] as const),
  )
}

/** The default of a setting. */
function defaultOf(name: string): string {
  const setting = SETTINGS.find((each) => each.name === name)
  if (setting === undefined) throw new Error(`no setting ${name}`)
  return setting.default
}

const LINES = defaultOf("FROM_DEVICE_QUEUE")
const TO_DEVICE = defaultOf("TO_DEVICE_QUEUE")
const HELD = heldQueue({ queueType: "quorum" }, 0).name.replace(/0$/, "{shard}")

const channels = {
  lines: {
    address: LINES,
    title: "Lines of devices",
    description: "FROM_DEVICE_QUEUE. Empty with FROM_DEVICE_PARTITIONS above 1.",
    messages: messagesOf("line"),
    bindings: queue(LINES),
  },
  linePartition: {
    address: `${LINES}.{partition}`,
    title: "One partition of the lines",
    description: "With FROM_DEVICE_PARTITIONS above 1. All lines of a device are in the same one.",
    parameters: { partition: { description: "0 to FROM_DEVICE_PARTITIONS - 1." } },
    messages: messagesOf("line"),
    bindings: queue(`${LINES}.{partition}`),
  },
  commands: {
    address: TO_DEVICE,
    title: "Commands for all workers",
    description:
      "The routing key is TO_DEVICE_QUEUE. The default exchange with the name of the queue works too.",
    messages: messagesOf("command"),
    bindings: exchange(COMMANDS_EXCHANGE),
  },
  workerCommands: {
    address: workerQueue("{worker}"),
    title: "Commands for the connections of one worker",
    description:
      "The routing key is the reply_to of a line. Saves the command from being forwarded.",
    parameters: { worker: { description: "<instance>.<slot>." } },
    messages: messagesOf("command"),
    bindings: exchange(COMMANDS_EXCHANGE),
  },
  receipts: {
    address: null,
    title: "Receipts",
    description: "The queue in reply_to of the command or broadcast. It belongs to the back-end.",
    messages: messagesOf("receipt", "broadcastReceipt"),
  },
  undelivered: {
    address: defaultOf("UNDELIVERED_QUEUE"),
    title: "Commands that were not written",
    description: "UNDELIVERED_QUEUE. For the operator.",
    messages: messagesOf("undelivered"),
    bindings: queue(defaultOf("UNDELIVERED_QUEUE")),
  },
  presence: {
    address: "device.{event}",
    title: "Devices that connect and disconnect",
    description: "Bind a queue of the back-end.",
    parameters: { event: { enum: ["connected", "disconnected"] } },
    messages: messagesOf("connected", "disconnected"),
    bindings: exchange(PRESENCE_EXCHANGE),
  },
  broadcasts: {
    address: BROADCASTS,
    title: "Broadcasts",
    description: "Any routing key: the exchange has one queue.",
    messages: messagesOf("broadcast"),
    bindings: exchange(BROADCAST_EXCHANGE),
  },
  held: {
    address: HELD,
    title: "Held commands",
    description:
      "Internal: where the gateway stores commands with hold_ms. Back-ends publish them as other commands, and neither read nor write here.",
    parameters: { shard: { description: "0 to FLEET_SHARDS - 1." } },
    bindings: queue(HELD),
  },
}

interface OperationParts {
  /** What the gateway does: it receives commands and sends lines. */
  readonly action: "send" | "receive"
  readonly channel: keyof typeof channels
  readonly summary: string
  readonly messages: readonly MessageName[]
  /** The receipts that the message can have. */
  readonly receipts?: readonly MessageName[]
}

function operation({ action, channel, summary, messages, receipts }: OperationParts) {
  const listed = (of: keyof typeof channels, names: readonly MessageName[]) =>
    names.map((name) => ({ $ref: `#/channels/${of}/messages/${name}` }))
  const address = {
    location: "$message.header#/reply_to",
    description: "The AMQP property reply_to. Without it there is no receipt.",
  }
  const reply = (names: readonly MessageName[]) => ({
    ...{ address, channel: { $ref: "#/channels/receipts" } },
    messages: listed("receipts", names),
  })
  return {
    ...{ action, summary, channel: { $ref: `#/channels/${channel}` } },
    messages: listed(channel, messages),
    ...(receipts === undefined ? {} : { reply: reply(receipts) }),
  }
}

const operations = {
  sendLine: operation({
    action: "send",
    channel: "lines",
    summary: "Publishes each line of a device",
    messages: ["line"],
  }),
  sendLineToPartition: operation({
    action: "send",
    channel: "linePartition",
    summary: "Publishes each line of a device, with FROM_DEVICE_PARTITIONS above 1",
    messages: ["line"],
  }),
  receiveCommand: operation({
    action: "receive",
    channel: "commands",
    summary: "Writes a command to its device",
    messages: ["command"],
    receipts: ["receipt"],
  }),
  receiveWorkerCommand: operation({
    action: "receive",
    channel: "workerCommands",
    summary: "Writes a command to its device, at the worker that holds the connection",
    messages: ["command"],
    receipts: ["receipt"],
  }),
  keepUndelivered: operation({
    action: "send",
    channel: "undelivered",
    summary: "Keeps a command that was not written",
    messages: ["undelivered"],
  }),
  sendPresence: operation({
    action: "send",
    channel: "presence",
    summary: "Publishes each admitted connection, and its end",
    messages: ["connected", "disconnected"],
  }),
  receiveBroadcast: operation({
    action: "receive",
    channel: "broadcasts",
    summary: "Writes one line to many devices",
    messages: ["broadcast"],
    // A message that is not a valid broadcast has the receipt of a command.
    receipts: ["broadcastReceipt", "receipt"],
  }),
}

export const ASYNCAPI = {
  asyncapi: "3.0.0",
  info: {
    title: "Owsla",
    version: VERSION,
    description:
      "Lines of devices, commands to them, receipts and presence, over AMQP 0-9-1. The names are the defaults of the settings. docs/PROTOCOL.md has the rules.",
    license: { name: "MIT" },
  },
  defaultContentType: "application/octet-stream",
  servers: {
    broker: {
      host: "broker.example:5671",
      protocol: "amqps",
      protocolVersion: "0.9.1",
      description: "The broker of the fleet: AMQP_URL.",
    },
  },
  channels,
  operations,
  components: { messages: MESSAGES },
}
