/**
 * docs/asyncapi.yaml against the sources: names, the headers that the code reads, and the examples
 * of the documents. `integration/asyncapi.test.ts` compares real messages with it, and
 * `long/asyncapi.long.ts` validates it with the parser of AsyncAPI.
 */

import { describe, expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import fc from "fast-check"
import type { HeaderValue, MessageProperties } from "../src/broker/broker.ts"
import { EXCHANGES, FLEET_EXCHANGE } from "../src/broker/topology.ts"
import { readBroadcast } from "../src/commands/broadcast-message.ts"
import { INTERNAL_HEADERS, readCommand } from "../src/commands/command-message.ts"
import { MAX_OPTION_BYTES, readTrace } from "../src/commands/command-options.ts"
import { ASYNCAPI, MESSAGES, type MessageDescription } from "./support/asyncapi.ts"
import { messageFault } from "./support/described-messages.ts"
import { ROOT } from "./support/generate-docs.ts"
import { valueFault } from "./support/json-schemas.ts"
import { CHEAP_RUNS, check } from "./support/property.ts"

const FORMAT = {
  framing: "line",
  maxLineBytes: 64,
  maxHoldMs: 604_800_000,
  maxReplyMs: 60_000,
} as const
const BODY = Buffer.from("open")

describe("the document", () => {
  test("is read from YAML as it was made", () => {
    const text = readFileSync(join(ROOT, "docs/asyncapi.yaml"), "utf8")
    expect(Bun.YAML.parse(text)).toEqual(JSON.parse(JSON.stringify(ASYNCAPI)))
  })

  test("has references that lead somewhere", () => {
    const references = [...JSON.stringify(ASYNCAPI).matchAll(/"\$ref":"#\/([^"]+)"/g)]
    expect(references.length).toBeGreaterThan(10)
    const isThere = (path: string) =>
      path.split("/").reduce<unknown>((at, key) => (at as Record<string, unknown>)?.[key], ASYNCAPI)
    const dead = references.map(([, path = ""]) => path).filter((path) => !isThere(path))
    expect(dead).toEqual([])
  })

  test("has operations with messages of their channels, and uses each message", () => {
    const used = new Set<string>()
    for (const { action, channel, messages } of Object.values(ASYNCAPI.operations)) {
      expect(["send", "receive"]).toContain(action)
      for (const { $ref } of messages) {
        expect($ref).toStartWith(`${channel.$ref}/messages/`)
        used.add($ref.split("/").at(-1) ?? "")
      }
    }
    for (const { reply } of Object.values(ASYNCAPI.operations)) {
      for (const { $ref } of reply?.messages ?? []) used.add($ref.split("/").at(-1) ?? "")
    }
    expect([...used].sort()).toEqual(Object.keys(MESSAGES).sort())
  })

  test("describes the parameters of addresses", () => {
    for (const channel of Object.values(ASYNCAPI.channels)) {
      const named = [...(channel.address ?? "").matchAll(/\{(\w+)\}/g)].map(([, name]) => name)
      expect(Object.keys("parameters" in channel ? channel.parameters : {})).toEqual(
        named as string[],
      )
    }
  })

  test("has all exchanges except the one between workers", () => {
    const described = JSON.stringify(ASYNCAPI.channels)
    const missing = EXCHANGES.filter(({ name, type }) => {
      return !described.includes(`"exchange":{"name":"${name}","type":"${type}"`)
    })
    expect(missing.map(({ name }) => name)).toEqual([FLEET_EXCHANGE])
  })

  test("names headers, queues and exchanges of docs/PROTOCOL.md alone", () => {
    const text = readFileSync(join(ROOT, "docs/PROTOCOL.md"), "utf8")
    const headers = Object.values(MESSAGES).flatMap(({ headers }) =>
      Object.keys(headers.properties ?? {}),
    )
    const exchanges = EXCHANGES.map(({ name }) => name).filter((name) => name !== FLEET_EXCHANGE)
    const missing = [...headers, ...exchanges].filter((name) => !text.includes(`\`${name}`))
    expect(missing).toEqual([])
  })
})

/** Headers that record which of them are read. */
function recorded(headers: Record<string, HeaderValue>, read: Set<string>) {
  return new Proxy(headers, {
    get: (target, name) => {
      if (typeof name === "string") read.add(name)
      return Reflect.get(target, name)
    },
  })
}

describe("headers", () => {
  const namesOf = ({ headers }: MessageDescription) => Object.keys(headers.properties ?? {}).sort()

  test("of a command are those that the gateway reads", () => {
    const read = new Set<string>()
    const properties = { headers: recorded({ connection_id: "gw1.0.mb2k3f9zq7x2.1" }, read) }
    expect(readCommand(BODY, properties, 0, FORMAT)).not.toHaveProperty("outcome")
    const own = [...read].filter((name) => !INTERNAL_HEADERS.includes(name))
    expect(own.sort()).toEqual(namesOf(MESSAGES.command))
  })

  test("of a broadcast are those that the gateway reads", () => {
    const read = new Set<string>()
    const headers = recorded({ to: "all" }, read)
    expect(readBroadcast(BODY, { headers }, FORMAT)).not.toHaveProperty("outcome")
    readTrace(headers)
    expect([...read].sort()).toEqual(namesOf(MESSAGES.broadcast))
  })

  const number = fc.oneof(
    fc.integer({ min: -1, max: 20 }),
    fc.bigInt({ min: -1n, max: 1_000_000_000_000n }),
    fc.constantFrom("5", "", "x", "-1", 1.5, null, true),
  )
  const text = fc.oneof(
    fc.string({ unit: "binary", maxLength: MAX_OPTION_BYTES + 2 }),
    fc.constantFrom("a b", "a", "", 5, null),
  )
  const id = fc.constantFrom("lock:1", "a", "a b", "", 5, "gw1.0.mb2k3f9zq7x2.1")
  const messages = {
    command: {
      read: (properties: MessageProperties) => readCommand(BODY, properties, 0, FORMAT),
      headers: fc.record(
        {
          ...{ connection_id: id, device_id: id, to_device_seq: number, hold_ms: number },
          ...{ supersede_key: text, reply_token: text, reply_prefix: text },
          reply_next: fc.constantFrom<HeaderValue[]>(true, false, "true", "false", 1),
          ...{ reply_timeout_ms: number, traceparent: fc.string(), more: number },
        },
        { requiredKeys: [] },
      ),
    },
    broadcast: {
      read: (properties: MessageProperties) => readBroadcast(BODY, properties, FORMAT),
      headers: fc.record(
        {
          to: fc.constantFrom("all", "none", 1),
          to_prefix: id,
          to_ids: fc.oneof(fc.array(id), fc.constantFrom("lock:1, lock:2", "", 1)),
          ...{ per_s: number, supersede_key: text },
        },
        { requiredKeys: [] },
      ),
    },
  }

  test.each(["command", "broadcast"] as const)(
    "of a %s are allowed when they are taken",
    (name) => {
      const { read, headers } = messages[name]
      let taken = 0
      const isAllowed = fc.property(headers, (given) => {
        const values: Record<string, HeaderValue> = { ...given }
        if ("outcome" in read({ headers: values })) return
        taken += 1
        const fault = messageFault(MESSAGES[name], { headers: values, properties: {}, body: BODY })
        expect(fault).toBeNull()
      })
      check(isAllowed, CHEAP_RUNS)
      expect(taken).toBeGreaterThan(0)
    },
  )

  test.each<[keyof typeof messages, object]>([
    ["command", {}],
    ["command", { device_id: "a b" }],
    ["command", { device_id: "a", to_device_seq: -1 }],
    ["command", { device_id: "a", hold_ms: "x" }],
    ["command", { device_id: "a", supersede_key: "" }],
    ["command", { device_id: "a", reply_token: "a b" }],
    ["command", { device_id: "a", reply_next: "yes" }],
    ["broadcast", {}],
    ["broadcast", { to: "none" }],
    ["broadcast", { to: "all", to_prefix: "a" }],
    ["broadcast", { to_ids: ["a b"] }],
    ["broadcast", { to: "all", per_s: 0 }],
  ])("of a %s are not: %j", (name, headers) => {
    expect(valueFault(MESSAGES[name].headers, headers)).not.toBeNull()
    expect(messages[name].read({ headers: { ...headers } })).toHaveProperty("outcome")
  })
})

describe("an example of the documents", () => {
  const files = ["*.md", "docs/*.md", "docs/examples/**/*"].flatMap((pattern) => [
    ...new Bun.Glob(pattern).scanSync({ cwd: ROOT }),
  ])
  const source = files.map((path) => readFileSync(join(ROOT, path), "utf8")).join("\n")
  const commands = source.match(/^amqp-(publish|consume) .*$/gm) ?? []
  const addresses = JSON.stringify(ASYNCAPI.channels)

  test.each(commands)("uses names and headers of the document: %s", (command) => {
    const options = [...command.matchAll(/--([a-z-]+)=(?:"([^"]*)"|'([^']*)'|(\S*))/g)].map(
      ([, name = "", ...values]) => [name, values.find((value) => value !== undefined)] as const,
    )
    const valuesOf = (name: string) => options.flatMap(([n, v = ""]) => (n === name ? [v] : []))
    for (const name of ["queue", "exchange", "routing-key"].flatMap(valuesOf)) {
      if (name !== "") expect(addresses).toContain(`"${name}"`)
    }
    if (command.startsWith("amqp-consume")) return
    const isBroadcast = valuesOf("exchange").includes("owsla.broadcast")
    const headers = valuesOf("header").map((header) => {
      const [, name, value = ""] = /^(\w+): (.*)$/.exec(header) ?? []
      return [name, value.replace(/<\w+>/, "id")] as const
    })
    const { headers: schema } = isBroadcast ? MESSAGES.broadcast : MESSAGES.command
    expect(headers.length).toBeGreaterThan(0)
    expect(valueFault(schema, Object.fromEntries(headers))).toBeNull()
  })

  test("in a program reads headers of a line, and writes those of a command", () => {
    const read = [...source.matchAll(/headers\["(\w+)"\]/g)].map(([, name = ""]) => name)
    const written = [...source.matchAll(/headers=\{"(\w+)":/g)].map(([, name = ""]) => name)
    expect(commands.length).toBeGreaterThan(2)
    expect(read.length).toBeGreaterThan(3)
    expect(written.length).toBeGreaterThan(0)
    const properties = (of: keyof typeof MESSAGES) => MESSAGES[of].headers.properties ?? {}
    expect(read.filter((name) => !(name in properties("line")))).toEqual([])
    expect(written.filter((name) => !(name in properties("command")))).toEqual([])
  })
})
