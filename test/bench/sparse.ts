/**
 * Single lines, each acknowledged, from many devices at a low rate: CPU for each and the time to
 * its acknowledgement, with one worker. Beside the gateway a bare TLS server that writes back what
 * it gets, and RabbitMQ's own MQTT plugin, in turn (A B C A B C) in one run. One RabbitMQ node
 * serves the gateway and the plugin.
 *
 * All devices stay connected from before the measuring on: idle connections cost nothing, while
 * connections that close would leave work to the next subject. The first lines of the new gateway
 * are measured before the others connect and before bulk lines warm it up.
 */

import { startRabbitMq } from "../support/rabbitmq.ts"
import { until } from "../support/wait.ts"
import { type Child, startChild } from "./child.ts"
import {
  BackEnd,
  type BenchResult,
  Meter,
  makeBedWithBackEnd,
  median,
  ratio,
  round,
  startHerd,
} from "./harness.ts"
import { bareServer, gatewaySubject, untilIdle } from "./subject.ts"

export interface SparseParameters {
  readonly devices: number
  /** Lines a second of all devices. */
  readonly slowRate: number
  readonly fastRate: number
  readonly seconds: number
  readonly rounds: number
  /** Single lines to the new gateway that are measured before it is warm. */
  readonly firstLines: number
  /** Bulk lines warm the gateway and the bare server up. */
  readonly warmUpConnections: number
  readonly warmUpLinesEach: number
}

/** A server under load, with devices that stay connected. */
interface Loaded {
  readonly crowd: Child
  readonly pids: readonly number[]
}

interface Measured {
  readonly cpuUs: number
  /** Of RabbitMQ, all its processes. */
  readonly brokerCpuUs: number
  readonly sent: number
  readonly p50: number
  readonly p99: number
  readonly late: number
  readonly driver: number
}

const SUBJECTS = ["gateway", "bare", "mqtt"] as const
type SubjectName = (typeof SUBJECTS)[number]
const LINE_BYTES = 100
/** The topic of the driver's publishes, which is their routing key. */
const TOPIC = "from_device"
const MQTT_QUEUE = "mqtt_from_device"
const LIMIT_MS = 300_000
/** Processes have settled when together they used less than this of a core for `SETTLE_MS`. */
const SETTLED_SHARE = 0.1
const SETTLE_MS = 500
/** RabbitMQ's short-lived helpers end within this time. */
const HELPER_MS = 200

export async function sparse(parameters: SparseParameters): Promise<BenchResult> {
  const { devices, slowRate, fastRate, seconds, rounds, firstLines } = parameters
  const bed = await makeBedWithBackEnd({ WORKERS: "1", DEVICE_ACK: "seq" }, async () => {
    const broker = await startRabbitMq({ plugins: ["rabbitmq_mqtt"] })
    return [broker, () => broker.dispose()]
  })
  const { broker, ledger } = bed
  const bare = await bareServer(null, true)
  const crowds: Child[] = []
  let mqttBackEnd: BackEnd | null = null
  try {
    const plugin = await consumeMqtt(broker.url)
    mqttBackEnd = plugin.backEnd
    const brokerPids = await lastingIds(() => broker.processIds())
    const connect = async (port: number, pids: readonly number[], protocol: string) => {
      const crowd = startChild("crowd.ts", { port, connections: devices, protocol })
      crowds.push(crowd)
      await crowd.told("ready")
      crowd.say("connect")
      const { connected } = await crowd.told("connected")
      if (connected !== devices) throw new Error(`${connected} devices connected (${protocol})`)
      await settled([...pids, ...brokerPids])
      return { crowd, pids }
    }

    const subject = gatewaySubject(bed.gateway)
    const gateway = await connect(subject.port, subject.pids(), "lines")
    const first = await measure(gateway, brokerPids, fastRate, firstLines / fastRate)
    let lines = first.sent
    lines += await warmUp(subject.port, parameters, async (more) => {
      return ledger.count >= first.sent + more
    })
    await warmUp(bare.port, parameters, async (more) => {
      return (await bare.bytes()) >= more * (LINE_BYTES + 1)
    })
    const loaded: Record<SubjectName, Loaded> = {
      gateway,
      bare: await connect(bare.port, bare.pids(), "lines"),
      mqtt: await connect(broker.mqttPort, brokerPids, "mqtt"),
    }
    // Bulk lines are no load for MQTT devices: the plugin is warmed up by single ones.
    let publishes = (await measure(loaded.mqtt, brokerPids, fastRate, seconds)).sent

    const figures: Record<string, number> = {}
    const all: Measured[] = [first]
    const measured = new Map<string, Measured[]>()
    const of = (name: SubjectName, rate: number, what: keyof Measured) =>
      median(measured.get(`${name} ${rate}`)?.map((each) => each[what]) ?? [])
    for (let at = 0; at < rounds; at += 1) {
      for (const rate of [slowRate, fastRate]) {
        for (const name of SUBJECTS) {
          await settled([...subject.pids(), ...bare.pids(), ...brokerPids])
          const one = await measure(loaded[name], brokerPids, rate, seconds)
          if (name === "gateway") lines += one.sent
          if (name === "mqtt") publishes += one.sent
          all.push(one)
          const key = `${name} ${rate}`
          measured.set(key, [...(measured.get(key) ?? []), one])
        }
      }
    }
    await until(() => ledger.count >= lines && plugin.count() >= publishes, {
      what: `${lines} lines and ${publishes} publishes at the back-end`,
    })
    if (ledger.count !== lines || ledger.disorder > 0 || plugin.count() !== publishes) {
      const taken = `${ledger.count} of ${lines} lines, ${ledger.disorder} out of order`
      throw new Error(`${taken}, ${plugin.count()} of ${publishes} publishes`)
    }

    for (const rate of [slowRate, fastRate]) {
      const speed = `${rate.toLocaleString("en-US")}/s`
      const own = of("gateway", rate, "cpuUs")
      const brokers = of("gateway", rate, "brokerCpuUs")
      const echo = of("bare", rate, "cpuUs")
      const plugin = of("mqtt", rate, "cpuUs")
      Object.assign(figures, {
        [`CPU a line at ${speed}, us`]: round(own),
        [`CPU a line at ${speed}, bare echo, us`]: round(echo),
        ...ratio(`CPU ratio to bare at ${speed}`, own, echo),
        [`CPU a line at ${speed}, the gateway's broker, us`]: round(brokers),
        [`CPU a line at ${speed}, MQTT plugin, us`]: round(plugin),
        ...ratio(`gateway and broker to MQTT plugin at ${speed}, ratio`, own + brokers, plugin),
        [`confirm p50 at ${speed}, ms`]: round(of("gateway", rate, "p50")),
        [`confirm p99 at ${speed}, ms`]: round(of("gateway", rate, "p99")),
        [`confirm p50 at ${speed}, MQTT plugin, ms`]: round(of("mqtt", rate, "p50")),
        [`confirm p99 at ${speed}, MQTT plugin, ms`]: round(of("mqtt", rate, "p99")),
      })
    }
    Object.assign(figures, {
      "CPU a line, first lines, us": round(first.cpuUs),
      ...ratio("CPU a line, first to warm, ratio", first.cpuUs, of("gateway", fastRate, "cpuUs")),
      "busiest driver, share of a core": round(Math.max(...all.map(({ driver }) => driver))),
      "lines sent late by the driver, share": round(Math.max(...all.map(({ late }) => late))),
    })
    return { bench: "sparse", parameters: { ...parameters }, figures }
  } finally {
    for (const crowd of crowds) await crowd.stop()
    await bare.stop()
    mqttBackEnd?.close()
    await bed.stop()
  }
}

/** Throws unless every line is acknowledged. */
async function measure(
  { crowd, pids }: Loaded,
  brokerPids: readonly number[],
  rate: number,
  seconds: number,
): Promise<Measured> {
  const meter = new Meter(pids, [crowd.pid])
  const broker = new Meter(brokerPids)
  crowd.say(`send ${rate} ${seconds}`)
  const told = await crowd.told("acknowledged")
  const { cpu, driver } = meter
  const brokerCpu = broker.cpu
  meter.stop()
  broker.stop()
  const { sent = 0, acknowledged, p50 = Number.NaN, p99 = Number.NaN, late = Number.NaN } = told
  if (acknowledged !== sent) throw new Error(`not every line acknowledged: ${JSON.stringify(told)}`)
  const us = (cpuOfAll: number) => (cpuOfAll / sent) * 1e6
  return { cpuUs: us(cpu), brokerCpuUs: us(brokerCpu), sent, p50, p99, late, driver }
}

/** Sends bulk lines, waits until so many have arrived, and resolves with their number. */
async function warmUp(
  port: number,
  { warmUpConnections: connections, warmUpLinesEach: linesEach }: SparseParameters,
  haveArrived: (lines: number) => Promise<boolean>,
): Promise<number> {
  const lines = connections * linesEach
  const herd = await startHerd({ port, connections, linesEach, lineBytes: LINE_BYTES })
  herd.go()
  await until(() => haveArrived(lines), { what: `${lines} bulk lines`, timeoutMs: LIMIT_MS })
  herd.stop()
  return lines
}

/** A back-end of the plugin's own, on a queue of the same type as the gateway's. */
async function consumeMqtt(url: string): Promise<{ backEnd: BackEnd; count: () => number }> {
  const backEnd = await BackEnd.connect(url)
  let count = 0
  await backEnd.declareQuorumQueue(MQTT_QUEUE, { exchange: "amq.topic", routingKey: TOPIC })
  await backEnd.consume(MQTT_QUEUE, () => {
    count += 1
  })
  return { backEnd, count: () => count }
}

/** The processes that are there for the whole bench, without short-lived helpers such as `df`. */
async function lastingIds(idsOf: () => readonly number[]): Promise<readonly number[]> {
  const before = idsOf()
  await Bun.sleep(HELPER_MS)
  const after = new Set(idsOf())
  return before.filter((id) => after.has(id))
}

function settled(pids: readonly number[]): Promise<void> {
  return untilIdle(pids, { share: SETTLED_SHARE, forMs: SETTLE_MS, timeoutMs: LIMIT_MS })
}
