/** Compares answers of the HTTP API with its OpenAPI document. Each field must be described. */

import { DESCRIPTIONS, document } from "../../src/http/openapi.ts"
import { valueFault } from "./json-schemas.ts"

export interface HttpAnswer {
  readonly method: string
  /** With or without a query. */
  readonly path: string
  readonly status: number
  readonly contentType: string | null
  readonly body: string
}

interface Response {
  readonly $ref?: string
  readonly content?: Readonly<Record<string, { readonly schema: object }>>
}

export interface Operation {
  readonly operationId: string
  readonly security: readonly object[]
  readonly responses: Readonly<Record<string, Response>>
  readonly requestBody?: Response
}

export const DOCUMENT = document("1.2.3", DESCRIPTIONS)

/** The description of this request; undefined for a route that does not exist. */
export function operationOf(method: string, path: string): Operation | undefined {
  const asked = path.split("?")[0] ?? ""
  const verb = method === "HEAD" ? "get" : method.toLowerCase()
  for (const [template, operations] of Object.entries(DOCUMENT.paths)) {
    const pattern = RegExp.escape(template).replace(/\\\{\w+\\\}/g, "[^/]+")
    const operation = operations[verb]
    if (operation !== undefined && new RegExp(`^${pattern}$`).test(asked)) {
      return operation as Operation
    }
  }
  return undefined
}

/** Why the answer is not what the document says of the route; null when it is. */
export function answerFault(answer: HttpAnswer): string | null {
  const { method, path, status, contentType, body } = answer
  const operation = operationOf(method, path)
  if (operation === undefined) return `${method} ${path} is not described`
  const where = `${operation.operationId} ${status}`
  const response = resolved(operation.responses[status])
  if (response === undefined) return `${where} is not described: ${body}`
  if (response.content === undefined) {
    return body === "" ? null : `${where} is described without a body: ${body}`
  }
  const mediaType = mediaTypeOf(contentType)
  const { schema } = response.content[mediaType] ?? {}
  if (schema === undefined) return `${where} is described without ${mediaType}`
  if (mediaType !== "application/json" || method === "HEAD") return null
  const fault = valueFault(schema, JSON.parse(body))
  return fault === null ? null : `${where}: ${fault} in ${body}`
}

function mediaTypeOf(contentType: string | null): string {
  return (contentType ?? "").split(";")[0]?.trim() ?? ""
}

function resolved(response: Response | undefined): Response | undefined {
  const code = response?.$ref?.split("/").at(-1)
  return code === undefined ? response : DOCUMENT.components.responses[code]
}
