/**
 * `POST /devices/:id/send`: one command to one device, answered with its outcome.
 *
 * The request is checked here, completely, before it becomes a command; from then on it has exactly
 * one outcome like any other.
 */

import { type Context, Hono } from "hono"
import * as v from "valibot"
import type { SendRequest, SendResult } from "../broker/sender.ts"
import { bodyFault } from "../device/command.ts"
import { DEVICE_ID } from "../device/ids.ts"
import { type HttpEnvironment, refuse } from "./errors.ts"

/** RabbitMQ's bound for a `message_id`. */
const MAX_MESSAGE_ID_BYTES = 255
const MAX_TTL_MS = 86_400_000

export interface DevicesDependencies {
  readonly maxLineBytes: number
  readonly send: (request: SendRequest) => Promise<SendResult>
}

const jsonRequest = v.strictObject({
  line: v.string("must be a string"),
  ttl_ms: v.optional(
    v.pipe(
      v.number("must be a number"),
      v.integer("must be a whole number"),
      v.minValue(1, "must be at least 1"),
      v.maxValue(MAX_TTL_MS, `must be at most ${MAX_TTL_MS}`),
    ),
  ),
  message_id: v.optional(
    v.pipe(
      v.string("must be a string"),
      v.nonEmpty("must not be empty"),
      v.maxBytes(MAX_MESSAGE_ID_BYTES, `must be at most ${MAX_MESSAGE_ID_BYTES} bytes`),
    ),
  ),
})

export function devices({ maxLineBytes, send }: DevicesDependencies): Hono<HttpEnvironment> {
  const routes = new Hono<HttpEnvironment>()

  routes.post("/devices/:id/send", async (c) => {
    const id = c.req.param("id")
    if (!DEVICE_ID.test(id)) return refuse(c, "invalid", `the id must match ${DEVICE_ID.source}`)
    const request = await readRequest(c, id)
    if (typeof request === "string") return refuse(c, "invalid", request)
    const fault = bodyFault(request.body, maxLineBytes)
    if (fault !== null) return refuse(c, fault.outcome, fault.detail)
    return answer(c, await send(request))
  })

  return routes
}

/** The request, or what is wrong with it. */
async function readRequest(c: Context<HttpEnvironment>, id: string): Promise<SendRequest | string> {
  const contentType = c.req.header("content-type")?.split(";")[0]?.trim().toLowerCase()
  if (contentType === "text/plain") {
    const body = new Uint8Array(await c.req.arrayBuffer())
    return { id, body, ttlMs: null, messageId: null }
  }
  if (contentType !== "application/json") {
    return "the content type must be text/plain or application/json"
  }
  let parsed: unknown
  try {
    parsed = await c.req.json()
  } catch {
    return "the body is not JSON"
  }
  const checked = v.safeParse(jsonRequest, parsed)
  if (!checked.success) {
    return checked.issues
      .map((issue) => `${v.getDotPath(issue) ?? "the body"}: ${issue.message}`)
      .join("; ")
  }
  const { line, ttl_ms: ttlMs = null, message_id: messageId = null } = checked.output
  return { id, body: new TextEncoder().encode(line), ttlMs, messageId }
}

function answer(c: Context<HttpEnvironment>, result: SendResult): Response {
  switch (result.outcome) {
    case "written": {
      const { outcome, connection_id, epoch } = result
      return c.json({ outcome, connection_id, epoch })
    }
    case "unreachable":
      return refuse(c, "broker_away", "the device is not here and the broker is away")
    case "timeout":
      return refuse(c, "timeout", "no outcome in time")
    case "busy":
      return refuse(c, "busy", "too many requests wait for an outcome")
    default:
      return refuse(c, result.outcome, result.detail)
  }
}
