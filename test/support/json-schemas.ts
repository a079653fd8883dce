/** Compares values with the JSON Schemas of the OpenAPI and AsyncAPI documents, by ajv. */

import Ajv, { type ValidateFunction } from "ajv/dist/2020"

const ajv = new Ajv({ strict: false, allErrors: true, formats: { binary: true } })
const validators = { closed: new Map(), open: new Map() } satisfies Record<
  string,
  Map<object, ValidateFunction>
>

/**
 * Why the value does not match the schema; null when it does.
 *
 * @param fields whether an object may have fields that the schema does not name. The documents
 * allow them, for later versions.
 */
export function valueFault(
  schema: object,
  value: unknown,
  fields: "closed" | "open" = "closed",
): string | null {
  const known: Map<object, ValidateFunction> = validators[fields]
  let validate = known.get(schema)
  if (validate === undefined) {
    validate = ajv.compile(fields === "open" ? schema : (closed(schema) as object))
    known.set(schema, validate)
  }
  return validate(value) ? null : ajv.errorsText(validate.errors)
}

/** The schema without fields that it does not name. */
function closed(schema: unknown): unknown {
  if (Array.isArray(schema)) return schema.map(closed)
  if (typeof schema !== "object" || schema === null) return schema
  const entries = Object.entries(schema).map(([key, value]) => [key, closed(value)] as const)
  const { properties } = schema as { readonly properties?: object }
  const isOpen = properties === undefined || Object.keys(properties).length === 0
  return { ...(isOpen ? {} : { additionalProperties: false }), ...Object.fromEntries(entries) }
}
