/** `POST /devices/:id/send`: bodies, refusals, ids and outcomes. */

import { describe, expect, test } from "bun:test"
import {
  type CommandOptions,
  MAX_OPTION_BYTES,
  NO_OPTIONS,
} from "../../src/commands/command-options.ts"
import type { SendResult } from "../../src/commands/http-sender.ts"
import { maxBodyBytes } from "../../src/http/app.ts"
import {
  type Body,
  chunked,
  expectRefusal,
  MAX_LINE_BYTES,
  MAX_REPLY_MS,
  sidecar,
  WRITTEN,
} from "./app-harness.ts"

describe("POST /devices/:id/send: what becomes a command", () => {
  test("text/plain is the line, byte for byte", async () => {
    const { postText, sent } = sidecar()
    const line = new Uint8Array([0, 1, 9, 32, 127, 128, 254, 255, 0])
    const response = await postText(line)
    expect(response.status).toBe(200)
    expect(response.headers.get("content-type")).toStartWith("application/json")
    const { connection_id, epoch } = WRITTEN
    expect(await response.json()).toEqual({ outcome: "written", connection_id, epoch })
    expect(sent).toEqual([
      { id: "d", body: line, ttlMs: null, messageId: null, options: NO_OPTIONS },
    ])
  })

  test.each(["text/plain;charset=utf-8", "TEXT/Plain ; charset=utf-8"])("%s too", async (type) => {
    const { post, sent } = sidecar()
    expect((await post("hé", type)).status).toBe(200)
    expect(sent[0]?.body).toEqual(new TextEncoder().encode("hé"))
  })

  test.each(["application/json", "Application/JSON; charset=utf-8"])("%s", async (type) => {
    const { post, sent } = sidecar()
    const body = JSON.stringify({ line: "on\t\0é😀", ttl_ms: 1_500, message_id: "m-1" })
    expect((await post(body, type)).status).toBe(200)
    const line = new TextEncoder().encode("on\t\0é😀")
    expect(sent).toEqual([
      { id: "d", body: line, ttlMs: 1_500, messageId: "m-1", options: NO_OPTIONS },
    ])
  })

  test("JSON with a supersede key and a reply, and the trace context of the request", async () => {
    const { routes, sent } = sidecar()
    const trace = { traceparent: "00-4bf92f35-00f067aa-01", tracestate: "a=1" }
    const body = { line: "x", supersede_key: "k", reply_token: "r1", reply_timeout_ms: 200 }
    const response = await routes.request("/devices/d/send", {
      method: "POST",
      headers: { "content-type": "application/json", ...trace },
      body: JSON.stringify(body),
    })
    expect(response.status).toBe(200)
    const reply = {
      condition: { kind: "token", token: new TextEncoder().encode("r1") },
      timeoutMs: 200,
    }
    expect(sent[0]?.options).toEqual({
      holdMs: null,
      supersedeKey: "k",
      reply,
      trace,
    } as CommandOptions)
    await routes.request("/devices/d/send", {
      method: "POST",
      headers: { "content-type": "text/plain", ...trace },
      body: "x",
    })
    expect(sent[1]?.options).toEqual({ holdMs: null, supersedeKey: null, reply: null, trace })
  })

  test("the reply of an answered command is in the answer", async () => {
    const reply = { line: "r1 on", encoding: "utf-8", from_device_seq: 7 } as const
    const { postText } = sidecar({ send: async () => ({ ...WRITTEN, outcome: "answered", reply }) })
    const { connection_id, epoch } = WRITTEN
    const response = await postText("x")
    expect(await response.json()).toEqual({ outcome: "answered", connection_id, epoch, reply })
  })

  test("JSON with only the line", async () => {
    const { postJson, sent } = sidecar()
    expect((await postJson({ line: "" })).status).toBe(200)
    expect(sent).toEqual([
      { id: "d", body: new Uint8Array(), ttlMs: null, messageId: null, options: NO_OPTIONS },
    ])
  })

  test("an empty text is the empty line", async () => {
    const { postText, sent } = sidecar()
    expect((await postText(null)).status).toBe(200)
    expect(sent[0]?.body).toEqual(new Uint8Array())
  })

  test.each<[string, unknown]>([
    ["ttl_ms 1", { line: "x", ttl_ms: 1 }],
    ["ttl_ms of a day", { line: "x", ttl_ms: 86_400_000 }],
    ["ttl_ms 1.0", JSON.parse('{"line":"x","ttl_ms":1.0}')],
    ["message_id of one byte", { line: "x", message_id: " " }],
    ["message_id of 255 bytes", { line: "x", message_id: "m".repeat(255) }],
    ["message_id of 255 bytes in fewer characters", { line: "x", message_id: "€".repeat(85) }],
    ["a line as long as is allowed", { line: "x".repeat(MAX_LINE_BYTES) }],
    ["the same in fewer characters", { line: "é".repeat(MAX_LINE_BYTES / 2) }],
    ["a line of NULs, six characters of JSON each", { line: "\0".repeat(MAX_LINE_BYTES) }],
  ])("takes %s", async (_, body) => {
    const { postJson, sent, counted } = sidecar()
    const response = await postJson(body)
    expect(await response.text()).toContain("written")
    expect(sent).toHaveLength(1)
    expect(counted()).toEqual({})
  })

  test("accepts the longest JSON of one command within the bounds", async () => {
    const { postJson, sent } = sidecar()
    const body = {
      line: "\0".repeat(MAX_LINE_BYTES),
      ttl_ms: 86_400_000,
      message_id: "\u0001".repeat(255),
      supersede_key: "\u0001".repeat(MAX_OPTION_BYTES),
      reply_prefix: "\u0001".repeat(MAX_OPTION_BYTES),
      reply_timeout_ms: MAX_REPLY_MS,
    }
    const response = await postJson(body)
    expect(await response.text()).toContain("written")
    expect(sent).toHaveLength(1)
  })

  test("takes a body in chunks", async () => {
    const { postText, sent } = sidecar()
    expect((await postText(chunked(new Uint8Array([65, 66]), 8))).status).toBe(200)
    expect(sent[0]?.body).toEqual(new TextEncoder().encode("AB".repeat(8)))
  })
})

describe("POST /devices/:id/send: what is refused", () => {
  const json = (text: string): [string, string] => [text, "application/json"]
  const object = (value: unknown): [string, string] => json(JSON.stringify(value))

  const refused: [string, [string, string], string?][] = [
    ["no JSON", json("{line: 1}")],
    ["JSON cut short", json('{"line":"x"')],
    ["two values", json('{"line":"x"} {"line":"y"}')],
    ["nothing", json("")],
    ["blank", json("   ")],
    ["a NUL after JSON", json('{"line":"x"}\0')],
    ["a raw NUL in a string", json('{"line":"a\0b"}')],
    ["deep nesting", json("[".repeat(500))],
    ["null", object(null)],
    ["an array", object([])],
    ["an array of lines", object(["x"])],
    ["a number", object(5)],
    ["a string", object("x")],
    ["no line", object({}), "line"],
    ["no line but a time", object({ ttl_ms: 5 }), "line"],
    ["line 5", object({ line: 5 }), "line"],
    ["line null", object({ line: null }), "line"],
    ["line true", object({ line: true }), "line"],
    ["line []", object({ line: ["x"] }), "line"],
    ["line {}", object({ line: { toString: "x" } }), "line"],
    ["an unknown field", object({ line: "x", ttl: 5 }), "ttl"],
    ["a field of Object.prototype", object({ line: "x", toString: 5 }), "toString"],
    ["__proto__", json('{"line":"x","__proto__":{"ttl_ms":5}}'), "__proto__"],
    ["line by __proto__", json('{"__proto__":{"line":"x"}}')],
    ["ttl_ms 0", object({ line: "x", ttl_ms: 0 }), "ttl_ms"],
    ["ttl_ms -0", json('{"line":"x","ttl_ms":-0}'), "ttl_ms"],
    ["ttl_ms -1", object({ line: "x", ttl_ms: -1 }), "ttl_ms"],
    ["ttl_ms 1.5", object({ line: "x", ttl_ms: 1.5 }), "ttl_ms"],
    ['ttl_ms "5"', object({ line: "x", ttl_ms: "5" }), "ttl_ms"],
    ["ttl_ms null", object({ line: "x", ttl_ms: null }), "ttl_ms"],
    ["ttl_ms true", object({ line: "x", ttl_ms: true }), "ttl_ms"],
    ["ttl_ms 1e99", json('{"line":"x","ttl_ms":1e99}'), "ttl_ms"],
    ["ttl_ms 1e999", json('{"line":"x","ttl_ms":1e999}'), "ttl_ms"],
    ["ttl_ms more than a day", object({ line: "x", ttl_ms: 86_400_001 }), "ttl_ms"],
    ["message_id empty", object({ line: "x", message_id: "" }), "message_id"],
    ["message_id 5", object({ line: "x", message_id: 5 }), "message_id"],
    ["message_id null", object({ line: "x", message_id: null }), "message_id"],
    ["256 bytes", object({ line: "x", message_id: "m".repeat(256) }), "message_id"],
    ["256 bytes as 128 é", object({ line: "x", message_id: "é".repeat(128) }), "message_id"],
    ["supersede_key 5", object({ line: "x", supersede_key: 5 }), "supersede_key"],
    ["supersede_key empty", object({ line: "x", supersede_key: "" }), "supersede_key"],
    ["129 bytes", object({ line: "x", supersede_key: "k".repeat(129) }), "supersede_key"],
    ["two replies", object({ line: "x", reply_token: "a", reply_next: true }), "exactly one"],
    ["reply_token of words", object({ line: "x", reply_token: "a b" }), "reply_token"],
    ['reply_next "true"', object({ line: "x", reply_next: "true" }), "reply_next"],
    ["reply_next false", object({ line: "x", reply_next: false }), "reply_next"],
    ["a time and no reply", object({ line: "x", reply_timeout_ms: 5 }), "needs one of reply_token"],
    [
      "more than MAX_REPLY_MS",
      object({ line: "x", reply_next: true, reply_timeout_ms: MAX_REPLY_MS + 1 }),
      "reply_timeout_ms",
    ],
    ["LF", object({ line: "a\nb" }), "LF"],
    ["LF alone", object({ line: "\n" }), "LF"],
    ["CR", object({ line: "a\rb" }), "CR"],
    ["CR LF at the end", object({ line: "a\r\n" }), "LF"],
    ["text with LF", ["a\n", "text/plain"], "LF"],
    ["text with CR", ["\ra", "text/plain"], "CR"],
    ["a form", ["line=x", "application/x-www-form-urlencoded"], "content type"],
    ["octets", ["x", "application/octet-stream"], "content type"],
    ["almost JSON", ['{"line":"x"}', "application/jsonx"], "content type"],
    ["a list of types", ["x", "text/plain, application/json"], "content type"],
    ["an empty type", ["x", ""], "content type"],
  ]
  for (const [name, [body, contentType], told = ""] of refused) {
    test(`400 invalid: ${name}`, async () => {
      const gateway = sidecar()
      const response = await gateway.post(body, contentType)
      expect(await expectRefusal(gateway, response, 400, "invalid")).toContain(told)
      expect(gateway.sent).toEqual([])
      expect(gateway.faults).toEqual([])
    })
  }

  test("400 invalid: no content type", async () => {
    const gateway = sidecar()
    const response = await gateway.post(new Uint8Array([65]))
    expect(await expectRefusal(gateway, response, 400, "invalid")).toContain("content type")
  })

  test("all faults of a JSON body are reported together", async () => {
    const gateway = sidecar()
    const response = await gateway.postJson({ line: 5, ttl_ms: 0, message_id: "", more: 1 })
    const message = await expectRefusal(gateway, response, 400, "invalid")
    for (const field of ["line:", "ttl_ms:", "message_id:", "more: is not known"])
      expect(message).toContain(field)
  })

  // Otherwise the device would get U+FFFD, three other bytes, with the outcome `written`.
  test.each<[string, Body]>([
    ["half a surrogate pair in line", '{"line":"\\ud800"}'],
    ["half a surrogate pair in message_id", '{"line":"x","message_id":"\\udc00"}'],
    [
      "JSON that is no UTF-8",
      new Uint8Array([...Buffer.from('{"line":"'), 0xff, ...Buffer.from('"}')]),
    ],
  ])("400 invalid: %s", async (_, body) => {
    const gateway = sidecar()
    const response = await gateway.post(body, "application/json")
    await expectRefusal(gateway, response, 400, "invalid")
    expect(gateway.sent).toEqual([])
  })

  test.each<[string, string]>([
    ["one byte more", "x".repeat(MAX_LINE_BYTES + 1)],
    ["one byte more in fewer characters", `é${"x".repeat(MAX_LINE_BYTES - 1)}`],
    ["as many characters of four bytes", "😀".repeat(MAX_LINE_BYTES)],
    ["one byte more, and it is LF", `${"x".repeat(MAX_LINE_BYTES)}\n`],
  ])("413 too_large: %s, as text and as JSON", async (_, line) => {
    for (const way of ["postText", "postJson"] as const) {
      const gateway = sidecar()
      const response = await gateway[way](way === "postText" ? line : ({ line } as never))
      await expectRefusal(gateway, response, 413, "too_large")
      expect(gateway.sent).toEqual([])
    }
  })

  test("413 too_large: a body over the limit, with and without Content-Length", async () => {
    const most = maxBodyBytes(MAX_LINE_BYTES)
    const blank = (bytes: number) => `{"line":"x"${" ".repeat(bytes - 12)}}`
    const fits = sidecar()
    expect((await fits.post(blank(most), "application/json")).status).toBe(200)

    for (const told of [true, false]) {
      const gateway = sidecar()
      const body = new TextEncoder().encode(blank(most + 1))
      const response = await gateway.routes.request("/devices/d/send", {
        method: "POST",
        body: told ? body : chunked(body, 1),
        headers: {
          "content-type": "application/json",
          ...(told ? { "content-length": String(body.length) } : {}),
        },
      })
      await expectRefusal(gateway, response, 413, "too_large")
      expect(gateway.sent).toEqual([])
    }
  })

  test("an endless body is read only up to the limit", async () => {
    const gateway = sidecar()
    let pulled = 0
    const endless = new ReadableStream<Uint8Array>({
      pull(controller) {
        pulled += 1
        controller.enqueue(new Uint8Array(100))
      },
    })
    await expectRefusal(gateway, await gateway.postText(endless), 413, "too_large")
    expect(pulled * 100).toBeLessThan(maxBodyBytes(MAX_LINE_BYTES) + 500)
  })

  // A client that closes its connection is not a defect of the gateway and must not fill the log
  // with faults.
  test("an incomplete body is not counted as a fault", async () => {
    for (const contentType of ["text/plain", "application/json"]) {
      const gateway = sidecar()
      const broken = new ReadableStream<Uint8Array>({
        start: (controller) => controller.enqueue(new Uint8Array([65])),
        pull: (controller) => controller.error(new Error("the client went away")),
      })
      await gateway.post(broken, contentType)
      expect(gateway.faults).toEqual([])
      expect(gateway.sent).toEqual([])
    }
  })

  // Validators' own messages quote what they were given, however long and however secret it is.
  test.each<[string, string]>([
    ["a string", JSON.stringify("s3cret".repeat(50))],
    ["an unknown field", JSON.stringify({ line: "x", ["s3cret".repeat(50)]: 1 })],
    ["a line of the wrong type", JSON.stringify({ line: ["s3cret".repeat(50)] })],
    ["an id", JSON.stringify({ line: "x", message_id: "s3cret".repeat(50) })],
    ["no JSON", "s3cret".repeat(50)],
  ])("the response does not contain the body: %s", async (_, body) => {
    const gateway = sidecar()
    const response = await gateway.post(body, "application/json")
    const message = await expectRefusal(gateway, response, 400, "invalid")
    expect(message.length).toBeLessThan(300)
    expect(message).not.toContain("s3crets3cret")
  })
})

describe("POST /devices/:id/send: ids", () => {
  const alphabet = /[A-Za-z0-9._:-]/
  const path = (id: string) => `/devices/${id}/send`

  test("every character of the alphabet, as it is and percent-encoded", async () => {
    const id = Array.from({ length: 128 }, (_, code) => String.fromCharCode(code))
      .filter((character) => alphabet.test(character))
      .join("")
    const encoded = [...id].map((c) => `%${c.charCodeAt(0).toString(16)}`).join("")
    const { postText, sent } = sidecar()
    expect((await postText("x", path(id))).status).toBe(200)
    expect((await postText("x", path(encoded))).status).toBe(200)
    expect(sent.map((request) => request.id)).toEqual([id, id])
  })

  test("128 characters", async () => {
    const { postText, sent } = sidecar()
    expect((await postText("x", path("i".repeat(128)))).status).toBe(200)
    expect(sent[0]?.id).toBe("i".repeat(128))
  })

  test("no other character of ASCII, wherever it stands", async () => {
    const odd = Array.from({ length: 128 }, (_, code) => code).filter(
      (code) => !alphabet.test(String.fromCharCode(code)),
    )
    expect(odd).toHaveLength(128 - 66)
    for (const code of odd) {
      const encoded = `%${code.toString(16).padStart(2, "0")}`
      for (const id of [`${encoded}b`, `a${encoded}b`, `a${encoded}`]) {
        const gateway = sidecar()
        const response = await gateway.postText("x", path(id))
        await expectRefusal(gateway, response, 400, "invalid")
        expect(gateway.sent).toEqual([])
      }
    }
  })

  test.each([
    ["129 characters", "i".repeat(129)],
    ["10,000 characters", "i".repeat(10_000)],
    ["é", encodeURIComponent("é")],
    ["an emoji", encodeURIComponent("😀")],
    ["letters of another alphabet that look the same", encodeURIComponent("а")],
    ["digits of another alphabet", encodeURIComponent("٣")],
    ["encoded twice", "a%2541"],
    ["an encoding cut short", "a%4"],
    ["no encoding", "%zz"],
    ["no UTF-8", "%ff%fe"],
    ["an overlong slash", "%c0%af"],
    ["a way up", "..%2f..%2fetc"],
    ["a plus for a space", "a+b"],
    ["a queue pattern", "%23"],
  ])("400 invalid: %s", async (_, id) => {
    const gateway = sidecar()
    await expectRefusal(gateway, await gateway.postText("x", path(id)), 400, "invalid")
    expect(gateway.sent).toEqual([])
  })

  test("an id is refused before the body is read", async () => {
    const gateway = sidecar()
    const message = await expectRefusal(
      gateway,
      await gateway.postText("a\n", path("%20")),
      400,
      "invalid",
    )
    expect(message).toContain("id")
  })
})

describe("POST /devices/:id/send: outcomes", () => {
  const receipt = { ...WRITTEN, connection_id: null, epoch: null, detail: "why it ended" }
  const answers: Record<
    SendResult["outcome"],
    { result: SendResult; status: number; code: string }
  > = {
    written: { result: WRITTEN, status: 200, code: "" },
    answered: {
      result: {
        ...{ ...WRITTEN, outcome: "answered" },
        reply: { line: "ok", encoding: "utf-8", from_device_seq: 0 },
      },
      status: 200,
      code: "",
    },
    held: { result: { outcome: "held", expires_at: 1_700_000_600_000 }, status: 202, code: "" },
    offline: { result: { ...receipt, outcome: "offline" }, status: 404, code: "offline" },
    closed: { result: { ...receipt, outcome: "closed" }, status: 404, code: "closed" },
    duplicate: { result: { ...receipt, outcome: "duplicate" }, status: 409, code: "duplicate" },
    late: { result: { ...receipt, outcome: "late" }, status: 409, code: "late" },
    invalid: { result: { ...receipt, outcome: "invalid" }, status: 400, code: "invalid" },
    too_large: { result: { ...receipt, outcome: "too_large" }, status: 413, code: "too_large" },
    slow_device: {
      result: { ...receipt, outcome: "slow_device" },
      status: 503,
      code: "slow_device",
    },
    no_reply: { result: { ...receipt, outcome: "no_reply" }, status: 504, code: "no_reply" },
    superseded: { result: { ...receipt, outcome: "superseded" }, status: 409, code: "superseded" },
    cancelled: { result: { ...receipt, outcome: "cancelled" }, status: 409, code: "cancelled" },
    hold_full: { result: { ...receipt, outcome: "hold_full" }, status: 429, code: "hold_full" },
    expired: { result: { ...receipt, outcome: "expired" }, status: 504, code: "expired" },
    unreachable: { result: { outcome: "unreachable" }, status: 503, code: "broker_away" },
    busy: { result: { outcome: "busy" }, status: 503, code: "busy" },
    timeout: { result: { outcome: "timeout" }, status: 504, code: "timeout" },
  }

  for (const [outcome, { result, status, code }] of Object.entries(answers)) {
    test(`${outcome}: ${status}`, async () => {
      const gateway = sidecar({ send: async () => result })
      const response = await gateway.postText("x")
      if (status < 300) {
        expect(response.status).toBe(status)
        expect(gateway.counted()).toEqual({})
        return
      }
      const message = await expectRefusal(gateway, response, status, code)
      if ("detail" in result) expect(message).toBe("why it ended")
      expect(response.headers.has("retry-after")).toBe(status === 503)
    })
  }

  test("an exception while sending is 500, with details in the log only", async () => {
    const send = () => Promise.reject(new Error("amqp://user:hidden@broker"))
    const gateway = sidecar({ send })
    const message = await expectRefusal(gateway, await gateway.postText("x"), 500, "internal")
    expect(message).not.toContain("hidden")
    expect(message).not.toContain(import.meta.file)
    expect(gateway.faults.map((fault) => fault.message)).toEqual(["amqp://user:hidden@broker"])
  })
})
