/**
 * docs/asyncapi.yaml, validated by the parser of AsyncAPI, without the network. `sh test/install
 * long` installs the parser in tmp/asyncapi-parser.
 */

import { beforeAll, expect, test } from "bun:test"
import { existsSync, readFileSync } from "node:fs"
import { join } from "node:path"

const ROOT = join(import.meta.dir, "../..")
const PARSER = join(ROOT, "tmp/asyncapi-parser/node_modules/@asyncapi/parser")
const DOCUMENT = readFileSync(join(ROOT, "docs/asyncapi.yaml"), "utf8")
/** Severities of the parser: 0 error, 1 warning, 2 information, 3 hint. */
const WARNING = 1

interface Diagnostic {
  readonly severity: number
  readonly message: string
  readonly path: readonly string[]
}

let parser: { readonly validate: (text: string) => Promise<readonly Diagnostic[]> }

beforeAll(async () => {
  if (!existsSync(PARSER)) throw new Error("This test needs its parser: sh test/install long")
  const { Parser } = await import(PARSER)
  parser = new Parser()
})

async function faultsOf(text: string): Promise<string[]> {
  const diagnostics = await parser.validate(text)
  return diagnostics
    .filter(({ severity }) => severity <= WARNING)
    .map(({ path, message }) => `${path.join(".")}: ${message}`)
}

test("docs/asyncapi.yaml has no errors and no warnings", async () => {
  expect(await faultsOf(DOCUMENT)).toEqual([])
})

test.each([
  ["action: send", "action: publish", "action"],
  ['$ref: "#/channels/receipts"', '$ref: "#/channels/nothing"', "nothing"],
  ["is: routingKey", "is: topic", "amqp"],
])("a document with another %s is refused", async (part, other, told) => {
  expect(DOCUMENT).toContain(part)
  const faults = await faultsOf(DOCUMENT.replace(part, other))
  expect(faults.join("\n")).toContain(told)
})
