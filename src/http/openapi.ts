/**
 * `GET /openapi.json`: the description of this API as an OpenAPI 3.1 document.
 *
 *   descriptions beside the handlers ─► document ─► text, made at the first request and kept
 *
 * It has all routes, also those that need the embedded broker, and no setting of this instance, so
 * that it is the same on all instances of a version. Limits that are settings are named. It needs a
 * token like other routes that are read: it contains the version, which `/health` shows only with a
 * token, and it is larger than all other answers to a client without a token.
 */

import type { JsonSchema } from "@valibot/to-json-schema"
import { Hono } from "hono"
import * as v from "valibot"
import { DEVICE_ID } from "../device/ids.ts"
import { AUDIT_ROUTES } from "./audit.ts"
import { isReading } from "./authorization.ts"
import { BROADCASTS_ROUTES } from "./broadcasts.ts"
import { DEVICES_ROUTES } from "./devices.ts"
import { DRAIN_ROUTES } from "./drain.ts"
import { ERROR_STATUS, type ErrorCode } from "./errors.ts"
import { EVENTS_ROUTES } from "./events.ts"
import { FLEET_ROUTES } from "./fleet.ts"
import { HEALTH_ROUTES } from "./health.ts"
import { HELD_ROUTES } from "./held.ts"
import { inputSchema, outputSchema, queryParameters } from "./json-schema.ts"
import { MESSAGES_ROUTES } from "./messages.ts"
import { METRICS_ROUTES } from "./metrics.ts"
import { RECORDS_ROUTES } from "./records.ts"
import type { Answer, DescribedError, RouteDescription } from "./route-description.ts"
import { RULES_ROUTES } from "./rules.ts"
import { SESSION_COOKIE, SESSION_ROUTES } from "./session.ts"
import { TAPES_ROUTES } from "./tapes.ts"

export interface OpenApiDependencies {
  readonly version: string
}

const OPENAPI_ROUTES: readonly RouteDescription[] = [
  {
    method: "get",
    path: "/openapi.json",
    name: "getOpenApi",
    summary: "This document",
    answers: [{ status: 200, text: "An OpenAPI 3.1 document.", schema: v.looseObject({}) }],
    errors: [],
  },
]

/** All routes, except those of the operator page, which are for browsers. Order of the document. */
export const DESCRIPTIONS: readonly RouteDescription[] = [
  ...HEALTH_ROUTES,
  ...METRICS_ROUTES,
  ...DEVICES_ROUTES,
  ...RECORDS_ROUTES,
  ...HELD_ROUTES,
  ...BROADCASTS_ROUTES,
  ...RULES_ROUTES,
  ...TAPES_ROUTES,
  ...DRAIN_ROUTES,
  ...FLEET_ROUTES,
  ...EVENTS_ROUTES,
  ...AUDIT_ROUTES,
  ...SESSION_ROUTES,
  ...MESSAGES_ROUTES,
  ...OPENAPI_ROUTES,
]

export function openApi({ version }: OpenApiDependencies): Hono {
  const routes = new Hono()
  let text: string | null = null

  routes.get("/openapi.json", (c) => {
    text ??= JSON.stringify(document(version, DESCRIPTIONS))
    return c.body(text, 200, { "content-type": "application/json" })
  })

  return routes
}

const DESCRIPTION = `Health, metrics, the devices of the fleet, and commands to them.

Without HTTP_TOKENS and HTTP_READ_TOKENS no route needs a token, and only programs on the same machine are served. Times are milliseconds since 1970. Later versions may add fields to responses.`

/** @throws when a schema cannot be expressed; a test makes the document. */
export function document(version: string, descriptions: readonly RouteDescription[]) {
  const paths: Record<string, Record<string, object>> = {}
  for (const description of descriptions) {
    const path = description.path.replace(/:(\w+)/g, "{$1}")
    paths[path] ??= {}
    paths[path][description.method] = operation(description)
  }
  return {
    openapi: "3.1.0",
    info: {
      title: "Owsla",
      version,
      description: DESCRIPTION,
      license: { name: "MIT", identifier: "MIT" },
    },
    paths,
    components: { securitySchemes: SECURITY_SCHEMES, responses: refusals() },
  }
}

const SECURITY_SCHEMES = {
  token: { type: "http", scheme: "bearer", description: "One of HTTP_TOKENS. For all routes." },
  readToken: {
    type: "http",
    scheme: "bearer",
    description: "One of HTTP_READ_TOKENS. For GET and HEAD only.",
  },
  session: {
    type: "apiKey",
    in: "cookie",
    name: SESSION_COOKIE,
    description:
      "From POST /session, with the access of its token. Requests other than GET and HEAD need the Origin of the page.",
  },
}

/** Any of these is sufficient. */
function securityOf({ method, isPublic }: RouteDescription): object[] {
  if (isPublic === true) return []
  return isReading(method.toUpperCase())
    ? [{ token: [] }, { readToken: [] }, { session: [] }]
    : [{ token: [] }, { session: [] }]
}

function operation(description: RouteDescription) {
  const { name, summary, text, query, headers = {}, body } = description
  const ofQuery = query === undefined ? [] : queryParameters(query)
  const parameters = [
    ...pathParameters(description.path),
    ...ofQuery.map((parameter) => ({ ...parameter, in: "query" })),
    ...Object.entries(headers).map(([header, description]) => ({
      ...{ name: header, in: "header", description, schema: { type: "string" } },
    })),
  ]
  return {
    operationId: name,
    summary,
    ...(text === undefined ? {} : { description: text }),
    security: securityOf(description),
    ...(parameters.length === 0 ? {} : { parameters }),
    ...(body === undefined ? {} : { requestBody: { required: true, content: contentOf(body) } }),
    responses: responsesOf(description),
  }
}

/** `:id` is a device or connection id. */
function pathParameters(path: string) {
  return [...path.matchAll(/:(\w+)/g)].map(([, name = ""]) => ({
    ...{ name, in: "path", required: true },
    schema: name === "id" ? { type: "string", pattern: DEVICE_ID.source } : { type: "string" },
  }))
}

function contentOf(body: NonNullable<RouteDescription["body"]>) {
  const content = Object.entries(body).map(([mediaType, schema]) => {
    return [mediaType, { schema: inputSchema(schema) }] as const
  })
  return Object.fromEntries(content)
}

function responsesOf(description: RouteDescription): Record<string, object> {
  const errors = new Map<number, Set<ErrorCode>>()
  for (const error of [...commonErrors(description), ...description.errors]) {
    const { code, status } = typeof error === "string" ? withStatus(error) : error
    errors.set(status, (errors.get(status) ?? new Set()).add(code))
  }
  const responses: Record<string, object> = {}
  for (const [status, codes] of errors) {
    const [code, ...others] = codes
    responses[status] =
      others.length === 0 ? { $ref: `#/components/responses/${code}` } : refusal([...codes])
  }
  for (const answer of description.answers) responses[answer.status] = response(answer)
  return responses
}

/** The errors that the middlewares of `app.ts` answer. */
function commonErrors({ isPublic, body }: RouteDescription): DescribedError[] {
  const ofBody: ErrorCode[] = body === undefined ? [] : ["invalid", "too_large"]
  const guarded: ErrorCode[] = isPublic === true ? [] : ["unauthorized", "unsupported_encoding"]
  return [...ofBody, ...guarded, "forbidden", "internal"]
}

function withStatus(code: ErrorCode) {
  return { code, status: ERROR_STATUS[code] }
}

function response({ text, mediaType = "application/json", schema }: Answer) {
  if (schema === null) return { description: text }
  return { description: text, content: { [mediaType]: { schema: outputSchema(schema) } } }
}

const RETRY_AFTER = {
  description: "Seconds after which the client may retry.",
  schema: { type: "integer" },
}

/** The response of each code. A status with several codes has a response of its own. */
function refusals(): Record<string, object> {
  const codes = Object.keys(ERROR_STATUS) as ErrorCode[]
  return Object.fromEntries(codes.map((code) => [code, refusal([code])]))
}

function refusal(codes: readonly ErrorCode[]) {
  const mayRetry = codes.some((code) => ERROR_STATUS[code] === 503)
  return {
    description: codes.join(", "),
    ...(mayRetry ? { headers: { "Retry-After": RETRY_AFTER } } : {}),
    content: { "application/json": { schema: errorSchema(codes) } },
  }
}

function errorSchema(codes: readonly ErrorCode[]): JsonSchema {
  const error = v.object({ code: v.picklist(codes), message: v.string() })
  return outputSchema(v.object({ error }))
}
