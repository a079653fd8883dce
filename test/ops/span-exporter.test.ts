/**
 * Spans on their way to a collector: the form of a request, and what happens to spans when the
 * collector refuses them, is not there, never answers, or is slower than the lines.
 */

import { afterEach, expect, test } from "bun:test"
import { Counters } from "../../src/counters.ts"
import type { Span } from "../../src/lines/traces.ts"
import { MAX_BATCH, MAX_WAITING, SpanExporter } from "../../src/ops/span-exporter.ts"
import { VERSION } from "../../src/version.ts"
import { until } from "../support/wait.ts"

const SPAN: Span = {
  ...{ traceId: "4bf92f3577b34da6a3ce929d0e0e4736", spanId: "00f067aa0ba902b7" },
  ...{ startMs: 1_750_000_000_123, endMs: 1_750_000_000_130.5 },
  ...{ queue: "from_device", messageId: "gw1.0.a.1:7", deviceId: "lock:1" },
  ...{ connectionId: "gw1.0.a.1", seq: 7, bytes: 6 },
}
const servers: ReturnType<typeof Bun.serve>[] = []
const exporters: SpanExporter[] = []

afterEach(async () => {
  await Promise.all(exporters.splice(0).map((exporter) => exporter.stop()))
  await Promise.all(servers.splice(0).map((server) => server.stop(true)))
})

class Subject {
  readonly counters = new Counters()
  readonly warnings: string[] = []
  readonly requests: { headers: Headers; spans: { spanId: string }[]; body: unknown }[] = []
  readonly exporter: SpanExporter

  constructor(respond: (() => Response | Promise<Response>) | null) {
    const server = Bun.serve({
      ...{ hostname: "127.0.0.1", port: 0 },
      fetch: async (request) => {
        const body = JSON.parse(await request.text())
        const spans = body.resourceSpans[0].scopeSpans[0].spans
        this.requests.push({ headers: request.headers, spans, body })
        return respond?.() ?? Response.json({})
      },
    })
    servers.push(server)
    this.exporter = new SpanExporter({
      ...{ url: `http://127.0.0.1:${server.port}/v1/traces`, worker: "gw1.0" },
      ...{ counters: this.counters, steadyMs: () => performance.now() },
      warn: (message) => this.warnings.push(message),
    })
    exporters.push(this.exporter)
    if (respond === null) void server.stop(true)
  }

  get done(): number {
    const { exported, dropped } = this.counters.spans
    return exported + dropped
  }
}

test("a request is OTLP in JSON, with the names of OpenTelemetry", async () => {
  const subject = new Subject(() => Response.json({}))
  subject.exporter.add(SPAN)
  await until(() => subject.done === 1, { what: "the request" })
  expect(subject.counters.spans).toEqual({ exported: 1, dropped: 0 })
  const [{ headers, body } = { headers: new Headers(), body: null }] = subject.requests
  expect(headers.get("content-type")).toBe("application/json")
  const text = (key: string, stringValue: string) => ({ key, value: { stringValue } })
  expect(body).toEqual({
    resourceSpans: [
      {
        resource: {
          attributes: [
            text("service.name", "owsla"),
            text("service.version", VERSION),
            text("service.instance.id", "gw1.0"),
          ],
        },
        scopeSpans: [
          {
            scope: { name: "owsla", version: VERSION },
            spans: [
              {
                ...{ traceId: SPAN.traceId, spanId: SPAN.spanId },
                ...{ name: "send from_device", kind: 4 },
                startTimeUnixNano: "1750000000123000000",
                endTimeUnixNano: "1750000000130500000",
                attributes: [
                  text("messaging.system", "rabbitmq"),
                  text("messaging.operation.name", "publish"),
                  text("messaging.operation.type", "send"),
                  text("messaging.destination.name", "from_device"),
                  text("messaging.message.id", "gw1.0.a.1:7"),
                  { key: "messaging.message.body.size", value: { intValue: "6" } },
                  text("owsla.device_id", "lock:1"),
                  text("owsla.connection_id", "gw1.0.a.1"),
                  { key: "owsla.from_device_seq", value: { intValue: "7" } },
                ],
              },
            ],
          },
        ],
      },
    ],
  })
})

test.each<[string, (() => Response) | null, RegExp]>([
  ["refuses", () => new Response("no", { status: 503 }), /it answers 503/],
  ["sends elsewhere", () => Response.redirect("http://192.0.2.1/"), /OTLP_URL/],
  ["is not there", null, /OTLP_URL does not take the spans/],
])("a collector that %s costs its spans, which are counted", async (_, respond, warning) => {
  const subject = new Subject(respond)
  subject.exporter.add(SPAN)
  subject.exporter.add(SPAN)
  await until(() => subject.done === 2, { what: "the request to fail" })
  subject.exporter.add(SPAN)
  await until(() => subject.done === 3, { what: "the next request to fail" })
  expect(subject.counters.spans).toEqual({ exported: 0, dropped: 3 })
  // Once a minute.
  expect(subject.warnings.length).toBe(1)
  expect(subject.warnings[0]).toMatch(warning)
})

test("while a request is not answered, spans wait up to a bound, and no second one is made", async () => {
  const { promise, resolve } = Promise.withResolvers<void>()
  const subject = new Subject(() => promise.then(() => Response.json({})))
  subject.exporter.add(SPAN)
  await until(() => subject.requests.length === 1, { what: "the request" })
  for (let n = 0; n < MAX_WAITING + 5; n += 1) subject.exporter.add(SPAN)
  expect(subject.counters.spans).toEqual({ exported: 0, dropped: 5 })
  expect(subject.requests.length).toBe(1)
  resolve()
  await until(() => subject.counters.spans.exported > MAX_BATCH, { what: "the next batch" })
  expect(subject.requests[1]?.spans.length).toBe(MAX_BATCH)
})

test("the last spans are sent when it stops, for a second at most", async () => {
  const subject = new Subject(() => Response.json({}))
  subject.exporter.add(SPAN)
  await subject.exporter.stop()
  expect(subject.counters.spans).toEqual({ exported: 1, dropped: 0 })
  subject.exporter.add(SPAN)
  expect(subject.counters.spans).toEqual({ exported: 1, dropped: 1 })

  const silent = new Subject(() => new Promise<Response>(() => undefined))
  silent.exporter.add(SPAN)
  await silent.exporter.stop()
  expect(silent.counters.spans).toEqual({ exported: 0, dropped: 1 })
})
