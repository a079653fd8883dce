/**
 * The routes below `/devices`: the connections of the fleet, and commands.
 *
 *   GET /devices                       a query to all workers of all instances
 *   GET /devices/:id                   a query to the worker that holds the device
 *   DELETE /devices/:id/connection     the same, and the worker closes the connection
 *   POST /devices/:id/send             one command; the response contains its outcome
 *
 * A command is validated here before it is sent. From then on it has exactly one outcome, like
 * commands from the broker. A request ends when its client closes the connection; remaining steps
 * are not carried out. Bound: `MAX_LIMIT` devices in each page.
 */

import { type Context, Hono } from "hono"
import * as v from "valibot"
import type { CommandFormat } from "../commands/command-message.ts"
import { MAX_OPTION_BYTES, readOptions } from "../commands/command-options.ts"
import type { SendRequest, SendResult } from "../commands/http-sender.ts"
import { heldAnswerSchema, replySchema } from "../commands/outcomes.ts"
import { bodyFault } from "../device/command.ts"
import { DEVICE_ID, workerOfConnection } from "../device/ids.ts"
import { PAUSED } from "../fleet/device-filter.ts"
import type { DeviceList } from "../fleet/device-page.ts"
import { type DeviceView, deviceViewSchema } from "../fleet/device-view.ts"
import type { FleetQuery, FleetQueryFailure } from "../fleet/fleet-query.ts"
import { audit } from "./audit.ts"
import { bodyFaults, NOT_AN_OBJECT, readJson, wellFormed, wholeNumber } from "./body-faults.ts"
import { type HttpEnvironment, refuse } from "./errors.ts"
import { limitOf } from "./query-limit.ts"
import type { DescribedError, RouteDescription } from "./route-description.ts"

/** A `message_id` is an AMQP short string. */
export const MAX_MESSAGE_ID_BYTES = 255
/**
 * Usually the client has closed the connection and does not read this response. It is not an
 * internal error.
 */
export const INCOMPLETE_BODY = "the request body is incomplete"
const MAX_TTL_MS = 86_400_000

export interface DevicesDependencies extends CommandFormat {
  /** `caller` is aborted when the client closes the connection. */
  readonly send: (request: SendRequest, caller: AbortSignal) => Promise<SendResult>
  readonly fleetQuery: Pick<FleetQuery, "list" | "describe" | "kick">
}

/** `readOptions` checks the values of these. The metadata is for the OpenAPI document. */
const milliseconds = (setting: string) =>
  v.pipe(
    v.number("must be a number"),
    v.metadata({ type: "integer", minimum: 1, description: `milliseconds, at most ${setting}` }),
  )
const option = v.pipe(
  v.string("must be a string"),
  v.metadata({
    minLength: 1,
    maxLength: MAX_OPTION_BYTES,
    description: `at most ${MAX_OPTION_BYTES} bytes of UTF-8`,
  }),
)

/** No message repeats a value from the request: it may be long or secret. */
const entries = {
  line: v.pipe(v.string("must be a string"), wellFormed()),
  ttl_ms: v.optional(wholeNumber(1, MAX_TTL_MS)),
  message_id: v.optional(
    v.pipe(
      v.string("must be a string"),
      wellFormed(),
      v.nonEmpty("must not be empty"),
      v.maxBytes(MAX_MESSAGE_ID_BYTES, `must be at most ${MAX_MESSAGE_ID_BYTES} bytes`),
    ),
  ),
  hold_ms: v.optional(milliseconds("MAX_HOLD_MS")),
  supersede_key: v.optional(option),
  reply_token: v.optional(option),
  reply_prefix: v.optional(option),
  reply_next: v.optional(v.literal(true, "must be true")),
  reply_timeout_ms: v.optional(milliseconds("MAX_REPLY_MS")),
}
const jsonRequest = v.strictObject(entries, NOT_AN_OBJECT)

export function devices(dependencies: DevicesDependencies): Hono<HttpEnvironment> {
  const { send } = dependencies
  const routes = new Hono<HttpEnvironment>()
  fleetRoutes(routes, dependencies)

  routes.post("/devices/:id/send", async (c) => {
    const id = c.req.param("id")
    if (!DEVICE_ID.test(id)) return refuse(c, "invalid", `the id must match ${DEVICE_ID.source}`)
    const request = await readRequest(c, id, dependencies)
    if (typeof request === "string") return refuse(c, "invalid", request)
    const fault = bodyFault(request.body, dependencies)
    if (fault !== null) return refuse(c, fault.outcome, fault.detail)
    return answer(c, await send(request, c.req.raw.signal))
  })

  return routes
}

/** The request, or why it is not valid. */
async function readRequest(
  c: Context<HttpEnvironment>,
  id: string,
  limits: CommandFormat,
): Promise<SendRequest | string> {
  let bytes: ArrayBuffer
  try {
    bytes = await c.req.arrayBuffer()
  } catch {
    return INCOMPLETE_BODY
  }
  const trace = {
    traceparent: c.req.header("traceparent"),
    tracestate: c.req.header("tracestate"),
  }
  const contentType = c.req.header("content-type")?.split(";")[0]?.trim().toLowerCase()
  if (contentType === "text/plain") {
    const options = readOptions(trace, limits)
    if (typeof options === "string") return options
    return { id, body: new Uint8Array(bytes), ttlMs: null, messageId: null, options }
  }
  if (contentType !== "application/json") {
    return "the content type must be text/plain or application/json"
  }
  const request = await readJson(Promise.resolve(bytes), jsonRequest, entries)
  if (typeof request === "string") return request
  const { line, ttl_ms: ttlMs = null, message_id: messageId = null, ...fields } = request
  const options = readOptions({ ...fields, ...trace }, limits)
  if (typeof options === "string") return options
  if (options.holdMs !== null && workerOfConnection(id) !== null) {
    return "hold_ms needs a device id: a connection does not return"
  }
  return { id, body: new TextEncoder().encode(line), ttlMs, messageId, options }
}

function answer(c: Context<HttpEnvironment>, result: SendResult): Response {
  switch (result.outcome) {
    case "written": {
      const { outcome, connection_id, epoch } = result
      return c.json({ outcome, connection_id, epoch })
    }
    case "answered": {
      const { outcome, connection_id, epoch, reply } = result
      return c.json({ outcome, connection_id, epoch, reply })
    }
    case "held": {
      const { outcome, expires_at } = result
      return c.json({ outcome, expires_at }, 202)
    }
    case "unreachable":
      return refuse(
        c,
        "broker_away",
        "this worker does not hold the device, and the broker is not available",
      )
    case "timeout":
      return refuse(
        c,
        "timeout",
        "no outcome within SEND_TIMEOUT_MS, and reply_timeout_ms for a command with a reply",
      )
    case "busy":
      return refuse(c, "busy", "too many requests wait for an outcome, or this worker is stopping")
    default:
      return refuse(c, result.outcome, result.detail)
  }
}

const MAX_LIMIT = 1_000
const DEFAULT_LIMIT = 100

const ADDRESS_RULE = "must be the beginning of an IP address"
/** Longer than a year, with ten digits. */
const MAX_SILENT_MS = 9_999_999_999
const SILENT_RULE = "must be a whole number of milliseconds"
/** A device id or the beginning of one; may be empty. */
const partOfId = v.optional(
  v.pipe(v.string(), v.regex(/^[A-Za-z0-9._:-]{0,128}$/, "must be characters of a device id")),
  "",
)
const query = v.object({
  limit: limitOf({ max: MAX_LIMIT, byDefault: DEFAULT_LIMIT }),
  prefix: partOfId,
  after: partOfId,
  address: v.optional(v.pipe(v.string(), v.regex(/^[0-9A-Fa-f.:]{1,64}$/, ADDRESS_RULE))),
  paused_by: v.optional(v.picklist(PAUSED, `must be one of ${PAUSED.join(", ")}`)),
  silent_ms: v.optional(
    v.pipe(
      v.string(),
      v.regex(/^[0-9]{1,10}$/, SILENT_RULE),
      v.transform(Number),
      wholeNumber(0, MAX_SILENT_MS),
    ),
  ),
})

const count = v.pipe(v.number(), v.integer(), v.minValue(0))
const deviceList = v.object({
  devices: v.array(deviceViewSchema),
  total: count,
  answered: count,
  workers: count,
}) satisfies v.GenericSchema<unknown, DeviceList>
const connection = { connection_id: v.string(), epoch: v.number() }
const ended = v.union([
  v.object({ outcome: v.literal("written"), ...connection }),
  v.object({ outcome: v.literal("answered"), ...connection, reply: replySchema }),
])
const TRACE = "W3C Trace Context. It becomes a header of the command."
const FAILURES: readonly DescribedError[] = ["broker_away", "timeout", "busy"]

export const DEVICES_ROUTES: readonly RouteDescription[] = [
  {
    method: "get",
    path: "/devices",
    name: "listDevices",
    summary: "The connections of the whole fleet, sorted by device id",
    text: "`prefix` is the beginning of device ids, `after` the last id of the previous page, `address` the beginning of IP addresses. `silent_ms`: nothing was received for so long. `paused_by`: why a device is not read. The list is complete when `answered` equals `workers`.",
    query,
    answers: [{ status: 200, text: "A page of the list.", schema: deviceList }],
    errors: ["invalid", ...FAILURES],
  },
  {
    method: "get",
    path: "/devices/:id",
    name: "getDevice",
    summary: "One connection, by device or connection id",
    answers: [{ status: 200, text: "The connection.", schema: deviceViewSchema }],
    errors: ["invalid", "not_found", ...FAILURES],
  },
  {
    method: "delete",
    path: "/devices/:id/connection",
    name: "closeConnection",
    summary: "Closes a connection",
    answers: [{ status: 200, text: "The connection as it was.", schema: deviceViewSchema }],
    errors: ["invalid", "not_found", ...FAILURES],
  },
  {
    method: "post",
    path: "/devices/:id/send",
    name: "sendCommand",
    summary: "Sends a command to a device and returns its outcome",
    text: "As text/plain the body is the line, byte for byte. At most one of reply_token, reply_prefix and reply_next. With hold_ms the command is held when the device is not connected.",
    headers: { traceparent: TRACE, tracestate: TRACE },
    body: { "text/plain": v.string(), "application/json": jsonRequest },
    answers: [
      { status: 200, text: "It was written.", schema: ended },
      { status: 202, text: "It is held.", schema: heldAnswerSchema },
    ],
    errors: [
      ...(["offline", "closed", "duplicate", "late", "superseded", "cancelled"] as const),
      ...(["hold_full", "slow_device", "expired", "no_reply"] as const),
      ...FAILURES,
    ],
  },
]

function fleetRoutes(routes: Hono<HttpEnvironment>, { fleetQuery }: DevicesDependencies): void {
  routes.get("/devices", async (c) => {
    const checked = v.safeParse(query, c.req.query())
    if (!checked.success) {
      return refuse(c, "invalid", bodyFaults(checked.issues, query.entries))
    }
    const { prefix, after, limit, ...filter } = checked.output
    const request = { prefix, after, limit, ...(isEmpty(filter) ? {} : { filter }) }
    const listed = await fleetQuery.list(request, c.req.raw.signal)
    return typeof listed === "string" ? fail(c, listed) : c.json(listed)
  })
  routes.get("/devices/:id", (c) => one(c, (id, caller) => fleetQuery.describe(id, caller)))
  routes.delete("/devices/:id/connection", (c) =>
    one(c, async (id, caller) => {
      const kicked = await fleetQuery.kick(id, caller)
      // After "timeout" the connection may have been closed.
      const detail = typeof kicked === "string" ? kicked : (kicked?.connection_id ?? null)
      if (detail !== null) audit(c, { action: "kick", target: id, detail })
      return kicked
    }),
  )
}

function isEmpty(filter: object): boolean {
  return Object.keys(filter).length === 0
}

async function one(
  c: Context<HttpEnvironment>,
  act: (id: string, caller: AbortSignal) => Promise<DeviceView | null | FleetQueryFailure>,
): Promise<Response> {
  const id = c.req.param("id") ?? ""
  if (!DEVICE_ID.test(id)) return refuse(c, "invalid", `the id must match ${DEVICE_ID.source}`)
  const device = await act(id, c.req.raw.signal)
  if (device === null)
    return refuse(c, "not_found", "no worker that answered holds this device or connection")
  return typeof device === "string" ? fail(c, device) : c.json(device)
}

function fail(c: Context<HttpEnvironment>, failure: FleetQueryFailure): Response {
  switch (failure) {
    case "unreachable":
      return refuse(
        c,
        "broker_away",
        "the broker is not available, and requests for other workers go through it",
      )
    case "timeout":
      return refuse(c, "timeout", "the worker that holds the device did not answer in time")
    case "busy":
      return refuse(c, "busy", "too many requests wait for other workers")
  }
}
