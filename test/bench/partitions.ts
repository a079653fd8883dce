/**
 * Partitions: lines a second from devices to back-ends with `FROM_DEVICE_PARTITIONS`, beside one
 * queue, in turn (A B A B) in one run. Each queue has one consumer, in a process of its own, since
 * the lines of each device must stay in order on both sides. The first round only warms the engines
 * up.
 *
 * Each gateway has a virtual host of its own: on one, the workers of both would be one fleet. In a
 * cluster the leaders of the queues are spread over the nodes.
 */

import { lineQueues } from "../../src/broker/topology.ts"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { type PrivateBroker, uniqueNames } from "../support/rabbitmq.ts"
import { RabbitMqCluster } from "../support/rabbitmq-cluster.ts"
import { type Child, startChild } from "./child.ts"
import { type BenchResult, benchBroker, Meter, median, round, startHerd } from "./harness.ts"
import { cpuOf, processIds } from "./subject.ts"

export interface PartitionsParameters {
  readonly partitions: number
  readonly connections: number
  readonly linesEach: number
  readonly lineBytes: number
  readonly rounds: number
  /** 1, or 3 for a cluster. */
  readonly nodes: 1 | 3
}

const LIMIT_MS = 120_000
/** Asking costs CPU that is then missing. */
const ASK_EVERY_MS = 100
const QUEUE = "from_device"
const CLUSTER_RELEASE = "3.10"

interface Side {
  readonly name: string
  readonly gateway: TestGateway
  readonly consumers: readonly Child[]
  readonly stop: () => Promise<void>
}

interface Load {
  readonly perSecond: number
  /** CPU of a line, microseconds. */
  readonly gatewayUs: number
  readonly brokerUs: number
  /** What the busiest of the drivers and the consumers used of a core. */
  readonly driver: number
  readonly consumer: number
}

export async function partitions(parameters: PartitionsParameters): Promise<BenchResult> {
  const [nodes, leave] = await brokerNodes(parameters.nodes)
  const measured = new Map<Side, Load[]>()
  try {
    const divided = `${parameters.partitions} partitions`
    for (const [name, count] of [["one queue", 1] as const, [divided, parameters.partitions]]) {
      measured.set(await startSide(String(name), Number(count), nodes), [])
    }
    for (let at = -1; at < parameters.rounds; at += 1) {
      for (const [side, loads] of measured) {
        const load = await sendLines(side, nodes, parameters)
        if (at >= 0) loads.push(load)
      }
    }
  } finally {
    for (const side of measured.keys()) await side.stop()
    await leave()
  }
  return { bench: "partitions", parameters: { ...parameters }, figures: figuresOf(measured) }
}

function figuresOf(measured: ReadonlyMap<Side, readonly Load[]>): Record<string, number> {
  const figures: Record<string, number> = {}
  const rates: number[] = []
  for (const [{ name }, loads] of measured) {
    const of = (value: (load: Load) => number) => median(loads.map(value))
    const rate = of(({ perSecond }) => perSecond)
    rates.push(rate)
    figures[`${name}, lines a second`] = Math.round(rate)
    figures[`${name}, CPU of the gateway a line, us`] = round(of(({ gatewayUs }) => gatewayUs))
    figures[`${name}, CPU of the broker a line, us`] = round(of(({ brokerUs }) => brokerUs))
    figures[`${name}, busiest consumer, share of a core`] = round(of(({ consumer }) => consumer))
    figures[`busiest driver of ${name}, share of a core`] = round(of(({ driver }) => driver))
  }
  const [one = Number.NaN, divided = Number.NaN] = rates
  figures["partitions to one queue, ratio"] = round(divided / one)
  return figures
}

async function brokerNodes(
  count: 1 | 3,
): Promise<[readonly PrivateBroker[], () => Promise<unknown>]> {
  if (count === 1) {
    const [broker, leave] = await benchBroker()
    return [[broker], leave]
  }
  const cluster = await RabbitMqCluster.start(CLUSTER_RELEASE)
  return [cluster.nodes, () => cluster.dispose()]
}

async function startSide(
  name: string,
  count: number,
  nodes: readonly PrivateBroker[],
): Promise<Side> {
  const host = uniqueNames("partitions")(`host_${count}`)
  const [first] = nodes
  if (first === undefined) throw new Error("no broker")
  await first.ctl("add_vhost", host)
  const all = ".*"
  await first.ctl("set_permissions", "-p", host, new URL(first.url).username, all, all, all)
  const spread = JSON.stringify({ "queue-leader-locator": "balanced" })
  await first.ctl("set_policy", "-p", host, "spread", `^${QUEUE}`, spread, "--apply-to", "queues")
  const urls = nodes.map(({ url }) => `${url}/${host}`)
  const gateway = await startGateway({
    ...{ AMQP_URL: urls.join(","), FROM_DEVICE_QUEUE: QUEUE },
    FROM_DEVICE_PARTITIONS: String(count),
  })
  const consumers: Child[] = []
  const stop = async () => {
    for (const consumer of consumers) await consumer.stop()
    await gateway.stop()
    await first.ctl("delete_vhost", host)
  }
  try {
    await gateway.ready()
    for (const [at, queue] of lineQueues(QUEUE, count).entries()) {
      consumers.push(startChild("consumer.ts", { url: urls[at % urls.length] ?? "", queue }))
    }
    for (const consumer of consumers) await consumer.told("ready")
  } catch (error) {
    await stop()
    throw error
  }
  return { name, gateway, consumers, stop }
}

/** From the first line until the consumers have taken the last one. */
async function sendLines(
  { name, gateway, consumers }: Side,
  nodes: readonly PrivateBroker[],
  { connections, linesEach, lineBytes }: PartitionsParameters,
): Promise<Load> {
  const total = connections * linesEach
  const before = await takenBy(consumers)
  const herd = await startHerd({ port: gateway.devicePort, connections, linesEach, lineBytes })
  const brokerPids = nodes.flatMap((node) => node.processIds())
  const brokerBefore = cpuOf(brokerPids)
  const meter = new Meter(processIds(gateway), [herd.pid])
  const consuming = new Meter(
    [],
    consumers.map(({ pid }) => pid),
  )
  try {
    herd.go()
    const deadlineMs = performance.now() + LIMIT_MS
    for (;;) {
      const taken = (await takenBy(consumers)) - before
      if (taken >= total) break
      if (performance.now() > deadlineMs) throw new Error(`${name}: ${taken} of ${total} taken`)
      await Bun.sleep(ASK_EVERY_MS)
    }
    return {
      perSecond: total / meter.seconds,
      gatewayUs: (meter.cpu / total) * 1e6,
      brokerUs: ((cpuOf(brokerPids) - brokerBefore) / total) * 1e6,
      driver: meter.driver,
      consumer: consuming.driver,
    }
  } finally {
    meter.stop()
    consuming.stop()
    herd.stop()
  }
}

/** All lines that the consumers have taken, each after its predecessor. */
async function takenBy(consumers: readonly Child[]): Promise<number> {
  let all = 0
  for (const consumer of consumers) {
    consumer.say("status")
    const { taken = 0, disorder = 0 } = await consumer.told("taken")
    if (disorder > 0) throw new Error(`${disorder} lines were not the next of their connection`)
    all += taken
  }
  return all
}
