/**
 * Scaling: lines and handshakes a second of a gateway with two workers, beside one with one worker,
 * in turn (A B A B) in one run. And what the cores did meanwhile: the shares of the workers, the
 * drivers and the broker, all of which run on this machine. The first round only warms the engines
 * up.
 *
 * Each gateway has a virtual host of its own: on one, the workers of both would be one fleet.
 * Nobody consumes; the queues are emptied in between.
 */

import { AMQPClient } from "@cloudamqp/amqp-client"
import { cpuSeconds, startGateway, type TestGateway } from "../support/gateway.ts"
import { type PrivateBroker, uniqueNames } from "../support/rabbitmq.ts"
import { until } from "../support/wait.ts"
import { type Child, startChild } from "./child.ts"
import { type BenchResult, benchBroker, median, round, startHerd } from "./harness.ts"
import { cpuOf } from "./subject.ts"

export interface ScalingParameters {
  /** Of lines, over all drivers. */
  readonly connections: number
  readonly linesEach: number
  readonly lineBytes: number
  /** In a round, over all drivers. */
  readonly handshakes: number
  /** Handshakes of a driver that are begun and not complete. */
  readonly atOnce: number
  readonly rounds: number
}

/** Processes that make the load, for one worker as for two. */
const DRIVERS = 2
const LIMIT_MS = 120_000
/** Asking costs CPU that is then missing. */
const ASK_EVERY_MS = 100
/**
 * The kernel does not divide connections equally: at the end of the lines one worker has none left.
 * The rate is that of the lines before.
 */
const ALL_BUSY = 0.75
const QUEUE = "from_device"

interface Load {
  readonly perSecond: number
  /** Shares of a core. */
  readonly workers: readonly number[]
  readonly supervisor: number
  /** All drivers together, and the busiest. */
  readonly drivers: number
  readonly driver: number
  readonly broker: number
}

interface Side {
  readonly name: string
  readonly gateway: TestGateway
  readonly client: AMQPClient
  readonly crowds: readonly Child[]
  readonly stop: () => Promise<void>
}

export async function scaling(parameters: ScalingParameters): Promise<BenchResult> {
  const [broker, leave] = await benchBroker()
  const sides: Side[] = []
  const lines = new Map<Side, Load[]>()
  const handshakes = new Map<Side, Load[]>()
  try {
    sides.push(await startSide("one worker", 1, broker, parameters))
    sides.push(await startSide("two workers", 2, broker, parameters))
    for (let at = -1; at < parameters.rounds; at += 1) {
      for (const side of sides) {
        const load = await sendLines(side, broker, parameters)
        if (at >= 0) lines.set(side, [...(lines.get(side) ?? []), load])
      }
      for (const side of sides) {
        const load = await connectAll(side, broker, parameters)
        if (at >= 0) handshakes.set(side, [...(handshakes.get(side) ?? []), load])
      }
    }
  } finally {
    for (const side of sides) await side.stop()
    await leave()
  }
  return {
    bench: "scaling",
    parameters: { ...parameters },
    figures: { ...figuresOf("lines", lines), ...figuresOf("handshakes", handshakes) },
  }
}

function figuresOf(what: string, measured: ReadonlyMap<Side, Load[]>): Record<string, number> {
  const figures: Record<string, number> = {}
  const rates: number[] = []
  for (const [{ name }, loads] of measured) {
    const of = (value: (load: Load) => number) => median(loads.map(value))
    const rate = of(({ perSecond }) => perSecond)
    const before = `${what}, ${name}`
    rates.push(rate)
    figures[`${before}, 1/s`] = Math.round(rate)
    for (const at of loads[0]?.workers.keys() ?? []) {
      const worker = of(({ workers }) => workers[at] ?? Number.NaN)
      figures[`${before}: worker ${at + 1}, share of a core`] = round(worker)
    }
    figures[`${before}: supervisor, share of a core`] = round(of(({ supervisor }) => supervisor))
    figures[`${before}: drivers, share of a core`] = round(of(({ drivers }) => drivers))
    figures[`${before}: broker, share of a core`] = round(of(({ broker }) => broker))
    const driver = round(of(({ driver }) => driver))
    figures[`busiest driver of ${before}, share of a core`] = driver
  }
  const [one = Number.NaN, two = Number.NaN] = rates
  figures[`${what}, two workers to one, ratio`] = round(two / one)
  return figures
}

async function startSide(
  name: string,
  workers: number,
  broker: PrivateBroker,
  { handshakes, atOnce }: ScalingParameters,
): Promise<Side> {
  const host = uniqueNames("scaling")(`host_${workers}`)
  await broker.ctl("add_vhost", host)
  const all = ".*"
  await broker.ctl("set_permissions", "-p", host, new URL(broker.url).username, all, all, all)
  const url = `${broker.url}/${host}`
  const gateway = await startGateway({
    ...{ AMQP_URL: url, FROM_DEVICE_QUEUE: QUEUE },
    ...{ WORKERS: String(workers), DEVICE_HOST: "0.0.0.0" },
  })
  const client = new AMQPClient(url)
  const connections = Math.ceil(handshakes / DRIVERS)
  const crowds = Array.from({ length: DRIVERS }, (_, at) =>
    startChild("crowd.ts", {
      ...{ host: `127.0.0.${2 + at}`, port: gateway.devicePort },
      ...{ connections, "at-once": atOnce },
    }),
  )
  const stop = async () => {
    for (const crowd of crowds) await crowd.stop()
    client.socket?.destroy()
    await gateway.stop()
    await broker.ctl("delete_vhost", host)
  }
  try {
    for (const crowd of crowds) await crowd.told("ready")
    await client.connect()
    await gateway.ready()
  } catch (error) {
    await stop()
    throw error
  }
  return { name, gateway, client, crowds, stop }
}

/** From the first line to the confirm of most. */
async function sendLines(
  { gateway, client }: Side,
  broker: PrivateBroker,
  { connections, linesEach, lineBytes }: ScalingParameters,
): Promise<Load> {
  const each = { connections: Math.ceil(connections / DRIVERS), linesEach, lineBytes }
  const total = each.connections * DRIVERS * linesEach
  const started = Array.from({ length: DRIVERS }, () =>
    startHerd({ port: gateway.devicePort, ...each }),
  )
  const herds = await Promise.all(started)
  try {
    const before = await gateway.metric("owsla_lines_confirmed_total")
    const confirmed = async () => (await gateway.metric("owsla_lines_confirmed_total")) - before
    const finish = watch(
      gateway,
      herds.map(({ pid }) => pid),
      broker,
    )
    for (const herd of herds) herd.go()
    const load = finish(await count(confirmed, ALL_BUSY * total))
    const all = await count(confirmed, total)
    if (all !== total) throw new Error(`${all} of ${total} lines confirmed`)
    const channel = await client.channel()
    const { messageCount } = await channel.queuePurge(QUEUE)
    await channel.close()
    if (messageCount !== total) throw new Error(`${messageCount} of ${total} lines in the queue`)
    return load
  } finally {
    for (const herd of herds) herd.stop()
    await allGone(gateway)
  }
}

/** From the first connection to the last handshake; then all are closed. */
async function connectAll(
  { gateway, crowds }: Side,
  broker: PrivateBroker,
  { handshakes }: ScalingParameters,
): Promise<Load> {
  const total = Math.ceil(handshakes / DRIVERS) * DRIVERS
  const finish = watch(
    gateway,
    crowds.map(({ pid }) => pid),
    broker,
  )
  for (const crowd of crowds) crowd.say("connect")
  const told = await Promise.all(crowds.map((crowd) => crowd.told("connected")))
  const load = finish(total)
  const connected = told.reduce((sum, report) => sum + (report["connected"] ?? 0), 0)
  if (connected !== total) throw new Error(`${connected} of ${total} connected`)
  const open = () => gateway.metric("owsla_connections")
  await until(async () => (await open()) === total, { what: "all to be admitted" })
  for (const crowd of crowds) crowd.say("lose")
  await Promise.all(crowds.map((crowd) => crowd.told("lost")))
  await allGone(gateway)
  return load
}

/** The shares of a core from now until the returned function is called, with the work done. */
function watch(gateway: TestGateway, drivers: readonly number[], broker: PrivateBroker) {
  const workers = [...gateway.workers().values()]
  const brokerPids = broker.processIds()
  const groups = () => ({
    workers: workers.map(cpuSeconds),
    supervisor: cpuSeconds(gateway.pid),
    drivers: drivers.map(cpuSeconds),
    broker: cpuOf(brokerPids),
  })
  const before = groups()
  const startedAtMs = performance.now()
  return (done: number): Load => {
    const seconds = (performance.now() - startedAtMs) / 1000
    const after = groups()
    const shares = (now: readonly number[], then: readonly number[]) =>
      now.map((value, at) => (value - (then[at] ?? 0)) / seconds)
    const each = shares(after.drivers, before.drivers)
    return {
      perSecond: done / seconds,
      workers: shares(after.workers, before.workers),
      supervisor: (after.supervisor - before.supervisor) / seconds,
      drivers: each.reduce((a, b) => a + b, 0),
      driver: Math.max(...each),
      broker: (after.broker - before.broker) / seconds,
    }
  }
}

/** Resolves with the count when it has reached `least`. */
async function count(confirmed: () => Promise<number>, least: number): Promise<number> {
  const deadlineMs = performance.now() + LIMIT_MS
  for (;;) {
    const now = await confirmed()
    if (now >= least) return now
    if (performance.now() > deadlineMs) throw new Error(`${now} of ${least} lines confirmed`)
    await Bun.sleep(ASK_EVERY_MS)
  }
}

async function allGone(gateway: TestGateway): Promise<void> {
  const gone = async () => (await gateway.metric("owsla_connections")) === 0
  await until(gone, { what: "all to be gone", timeoutMs: LIMIT_MS })
}
