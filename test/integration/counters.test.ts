/**
 * The counters and histograms of an instance never fall while it runs, even when workers die: `/metrics` is read
 * continuously, as Prometheus reads it, while workers under traffic are killed and stopped.
 */

import { afterEach, beforeAll, expect, test } from "bun:test"
import { ownQueues, startGateway, type TestGateway } from "../support/gateway.ts"
import { sharedRabbitMq, type TestBroker, uniqueNames } from "../support/rabbitmq.ts"
import { connectDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"

const LIMIT_MS = 90_000
const DEVICES = 10
const LINES_IN = "owsla_lines_in_total"

const queues = ownQueues(uniqueNames("counters"))
let broker: TestBroker
let gateway: TestGateway | undefined
const ends: (() => Promise<unknown>)[] = []

beforeAll(async () => {
  broker = await sharedRabbitMq()
}, LIMIT_MS)

afterEach(async () => {
  await Promise.all(ends.splice(0).map((end) => end()))
  await gateway?.stop()
  gateway = undefined
}, LIMIT_MS)

async function start(): Promise<TestGateway> {
  gateway = await startGateway({
    AMQP_URL: broker.url,
    ...queues,
    MAX_RESTARTS: "10",
  })
  await gateway.ready()
  return gateway
}

/** Devices that send line after line and connect again when they are cut off. */
function startTraffic(port: number): void {
  let isOver = false
  const device = async () => {
    while (!isOver) {
      try {
        const device = await connectDevice({ port, connectTimeoutMs: 2_000 })
        while (!isOver) {
          await device.send("a line")
          // The period of the lines, not a wait for anything.
          await Bun.sleep(1)
        }
        device.end()
      } catch {
        // The connection was cut, or no worker listens at the moment.
      }
    }
  }
  const devices = Promise.all(Array.from({ length: DEVICES }, device))
  ends.push(() => {
    isOver = true
    return devices
  })
}

type Counters = ReadonlyMap<string, number>

/** Every series of every counter and histogram; null without an answer, as from a stopped worker. */
async function scrape(gateway: TestGateway): Promise<Counters | null> {
  let text: string
  try {
    const response = await gateway.fetch("/metrics", { signal: AbortSignal.timeout(1_500) })
    if (!response.ok) return null
    text = await response.text()
  } catch {
    return null
  }
  const counters = new Map<string, number>()
  for (const line of text.split("\n")) {
    const [, series, name, value] = /^((\w+)(?:\{.*\})?) (\S+)$/.exec(line) ?? []
    if (/_(total|bucket|sum|count)$/.test(name ?? "")) counters.set(series ?? "", Number(value))
  }
  return counters
}

/** Reads continuously, and records every counter that fell. */
function startScraping(gateway: TestGateway) {
  const fallen: string[] = []
  let last: Counters = new Map()
  let isOver = false
  const scraping = (async () => {
    while (!isOver) {
      const next = await scrape(gateway)
      if (next === null) continue
      for (const [series, value] of last) {
        const now = next.get(series)
        if (now === undefined || now < value) fallen.push(`${series} from ${value} to ${now}`)
      }
      last = next
    }
  })()
  ends.push(() => {
    isOver = true
    return scraping
  })
  return {
    fallen,
    linesIn: () => last.get(LINES_IN) ?? 0,
    restarts: () => last.get("owsla_worker_restarts_total") ?? 0,
  }
}

test(
  "counters never fall when workers are killed, again and again",
  async () => {
    const gateway = await start()
    startTraffic(gateway.devicePort)
    const scraped = startScraping(gateway)
    for (const [death, slot] of [0, 1, 0, 0].entries()) {
      const before = scraped.linesIn()
      await until(() => scraped.linesIn() > before + 500, { what: "500 lines" })
      await until(() => gateway.workers().has(slot), { what: "the worker" })
      process.kill(Number(gateway.workers().get(slot)), "SIGKILL")
      await until(() => scraped.restarts() === death + 1, { what: "its successor" })
    }
    const before = scraped.linesIn()
    await until(() => scraped.linesIn() > before + 500, { what: "500 lines" })
    expect(scraped.fallen).toEqual([])
  },
  LIMIT_MS,
)

test(
  "counters never fall while a worker is stopped, nor when it is killed then",
  async () => {
    const gateway = await start()
    startTraffic(gateway.devicePort)
    const scraped = startScraping(gateway)
    await until(() => scraped.linesIn() > 1_000, { what: "1,000 lines" })
    const victim = Number(gateway.workers().get(1))
    for (const end of ["SIGCONT", "SIGKILL"] as const) {
      process.kill(victim, "SIGSTOP")
      const before = scraped.linesIn()
      // Answered by the other worker whenever the kernel gives it the request.
      await until(() => scraped.linesIn() > before + 100, {
        what: "100 lines of the other worker",
        timeoutMs: 30_000,
      })
      process.kill(victim, end)
      const after = scraped.linesIn()
      await until(() => scraped.linesIn() > after + 100, { what: "100 lines more" })
    }
    await until(() => scraped.restarts() === 1, { what: "its successor" })
    expect(scraped.fallen).toEqual([])
  },
  LIMIT_MS,
)

test(
  "a worker whose supervisor does not answer shows no counters rather than its own alone",
  async () => {
    const gateway = await start()
    startTraffic(gateway.devicePort)
    await until(async () => (await gateway.metric(LINES_IN)) > 0, { what: "a line" })
    process.kill(gateway.pid, "SIGSTOP")
    try {
      const response = await gateway.fetch("/metrics")
      expect(response.status).toBe(503)
      expect(await response.json()).toMatchObject({ error: { code: "busy" } })
      expect((await gateway.fetch("/health")).status).toBe(200)
    } finally {
      process.kill(gateway.pid, "SIGCONT")
    }
    await until(async () => (await gateway.fetch("/metrics")).ok, { what: "the counters" })
  },
  LIMIT_MS,
)
