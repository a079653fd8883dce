/**
 * A real Prometheus scrapes two instances under load, one with a bearer token, one at METRICS_PORT.
 * Each expression of the dashboard has data, each alert can be evaluated, and when the broker is
 * away the alert for it fires. `sh test/install long` installs Prometheus.
 */

import { afterAll, beforeAll, expect, test } from "bun:test"
import { join } from "node:path"
import { ALERTS_FILE, alerts } from "../support/alerts.ts"
import { STAGES } from "../support/dashboard.ts"
import { freePorts } from "../support/free-ports.ts"
import { startGateway, type TestGateway, testCaFile } from "../support/gateway.ts"
import { Prometheus, type Sample } from "../support/prometheus.ts"
import { type PrivateBroker, startRabbitMq } from "../support/rabbitmq.ts"
import { connectDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"

/** A metric with its labels, in an expression. */
const SELECTOR = /\b(?:owsla_\w+|process_\w+|up)\b(?:\{[^}]*\})?/g
const LIMIT_MS = 300_000
const SIMULATOR = join(import.meta.dir, "../../src/simulator/main.ts")
const READ_TOKEN = "read-token-of-the-tests"
const WORKERS = { first: 2, second: 1 }

let broker: PrivateBroker
let first: TestGateway
let second: TestGateway
let prometheus: Prometheus
let isOver = false
const ends: (() => Promise<unknown>)[] = []

beforeAll(async () => {
  broker = await startRabbitMq()
  const { metrics } = freePorts(["metrics"])
  const shared = { AMQP_URL: broker.url }
  first = await startGateway({
    ...{ ...shared, WORKERS: String(WORKERS.first) },
    HTTP_READ_TOKENS: READ_TOKEN,
  })
  second = await startGateway({
    ...{ ...shared, WORKERS: String(WORKERS.second) },
    METRICS_PORT: String(metrics),
  })
  const targets = [
    { port: first.httpPort, token: READ_TOKEN },
    { port: metrics, token: null },
  ]
  prometheus = await Prometheus.start(targets, ALERTS_FILE)
}, LIMIT_MS)

afterAll(async () => {
  isOver = true
  await Promise.all(ends.map((end) => end()))
  await Promise.all([prometheus?.stop(), first?.stop(), second?.stop()])
  await broker?.dispose()
}, LIMIT_MS)

/** Devices that send lines to both instances, and a back-end that answers some of them. */
function startLoad(): void {
  for (const [gateway, args] of [
    [first, ["--backend", "--amqp-url", broker.url, "--command-every", "5"]],
    [second, []],
  ] as const) {
    const devices = ["--devices", "10", "--rate", "5", "--duration", "600"]
    const process_ = Bun.spawn(
      [
        ...[process.execPath, SIMULATOR, "--port", String(gateway.devicePort)],
        ...["--ca", testCaFile(), ...devices, ...args, "--json"],
      ],
      { env: { PATH: process.env["PATH"] ?? "" }, stdio: ["ignore", "ignore", "inherit"] },
    )
    ends.push(() => {
      process_.kill("SIGKILL")
      return process_.exited
    })
  }
}

/** Devices that come and go, and requests for no route. */
function startVisits(): void {
  const visits = (async () => {
    while (!isOver) {
      const device = await connectDevice({ port: second.devicePort })
      device.end()
      await second.fetch("/nothing")
      await Bun.sleep(200)
    }
  })()
  ends.push(() => visits)
}

const hasData = (samples: readonly Sample[]) =>
  samples.some(({ value: [, value] }) => Number.isFinite(Number(value)))

test(
  "both instances are scraped, and all their workers have the broker",
  async () => {
    const ready = async () => {
      const [sample] = await prometheus.query("sum(owsla_broker_ready_workers)")
      return Number(sample?.value[1]) === WORKERS.first + WORKERS.second
    }
    await until(ready, { what: "the workers in Prometheus", timeoutMs: 60_000 })
    expect(await prometheus.query('up{job="owsla"} == 1')).toHaveLength(2)
  },
  LIMIT_MS,
)

test(
  "each expression of the dashboard has data",
  async () => {
    startLoad()
    startVisits()
    for (const { panels } of STAGES) {
      for (const { title, queries } of panels) {
        for (const { expr } of queries) {
          const query = expr.replaceAll("$__rate_interval", "30s").replaceAll("$instance", ".+")
          const found = async () => hasData(await prometheus.query(query))
          await until(found, { what: `data of ${title}: ${query}`, timeoutMs: 60_000 })
        }
      }
    }
  },
  LIMIT_MS,
)

test(
  "each alert is evaluated without an error, on series that exist",
  async () => {
    const all = alerts()
    for (const { alert, expr } of all) {
      const selectors = expr.match(SELECTOR) ?? []
      expect(selectors.length).toBeGreaterThan(0)
      for (const selector of selectors) {
        const found = async () => (await prometheus.query(selector)).length > 0
        await until(found, { what: `series of ${alert}: ${selector}`, timeoutMs: 30_000 })
      }
    }
    const evaluated = async () => {
      const rules = await prometheus.rules()
      return rules.every(({ health }) => health !== "unknown") ? rules : null
    }
    const rules = await until(evaluated, { what: "the first evaluation" })
    expect(rules.map(({ name }) => name).sort()).toEqual(all.map(({ alert }) => alert).sort())
    const faulty = rules.filter(({ health, lastError }) => health !== "ok" || lastError !== "")
    expect(faulty).toEqual([])
  },
  LIMIT_MS,
)

test(
  "without the broker the alert for it fires, and ends when the broker is back",
  async () => {
    const stateOf = async (name: string) =>
      (await prometheus.rules()).find((rule) => rule.name === name)?.state
    expect(await stateOf("OwslaBrokerAway")).toBe("inactive")
    await broker.kill()
    const firing = 'ALERTS{alertname="OwslaBrokerAway", alertstate="firing"}'
    const bothFire = async () => (await prometheus.query(firing)).length === 2
    await until(bothFire, { what: "OwslaBrokerAway to fire for both", timeoutMs: 120_000 })
    await broker.start()
    const isQuiet = async () => (await stateOf("OwslaBrokerAway")) === "inactive"
    await until(isQuiet, { what: "OwslaBrokerAway to end", timeoutMs: 120_000 })
  },
  LIMIT_MS,
)
