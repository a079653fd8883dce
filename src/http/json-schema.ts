/**
 * Converts the schemas of requests and responses to JSON Schema (draft 2020-12, which OpenAPI 3.1
 * uses). Pure.
 *
 * A check that JSON Schema cannot express is never dropped silently: the conversion throws, unless
 * it is one of these.
 *
 * - `maxBytes(n)` becomes `maxLength: n`, which each valid text satisfies, and a description.
 * - `wellFormed()` needs no keyword: an instance of JSON Schema has no lone surrogates.
 * - `everyItem(…)` after `metadata({ items: … })`, which describes what is checked.
 *
 * `metadata` adds keywords to a schema whose value is checked elsewhere, such as an option of a
 * command. So the document may allow more than the server, and never less.
 */

import { type ConversionConfig, type JsonSchema, toJsonSchema } from "@valibot/to-json-schema"
import type * as v from "valibot"
import { isWellFormed } from "./body-faults.ts"
import type { QuerySchema, Schema } from "./route-description.ts"

type OverrideAction = NonNullable<ConversionConfig["overrideAction"]>
type OverrideSchema = NonNullable<ConversionConfig["overrideSchema"]>

/** The schema of what a client sends. @throws when a part of it cannot be expressed. */
export function inputSchema(schema: Schema): JsonSchema {
  return convert(schema, { typeMode: "input" })
}

/** The schema of what the server sends. @throws as above. */
export function outputSchema(schema: Schema): JsonSchema {
  return convert(schema, { typeMode: "output", overrideSchema: withDefaults })
}

export interface QueryParameter {
  readonly name: string
  readonly schema: JsonSchema
}

/**
 * The parameters of a query. Their values are strings on the wire; a number that is read from its
 * digits is described as a number.
 * @throws as above.
 */
export function queryParameters({ entries }: QuerySchema): QueryParameter[] {
  return Object.entries(entries).map(([name, entry]) => {
    const schema = convert(entry as Schema, { typeMode: "output" })
    if (schema.type === "integer" && typeof schema.default === "string") {
      schema.default = Number(schema.default)
    }
    return { name, schema }
  })
}

function convert(schema: Schema, config: ConversionConfig): JsonSchema {
  const { $schema: _, ...converted } = toJsonSchema(schema, {
    ...{ target: "draft-2020-12", errorMode: "throw", overrideAction },
    ...config,
  })
  return converted
}

const overrideAction: OverrideAction = ({ valibotAction, jsonSchema, errors }) => {
  if (errors === undefined) return undefined
  const action = valibotAction as { readonly type: string; readonly requirement?: unknown }
  const { type, requirement } = action
  if (type === "max_bytes" && typeof requirement === "number") {
    const description = `at most ${requirement} bytes of UTF-8`
    return { ...jsonSchema, maxLength: requirement, description }
  }
  if (type === "check" && requirement === isWellFormed) return jsonSchema
  const { items = {} } = jsonSchema
  if (type === "every_item" && Object.keys(items).length > 0) return jsonSchema
  return undefined
}

/** A field with a default is always present in a value that was parsed. */
const withDefaults: OverrideSchema = ({ valibotSchema, jsonSchema }) => {
  if (!("entries" in valibotSchema) || jsonSchema.required === undefined) return undefined
  const entries = Object.entries(valibotSchema.entries as v.ObjectEntries)
  const given = entries.filter(([, entry]) => "default" in entry && entry.default !== undefined)
  return { ...jsonSchema, required: [...jsonSchema.required, ...given.map(([name]) => name)] }
}
