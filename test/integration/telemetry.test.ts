/**
 * What Prometheus reads of a real instance: the histograms and gauges of two workers, and
 * METRICS_PORT, which needs no token and has nothing else.
 */

import { afterEach, beforeAll, expect, test } from "bun:test"
import { X509Certificate } from "node:crypto"
import { readFileSync } from "node:fs"
import { BackEnd } from "../support/back-end.ts"
import { freePorts } from "../support/free-ports.ts"
import type { TestGateway } from "../support/gateway.ts"
import { certificateFiles, metricValue, ownQueues, startGateway } from "../support/gateway.ts"
import { sendToOnlyDevice } from "../support/only-device.ts"
import { sharedRabbitMq, type TestBroker, uniqueNames } from "../support/rabbitmq.ts"
import { RawHttp } from "../support/raw-http.ts"
import { connectDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 90_000
const queues = ownQueues(uniqueNames("telemetry"))
let broker: TestBroker
let gateway: TestGateway | undefined

beforeAll(async () => {
  broker = await sharedRabbitMq()
}, LIMIT_MS)

afterEach(async () => {
  await gateway?.stop()
  gateway = undefined
}, LIMIT_MS)

test(
  "a line, a command, a handshake and the event loop are timed",
  async () => {
    gateway = await startGateway({ AMQP_URL: broker.url, ...queues, DEVICE_ACK: "seq" })
    await gateway.ready()
    const device = await connectDevice({ port: gateway.devicePort })
    for (const [at, line] of ["one", "two", "three"].entries()) {
      await device.send(line)
      expect(await device.nextLine()).toBe(`ACK ${at}`)
    }
    expect(await sendToOnlyDevice(gateway, "open")).toBe("written")
    expect(await device.nextLine()).toBe("open")
    const text = await (await gateway.fetch("/metrics")).text()
    expect(metricValue(text, "owsla_line_confirm_seconds_count")).toBe(3)
    expect(metricValue(text, "owsla_line_confirm_seconds_sum")).toBeGreaterThan(0)
    expect(metricValue(text, "owsla_command_seconds_count", "written")).toBe(1)
    expect(metricValue(text, "owsla_handshake_seconds_count")).toBe(1)
    const lagCount = "owsla_event_loop_lag_seconds_count"
    const { metric } = gateway
    await until(async () => (await metric(lagCount)) > 4, { what: "the sweeps of both workers" })
    device.end()
  },
  LIMIT_MS,
)

test(
  "the gauges of an instance: its build, its limit, its certificate and its processes",
  async () => {
    gateway = await startGateway({ AMQP_URL: broker.url, ...queues, MAX_CONNECTIONS: "321" })
    await gateway.ready()
    const text = await (await gateway.fetch("/metrics")).text()
    expect(metricValue(text, "owsla_build_info")).toBe(1)
    expect(text).toContain(`bun="${Bun.version}"`)
    expect(metricValue(text, "owsla_connections_limit")).toBe(2 * 321)
    const certificate = new X509Certificate(readFileSync(certificateFiles().TLS_CERT_FILE))
    const notAfterS = certificate.validToDate.getTime() / 1_000
    expect(metricValue(text, "owsla_certificate_not_after_seconds")).toBe(notAfterS)
    expect(metricValue(text, "process_resident_memory_bytes")).toBe(
      metricValue(text, "owsla_resident_bytes"),
    )
    const openFiles = metricValue(text, "process_open_fds")
    expect(openFiles).toBeLessThan(metricValue(text, "process_max_fds"))
  },
  LIMIT_MS,
)

test(
  "METRICS_PORT serves the sum of all workers without a token, and no other route",
  async () => {
    const { metrics: port } = freePorts(["metrics"])
    gateway = await startGateway({
      ...{ AMQP_URL: broker.url, ...queues, HTTP_TOKENS: "a-token-of-the-tests" },
      ...{ METRICS_PORT: String(port), MAX_HTTP_CONNECTIONS: "5" },
    })
    const at = (path: string) => fetch(`http://127.0.0.1:${port}${path}`, { keepalive: false })
    await until(async () => (await at("/ready")).status === 200, { what: "the worker" })
    await until(
      async () =>
        metricValue(await (await at("/metrics")).text(), "owsla_broker_ready_workers") === 2,
      { what: "both workers" },
    )
    expect((await gateway.fetch("/metrics")).status).toBe(401)
    expect((await at("/live")).status).toBe(200)
    for (const path of ["/devices", "/health", "/drain"]) expect((await at(path)).status).toBe(404)

    // Bounded like the main port: each worker keeps 5.
    const flood = Array.from({ length: 50 }, () => new RawHttp(port))
    await until(() => flood.filter(({ closed }) => closed).length >= 40, { what: "the bound" })
    expect((await at("/live")).status).toBe(200)
    for (const client of flood) client.socket.destroy()
  },
  LIMIT_MS,
)

test(
  "METRICS_PORT that is taken ends the start with its name",
  async () => {
    const taken = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } })
    const start = startGateway({ METRICS_PORT: String(taken.port) })
    await expect(start).rejects.toThrow("METRICS_HOST, METRICS_PORT: cannot listen")
    taken.stop(true)
  },
  LIMIT_MS,
)

test(
  "a traced line has the trace context of its span; without a collector lines go on",
  async () => {
    const spans: { traceId: string; spanId: string; startTimeUnixNano: string }[] = []
    const collector = Bun.serve({
      ...{ hostname: "127.0.0.1", port: 0 },
      fetch: async (request) => {
        const { resourceSpans } = JSON.parse(await request.text())
        spans.push(...resourceSpans[0].scopeSpans[0].spans)
        return Response.json({})
      },
    })
    let backEnd: BackEnd | undefined
    try {
      gateway = await startGateway({
        ...{ AMQP_URL: broker.url, ...queues, WORKERS: "1", DEVICE_ACK: "seq" },
        ...{ TRACE_SAMPLE: "1", OTLP_URL: `http://127.0.0.1:${collector.port}/v1/traces` },
      })
      await gateway.ready()
      backEnd = await BackEnd.connect(broker.url, queues)
      const { lines } = backEnd
      const { metric } = gateway
      const device = await connectDevice({ port: gateway.devicePort })
      await device.send("traced")
      expect(await device.nextLine()).toBe("ACK 0")
      const line = await until(() => lines.find(({ body }) => body === "traced"), {
        what: "the line",
      })
      const span = await until(() => spans[0], { what: "the span" })
      expect(line.headers["traceparent"]).toBe(`00-${span.traceId}-${span.spanId}-01`)
      const startedAtMs = Number(BigInt(span.startTimeUnixNano) / 1_000_000n)
      expect(Math.abs(startedAtMs - Date.now())).toBeLessThan(LIMIT_MS)
      await until(async () => (await metric("owsla_trace_spans_total", "exported")) === 1, {
        what: "the span to be counted",
      })

      await collector.stop(true)
      await device.send("without a collector")
      expect(await device.nextLine()).toBe("ACK 1")
      await until(async () => (await metric("owsla_trace_spans_total", "dropped")) === 1, {
        what: "the span to be dropped",
      })
      expect(gateway.log.some(({ msg }) => msg.startsWith("OTLP_URL does not take"))).toBe(true)
      device.end()
    } finally {
      await backEnd?.close()
      await collector.stop(true)
    }
  },
  LIMIT_MS,
)
