/**
 * Short visits: what a device costs that connects, completes its handshake, sends its hello if it
 * has one, and closes at once; beside a bare TLS server, the two in turn (A B A B) in one run.
 *
 * One worker, so that both are one process that listens; the supervisor is counted with it. A round
 * ends when the last connection is gone. The first round only warms the engines up.
 */

import { ownQueues, startGateway } from "../support/gateway.ts"
import { uniqueNames } from "../support/rabbitmq.ts"
import { until } from "../support/wait.ts"
import { type Child, startChild } from "./child.ts"
import { type BenchResult, benchBroker, Meter, median, ratio, round } from "./harness.ts"
import { bareServer, cpuOf, gatewaySubject, type Subject } from "./subject.ts"

export interface ChurnParameters {
  /** Visits in a round. */
  readonly visits: number
  readonly atOnce: number
  readonly rounds: number
}

export type ChurnAuth = "none" | "hello"

const SECRET = "a-secret-of-the-benches-0123456789"
const LIMIT_MS = 120_000
/** Closed connections keep their ports for a minute, and one address has 28,000. */
const ADDRESSES = 4

interface Round {
  readonly cpuUs: number
  readonly brokerUs: number
  readonly perSecond: number
  readonly driver: number
}

export async function churn(auth: ChurnAuth, parameters: ChurnParameters): Promise<BenchResult> {
  const { rounds } = parameters
  const [broker, leave] = await benchBroker()
  const bare = await bareServer()
  const own = await gateway(auth, broker.url)
  const crowds = new Map<Subject, Child>()
  // Visits of the bare server send their hello too, which it only counts as bytes.
  for (const subject of [own, bare]) crowds.set(subject, crowd(subject.port, auth, parameters))
  const measured = new Map<Subject, Round[]>([own, bare].map((subject) => [subject, []]))
  try {
    for (const each of crowds.values()) await each.told("ready")
    for (let at = -1; at < rounds; at += 1) {
      for (const [subject, crowd] of crowds) {
        const one = await oneRound(subject, crowd, broker.processIds(), parameters)
        if (at >= 0) measured.get(subject)?.push(one)
      }
    }
  } finally {
    for (const each of crowds.values()) await each.stop()
    for (const { stop } of [own, bare]) await stop()
    await leave()
  }
  const of = (subject: Subject, what: keyof Round) =>
    median(measured.get(subject)?.map((one) => one[what]) ?? [])
  return {
    bench: `churn-${auth}`,
    parameters: { ...parameters },
    figures: {
      "CPU a visit, us": round(of(own, "cpuUs")),
      "CPU a visit, bare server, us": round(of(bare, "cpuUs")),
      ...ratio("CPU ratio to bare", of(own, "cpuUs"), of(bare, "cpuUs")),
      "CPU of the broker a visit, us": round(of(own, "brokerUs")),
      "CPU of the broker a visit, bare server, us": round(of(bare, "brokerUs")),
      "visits, 1/s": Math.round(of(own, "perSecond")),
      "visits, bare server, 1/s": Math.round(of(bare, "perSecond")),
      "busiest driver, share of a core": round(of(own, "driver")),
    },
  }
}

/** All visits, until the last of them is gone. */
async function oneRound(
  { admitted, open, pids }: Subject,
  crowd: Child,
  brokerPids: readonly number[],
  { visits }: ChurnParameters,
): Promise<Round> {
  if (admitted === null || open === null) throw new Error("a server that does not count")
  const admittedBefore = await admitted()
  const brokerBefore = cpuOf(brokerPids)
  const meter = new Meter(pids(), [crowd.pid])
  crowd.say(`visit ${visits}`)
  const { visited, failed, ms = Number.NaN } = await crowd.told("visited")
  // The gateway admits a device after its hello, which can be later than the device's close.
  let count = 0
  const all = async () => {
    count = (await admitted()) - admittedBefore
    return count >= visits
  }
  await until(all, { what: "every visit to be admitted", timeoutMs: LIMIT_MS })
  await until(async () => (await open()) === 0, { what: "all to be gone", timeoutMs: LIMIT_MS })
  const { cpu, driver } = meter
  meter.stop()
  const brokerCpu = cpuOf(brokerPids) - brokerBefore
  if (visited !== visits || count !== visits) {
    throw new Error(`${visited} of ${visits} visits, ${failed} failed, ${count} admitted`)
  }
  return {
    cpuUs: (cpu / visits) * 1e6,
    brokerUs: (brokerCpu / visits) * 1e6,
    perSecond: (visits / ms) * 1000,
    driver,
  }
}

function crowd(port: number, auth: ChurnAuth, { visits, atOnce }: ChurnParameters): Child {
  const where = { host: "127.0.0.2", hosts: ADDRESSES, port }
  const devices = { connections: visits, auth, secret: SECRET }
  return startChild("crowd.ts", { ...where, ...devices, "at-once": atOnce })
}

async function gateway(auth: ChurnAuth, url: string): Promise<Subject> {
  const started = await startGateway({
    AMQP_URL: url,
    ...ownQueues(uniqueNames("churn")),
    ...{ WORKERS: "1", DEVICE_HOST: "0.0.0.0", DEVICE_AUTH: auth },
    ...(auth === "hello" ? { HELLO_SECRETS: SECRET } : {}),
  })
  await started.ready()
  return gatewaySubject(started)
}
