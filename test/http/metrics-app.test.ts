/** The routes of METRICS_PORT: what they answer, that there are no others, and whom they serve. */

import { describe, expect, test } from "bun:test"
import { Counters } from "../../src/counters.ts"
import { type MetricsAppDependencies, metricsApp } from "../../src/http/metrics-app.ts"
import { SERVING } from "./app-harness.ts"

function subject(changes: Partial<MetricsAppDependencies> = {}) {
  const counters = new Counters()
  const faults: Error[] = []
  const routes = metricsApp({
    isLoopback: true,
    counters,
    report: () => SERVING,
    metricsText: async () => "owsla_connections 3\n",
    fault: (error) => faults.push(error),
    ...changes,
  })
  const get = async (path: string, headers: Record<string, string> = {}, method = "GET") => {
    const sent = { host: "localhost:9091", ...headers }
    const response = await routes.request(path, { headers: sent, method })
    return { status: response.status, text: await response.text(), headers: response.headers }
  }
  return { counters, faults, get, routes }
}

const DEVICES_REFUSED = { ...SERVING, broker: { kind: "away", reason: "amqp://10.0.0.1" } } as const

describe("METRICS_PORT", () => {
  test("has three routes and no other one, and needs no token", async () => {
    const { get, routes } = subject()
    const paths = routes.routes.filter(({ method }) => method !== "ALL")
    expect(paths.map(({ method, path }) => `${method} ${path}`).sort()).toEqual([
      ...["GET /live", "GET /metrics", "GET /ready"],
    ])
    const metrics = await get("/metrics")
    expect([metrics.status, metrics.text]).toEqual([200, "owsla_connections 3\n"])
    expect(metrics.headers.get("content-type")).toBe("text/plain; version=0.0.4; charset=utf-8")
    expect(await get("/live")).toMatchObject({ status: 200, text: '{"live":true}' })
    expect(await get("/ready")).toMatchObject({ status: 200, text: '{"ready":true}' })
    for (const path of ["/health", "/devices", "/", "/drain"]) {
      expect(await get(path)).toMatchObject({ status: 404 })
    }
    expect(await get("/metrics", {}, "POST")).toMatchObject({ status: 404 })
  })

  test("tells why it is not ready by a code, without the text of the broker", async () => {
    const { get } = subject({ report: () => DEVICES_REFUSED })
    expect(await get("/ready")).toMatchObject({
      status: 503,
      text: '{"ready":false,"reason":"broker_unavailable"}',
    })
    expect(await get("/live")).toMatchObject({ status: 200 })
  })

  test("answers 503 while the supervisor does not, and counts it", async () => {
    const { get, counters } = subject({ metricsText: async () => null })
    const { status, text } = await get("/metrics")
    expect([status, JSON.parse(text)]).toMatchObject([503, { error: { code: "busy" } }])
    expect(counters.httpErrors.get("busy")).toBe(1)
  })

  test("answers 500 for an exception, and reports it", async () => {
    const { get, faults } = subject({ metricsText: () => Promise.reject(new Error("secret")) })
    const { status, text } = await get("/metrics")
    expect(status).toBe(500)
    expect(text).not.toContain("secret")
    expect(faults).toHaveLength(1)
  })

  test.each<[string, Record<string, string>]>([
    ["another name", { host: "rebound.example" }],
    ["a page of another site", { origin: "http://site.example" }],
    ["a page of another site, by its metadata", { "sec-fetch-site": "cross-site" }],
  ])("on loopback refuses %s, and on a private network does not", async (_, headers) => {
    for (const path of ["/metrics", "/live", "/ready"]) {
      const { status, text } = await subject().get(path, headers)
      expect([status, JSON.parse(text).error.code]).toEqual([403, "forbidden"])
      expect(text).not.toContain("HTTP_TOKENS")
      expect((await subject({ isLoopback: false }).get(path, headers)).status).toBe(200)
    }
  })
})
