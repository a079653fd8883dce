/**
 * The OpenAPI document: valid, complete, and as strict as the server. `localApp` compares the
 * answers of all tests of this folder with it.
 */

import { describe, expect, test } from "bun:test"
import { Validator } from "@seriousme/openapi-schema-validator"
import fc from "fast-check"
import * as v from "valibot"
import { MAX_OPTION_BYTES } from "../../src/commands/command-options.ts"
import { wellFormed, wholeNumber } from "../../src/http/body-faults.ts"
import { ERROR_STATUS } from "../../src/http/errors.ts"
import { inputSchema, outputSchema, queryParameters } from "../../src/http/json-schema.ts"
import { DESCRIPTIONS, document } from "../../src/http/openapi.ts"
import { answerFault, DOCUMENT, operationOf } from "../support/described-answers.ts"
import { valueFault } from "../support/json-schemas.ts"
import { checkAsync } from "../support/property.ts"
import { MAX_LINE_BYTES, sidecar } from "./app-harness.ts"

describe("the document", () => {
  test("is valid OpenAPI 3.1", async () => {
    const result = await new Validator().validate(structuredClone(DOCUMENT))
    expect(result).toEqual({ valid: true })
  })

  test("describes each route of the app, those for browsers excepted, and no other", () => {
    const { routes } = sidecar({ messages: { tap: () => () => undefined } }).routes
    const ofApp = routes.routes
      .filter(({ method, path }) => method !== "ALL" && path !== "/" && !path.startsWith("/page/"))
      .map(({ method, path }) => `${method} ${path}`)
    const described = DESCRIPTIONS.map(({ method, path }) => `${method.toUpperCase()} ${path}`)
    const faults = [
      ...ofApp
        .filter((route) => !described.includes(route))
        .map((route) => `${route} has no description: add one beside its handler`),
      ...described
        .filter((route) => !ofApp.includes(route))
        .map((route) => `${route} is described and does not exist`),
    ]
    expect(faults).toEqual([])
    expect(new Set(described).size).toBe(described.length)
  })

  test("names each operation once", () => {
    const names = DESCRIPTIONS.map(({ name }) => name)
    expect(new Set(names).size).toBe(names.length)
  })

  test("has each error code, with its status", () => {
    const described = Object.values(DOCUMENT.paths).flatMap((operations) =>
      Object.values(operations).flatMap((operation) =>
        Object.entries((operation as { responses: object }).responses),
      ),
    )
    const codes = Object.keys(ERROR_STATUS)
    const missing = codes.filter((code) => {
      const status = String(ERROR_STATUS[code as keyof typeof ERROR_STATUS])
      return !described.some(
        ([key, response]) => key === status && JSON.stringify(response).includes(code),
      )
    })
    expect(missing).toEqual([])
    expect(Object.keys(DOCUMENT.components.responses)).toEqual(codes)
  })

  test("is served as it was made, with the version", async () => {
    const response = await sidecar({ version: "4.5.6" }).get("/openapi.json")
    expect(response.status).toBe(200)
    expect(response.headers.get("content-type")).toBe("application/json")
    const served = JSON.stringify(document("4.5.6", DESCRIPTIONS))
    expect(await response.text()).toBe(served)
  })
})

describe("a route that fails the comparison", () => {
  const answer = { method: "GET", path: "/bans", status: 200, contentType: "application/json" }

  test.each<[string, Partial<Parameters<typeof answerFault>[0]>, string | null]>([
    ["nothing is wrong", { body: '{"bans":[]}' }, null],
    ["a field is missing", { body: "{}" }, "must have required property 'bans'"],
    ["a field is not described", { body: '{"bans":[],"more":1}' }, "must NOT have additional"],
    [
      "one below is not described",
      { body: '{"bans":[{"id":"a","until":1,"connects":2,"x":3}]}' },
      "must NOT have additional",
    ],
    ["the status is not described", { status: 404, body: "{}" }, "listBans 404 is not described"],
    [
      "the media type is not described",
      { contentType: "text/plain", body: "" },
      "without text/plain",
    ],
    [
      "a code is not one of the status",
      { status: 403, body: '{"error":{"code":"busy","message":""}}' },
      "must be equal to one of",
    ],
    ["the route does not exist", { path: "/band", body: "" }, "GET /band is not described"],
  ])("%s", (_, changes, fault) => {
    const found = answerFault({ body: "", ...answer, ...changes })
    if (fault === null) expect(found).toBeNull()
    else expect(found).toContain(fault)
  })
})

describe("a schema", () => {
  test("keeps what JSON Schema cannot express as a limit that is not too strict", () => {
    const text = v.pipe(v.string(), wellFormed(), v.nonEmpty(), v.maxBytes(5))
    const description = "at most 5 bytes of UTF-8"
    expect(inputSchema(text)).toEqual({ type: "string", minLength: 1, maxLength: 5, description })
  })

  test.each<[string, v.GenericSchema]>([
    [
      "a check",
      v.pipe(
        v.string(),
        v.check((value) => value !== "x"),
      ),
    ],
    [
      "a check of items",
      v.pipe(
        v.array(v.any()),
        v.everyItem((item) => item === 1),
      ),
    ],
    ["a number of words", v.pipe(v.string(), v.maxWords("en", 3))],
    ["a date", v.object({ at: v.date() })],
  ])("with %s is refused, not weakened silently", (_, schema) => {
    expect(() => inputSchema(schema)).toThrow("cannot be converted to JSON Schema")
    expect(() => outputSchema(schema)).toThrow("cannot be converted to JSON Schema")
  })

  test("has the fields with a default that a response always has", () => {
    const schema = v.object({ a: v.optional(v.string(), ""), b: v.optional(v.string()) })
    expect(outputSchema(schema).required).toEqual(["a"])
    expect(inputSchema(schema).required).toEqual([])
  })

  test("of a query has a number where the server reads one from digits", () => {
    const limit = v.optional(v.pipe(v.string(), v.transform(Number), wholeNumber(1, 9)), "5")
    const schema = { type: "integer" as const, minimum: 1, maximum: 9, default: 5 }
    expect(queryParameters(v.object({ limit }))).toEqual([{ name: "limit", schema }])
  })
})

describe("a request that the server takes is one that the document allows", () => {
  const bodies = {
    "/devices/d/send": fc.record(
      {
        line: fc.oneof(fc.string({ maxLength: MAX_LINE_BYTES }), fc.integer()),
        ttl_ms: fc.oneof(fc.integer({ min: -1, max: 86_400_001 }), fc.double()),
        message_id: fc.string({ unit: "binary", maxLength: 260 }),
        hold_ms: fc.integer({ min: -1, max: 604_800_001 }),
        supersede_key: fc.string({ unit: "binary", maxLength: MAX_OPTION_BYTES + 2 }),
        reply_token: fc.string({ maxLength: MAX_OPTION_BYTES + 2 }),
        reply_next: fc.constantFrom(true, false, "true"),
        reply_timeout_ms: fc.integer({ min: 0, max: 60_001 }),
        more: fc.integer(),
      },
      { requiredKeys: ["line"] },
    ),
    "/broadcasts": fc.record(
      {
        to: fc.oneof(
          fc.constantFrom("all", "none"),
          fc.record({ prefix: fc.string({ maxLength: 130 }) }),
          fc.record({ ids: fc.array(fc.constantFrom("lock:1", "", "a b", 1)) }),
        ),
        line: fc.string({ maxLength: MAX_LINE_BYTES }),
        per_s: fc.oneof(fc.integer({ min: -1, max: 100_001 }), fc.double()),
        supersede_key: fc.string({ maxLength: MAX_OPTION_BYTES + 2 }),
      },
      { requiredKeys: ["to", "line"] },
    ),
    "/gate": fc.record(
      {
        open: fc.oneof(fc.boolean(), fc.constant("true")),
        prefix: fc.string({ maxLength: 130 }),
        retry_after_ms: fc.oneof(fc.constant(null), fc.integer({ min: -1, max: 3_600_001 })),
      },
      { requiredKeys: ["open"] },
    ),
  }

  for (const [path, body] of Object.entries(bodies)) {
    const method = path === "/gate" ? "PUT" : "POST"

    test(`${method} ${path}`, async () => {
      const counts = { workers: 1, matched: 0, outcomes: {}, unfinished: 0 }
      const { routes } = sidecar({ broadcast: async () => ({ kind: "counts", ...counts }) })
      const schema = bodySchema(method, path)
      const headers = { "content-type": "application/json" }
      let taken = 0
      const isAllowed = fc.asyncProperty(body, async (value) => {
        const text = JSON.stringify(value)
        const { status } = await routes.request(path, { method, headers, body: text })
        if (status >= 300) return
        taken += 1
        expect(valueFault(schema, JSON.parse(text))).toBeNull()
      })
      await checkAsync(isAllowed, REQUESTS)
      expect(taken).toBeGreaterThan(0)
    })
  }

  test.each<[string, string, unknown]>([
    ["PUT", "/gate", {}],
    ["PUT", "/gate", { open: 1 }],
    ["PUT", "/gate", { open: true, prefix: "ä" }],
    ["PUT", "/gate", { open: true, more: 1 }],
    ["POST", "/broadcasts", { to: "none", line: "x" }],
    ["POST", "/broadcasts", { to: { ids: ["a b"] }, line: "x" }],
    ["POST", "/broadcasts", { to: "all", line: "x", per_s: 0 }],
    ["POST", "/devices/d/send", { line: "x", ttl_ms: 1.5 }],
    ["POST", "/devices/d/send", { line: "x", message_id: "m".repeat(256) }],
    ["POST", "/devices/d/send", { line: "x", hold_ms: 0 }],
    ["POST", "/devices/d/send", { line: "x", supersede_key: "" }],
  ])("and others are not: %s %s %j", (method, path, value) => {
    expect(valueFault(bodySchema(method, path), value)).not.toBeNull()
  })
})

const REQUESTS = 1_000

function bodySchema(method: string, path: string): object {
  const schema = operationOf(method, path)?.requestBody?.content?.["application/json"]?.schema
  if (schema === undefined) throw new Error(`${method} ${path} is described without a JSON body`)
  return schema
}
