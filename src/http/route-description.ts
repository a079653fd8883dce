/**
 * The description of a route for the OpenAPI document (`openapi.ts`). Each group of routes exports
 * its descriptions beside its handlers, with the schemas that the handlers use. Types only.
 */

import type * as v from "valibot"
import type { ErrorCode } from "./errors.ts"

export type Schema = v.GenericSchema

/** The parameters of a query, by name. The schema reads them from strings. */
export type QuerySchema = v.ObjectSchema<v.ObjectEntries, undefined>

export interface RouteDescription {
  readonly method: "get" | "put" | "post" | "delete"
  /** As in Hono: `/devices/:id`. */
  readonly path: string
  /** Unique. Generated clients name their functions by it. */
  readonly name: string
  readonly summary: string
  /** What the summary and the schemas do not say. */
  readonly text?: string
  /** No token is needed. */
  readonly isPublic?: true
  readonly query?: QuerySchema
  /** Optional request headers, each with what it does. */
  readonly headers?: Readonly<Record<string, string>>
  /** The schemas of the request body, by media type. The body is required. */
  readonly body?: Readonly<Record<string, Schema>>
  readonly answers: readonly Answer[]
  /** Besides those that each route can have. */
  readonly errors: readonly DescribedError[]
}

/** A response that is no error of the list in `errors.ts`. */
export interface Answer {
  readonly status: number
  readonly text: string
  /** `application/json` unless it is set. */
  readonly mediaType?: string
  /** Null for a response without a body. */
  readonly schema: Schema | null
}

/** A code with the status of its own, or with another one that the route gives it. */
export type DescribedError = ErrorCode | { readonly code: ErrorCode; readonly status: number }
