/**
 * The routes of the fleet: the fleet query for each request, the response for each of its results,
 * and the requests that are refused before. Through `app.request()`, without a port.
 */

import { describe, expect, test } from "bun:test"
import { Counters } from "../../src/counters.ts"
import type { DeviceList, ListRequest } from "../../src/fleet/device-page.ts"
import type { DeviceView } from "../../src/fleet/device-view.ts"
import type { FleetQueryFailure } from "../../src/fleet/fleet-query.ts"
import type { AppDependencies } from "../../src/http/app.ts"
import { countedErrors } from "../support/counted-errors.ts"
import { localApp } from "../support/local-app.ts"
import { DEVICE } from "./app-harness.ts"
import { NO_HELD } from "./no-held.ts"
import { NO_LOG } from "./no-log.ts"
import { NO_RULES } from "./no-rules.ts"

const TOKEN = "first-token-0123456789"
const LIST: DeviceList = { devices: [DEVICE], total: 9, answered: 2, workers: 3 }
const FAILURES = {
  unreachable: { status: 503, code: "broker_away" },
  timeout: { status: 504, code: "timeout" },
  busy: { status: 503, code: "busy" },
} as const satisfies Record<FleetQueryFailure, { status: number; code: string }>

/** The app with a fleet query whose results the test sets, and which records its calls. */
class Subject {
  readonly counters = new Counters()
  readonly faults: Error[] = []
  /** `list`, `describe` or `kick`, each with what it was asked for. */
  readonly asked: (readonly ["list", ListRequest] | readonly ["describe" | "kick", string])[] = []
  list: DeviceList | FleetQueryFailure = LIST
  device: DeviceView | null | FleetQueryFailure = DEVICE
  readonly #routes

  constructor(tokens: string[] = []) {
    const one = (act: "describe" | "kick") => async (id: string) => {
      this.asked.push([act, id])
      return this.device
    }
    const fleetQuery: AppDependencies["fleetQuery"] = {
      list: async (request) => {
        this.asked.push(["list", request])
        return this.list
      },
      describe: one("describe"),
      kick: one("kick"),
    }
    const others = {
      framing: "line" as const,
      maxLineBytes: 16,
      maxReplyMs: 60_000,
      version: "1.2.3",
      startedAtMs: 0,
      nowMs: () => 0,
      report: () => ({}) as never,
      reports: async () => [],
      metricsText: async () => "",
      messages: null,
      ...NO_LOG,
      ...NO_RULES,
      ...NO_HELD,
      empty: () => undefined,
      send: async () => ({ outcome: "busy" }) as const,
    }
    const fault = (error: Error) => void this.faults.push(error)
    this.#routes = localApp({
      tokens,
      readTokens: [],
      counters: this.counters,
      fault,
      fleetQuery,
      ...others,
    })
  }

  request(path: string, method = "GET", headers: Record<string, string> = {}): Promise<Response> {
    return Promise.resolve(this.#routes.request(path, { method, headers }))
  }

  /** The code and message of an error, and that it was counted once and no other was. */
  async refused(response: Response, status: number, code: string): Promise<string> {
    const body = (await response.json()) as { error: { message: string } }
    expect<number>(response.status).toBe(status)
    expect(body as unknown).toEqual({ error: { code, message: expect.stringMatching(/./) } })
    expect(countedErrors(this.counters)).toEqual({ [code]: 1 })
    expect(response.headers.has("retry-after")).toBe(status === 503)
    return body.error.message
  }
}

describe("GET /devices", () => {
  test("returns the result of the fleet query", async () => {
    const response = await new Subject().request("/devices")
    expect(response.status).toBe(200)
    expect(response.headers.get("content-type")).toStartWith("application/json")
    expect(await response.json()).toEqual(LIST)
  })

  test("returns an empty list when there are no devices", async () => {
    const subject = new Subject()
    subject.list = { devices: [], total: 0, answered: 1, workers: 1 }
    expect(await (await subject.request("/devices")).json()).toEqual(subject.list)
  })

  const QUERIES: [string, ListRequest][] = [
    ["", { prefix: "", after: "", limit: 100 }],
    ["?limit=1", { prefix: "", after: "", limit: 1 }],
    ["?limit=1000", { prefix: "", after: "", limit: 1_000 }],
    ["?limit=007", { prefix: "", after: "", limit: 7 }],
    ["?prefix=lock:", { prefix: "lock:", after: "", limit: 100 }],
    ["?prefix=lock%3A1", { prefix: "lock:1", after: "", limit: 100 }],
    ["?prefix=&after=", { prefix: "", after: "", limit: 100 }],
    ["?after=lock:1&prefix=lock&limit=5", { prefix: "lock", after: "lock:1", limit: 5 }],
    [`?prefix=${"x".repeat(128)}`, { prefix: "x".repeat(128), after: "", limit: 100 }],
    ["?verbose=1", { prefix: "", after: "", limit: 100 }],
    [
      "?address=10.&paused_by=any&silent_ms=60000",
      {
        ...{ prefix: "", after: "", limit: 100 },
        filter: { address: "10.", paused_by: "any", silent_ms: 60_000 },
      },
    ],
    ["?prefix=a&silent_ms=0", { prefix: "a", after: "", limit: 100, filter: { silent_ms: 0 } }],
  ]

  test.each(QUERIES)("passes the query parameters on: %s", async (query, request) => {
    const subject = new Subject()
    expect((await subject.request(`/devices${query}`)).status).toBe(200)
    expect(subject.asked).toEqual([["list", request]])
  })

  test.each([
    "limit=0",
    "limit=0000",
    "limit=1001",
    "limit=10000",
    "limit=-1",
    "limit=1.5",
    "limit=1e2",
    "limit=0x10",
    "limit=%201",
    "limit=",
    "limit=ten",
    "limit=1%0a",
    "prefix=a%20b",
    "prefix=%0a",
    "prefix=lock%0a",
    "prefix=%00",
    "prefix=*",
    "prefix=%C3%A9",
    `prefix=${"x".repeat(129)}`,
    "after=a/b",
    `after=${"x".repeat(129)}`,
    "address=lock",
    "address=",
    "paused_by=nobody",
    "silent_ms=-1",
    "silent_ms=1.5",
  ])("is refused without a fleet query: %s", async (query) => {
    const subject = new Subject()
    const response = await subject.request(`/devices?${query}`)
    const message = await subject.refused(response, 400, "invalid")
    expect(message).toContain(query.slice(0, query.indexOf("=")))
    expect(subject.asked).toEqual([])
  })

  test("reports all faults of a query together, without its values", async () => {
    const subject = new Subject()
    const response = await subject.request("/devices?limit=s3cret&prefix=s3cret!&after=!")
    const message = await subject.refused(response, 400, "invalid")
    for (const name of ["limit: ", "prefix: ", "after: "]) expect(message).toContain(name)
    expect(message).not.toContain("s3cret")
  })

  test.each(Object.entries(FAILURES))("that ends as %s: %j", async (failure, { status, code }) => {
    const subject = new Subject()
    subject.list = failure as FleetQueryFailure
    await subject.refused(await subject.request("/devices"), status, code)
  })
})

/** The two routes for one device, alike in all but what they ask for. */
describe.each([
  ["GET", "", "describe"],
  ["DELETE", "/connection", "kick"],
] as const)("%s /devices/:id%s", (method, suffix, act) => {
  test("returns the description of the device", async () => {
    const subject = new Subject()
    const response = await subject.request(`/devices/lock:1${suffix}`, method)
    expect(response.status).toBe(200)
    expect(await response.json()).toEqual(DEVICE)
    expect(subject.asked).toEqual([[act, "lock:1"]])
    expect(countedErrors(subject.counters)).toEqual({})
  })

  test.each([
    ["gw.1.mb2k3f9zq7x2.1a", "gw.1.mb2k3f9zq7x2.1a"],
    ["lock%3A1", "lock:1"],
    ["x".repeat(128), "x".repeat(128)],
    ["send", "send"],
    ["__proto__", "__proto__"],
  ])("asks for the device or connection %s", async (path, id) => {
    const subject = new Subject()
    expect((await subject.request(`/devices/${path}${suffix}`, method)).status).toBe(200)
    expect(subject.asked).toEqual([[act, id]])
  })

  test.each(["a%20b", "%00", "lock%0a", "%C3%A9", "a%2Fb", "*", "x".repeat(129)])(
    "refuses what is no id without asking: %s",
    async (path) => {
      const subject = new Subject()
      const response = await subject.request(`/devices/${path}${suffix}`, method)
      await subject.refused(response, 400, "invalid")
      expect(subject.asked).toEqual([])
    },
  )

  test("is 404 when no worker holds it", async () => {
    const subject = new Subject()
    subject.device = null
    const response = await subject.request(`/devices/lock:1${suffix}`, method)
    await subject.refused(response, 404, "not_found")
  })

  test.each(Object.entries(FAILURES))("that ends as %s: %j", async (failure, { status, code }) => {
    const subject = new Subject()
    subject.device = failure as FleetQueryFailure
    const response = await subject.request(`/devices/lock:1${suffix}`, method)
    await subject.refused(response, status, code)
  })
})

test("only DELETE closes a device", async () => {
  const subject = new Subject()
  for (const method of ["GET", "POST", "PUT", "PATCH", "OPTIONS", "HEAD"]) {
    expect((await subject.request("/devices/lock:1/connection", method)).status).toBe(404)
  }
  for (const path of ["/devices", "/devices/lock:1", "/devices//connection"]) {
    expect((await subject.request(path, "DELETE")).status).toBe(404)
  }
  expect(subject.asked).toEqual([])
})

test("an exception in the fleet query is 500, with details in the log only", async () => {
  const subject = new Subject()
  const error = new Error("amqp://user:hidden@broker")
  Object.defineProperty(subject, "device", {
    get: () => {
      throw error
    },
  })
  const message = await subject.refused(await subject.request("/devices/a"), 500, "internal")
  expect(message).not.toContain("hidden")
  expect(subject.faults).toEqual([error])
})

describe("tokens guard", () => {
  const ROUTES: [string, string][] = [
    ["GET", "/devices"],
    ["GET", "/devices?limit=0"],
    ["GET", "/devices/lock:1"],
    ["GET", "/devices/%00"],
    ["DELETE", "/devices/lock:1/connection"],
  ]

  test.each(ROUTES)("%s %s: 401 without one, and with a wrong one", async (method, path) => {
    for (const headers of [{}, { authorization: `Bearer ${TOKEN}x` }]) {
      const subject = new Subject([TOKEN])
      const response = await subject.request(path, method, headers)
      await subject.refused(response, 401, "unauthorized")
      expect(subject.asked).toEqual([])
    }
  })

  test.each([
    ["GET", "/devices", "list"],
    ["GET", "/devices/lock:1", "describe"],
    ["DELETE", "/devices/lock:1/connection", "kick"],
  ])("%s %s: asked with one", async (method, path, act) => {
    const subject = new Subject([TOKEN])
    const response = await subject.request(path, method, { authorization: `Bearer ${TOKEN}` })
    expect(response.status).toBe(200)
    expect(subject.asked.map(([asked]) => asked as string)).toEqual([act])
  })
})
