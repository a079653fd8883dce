/**
 * Admission: what a connection costs from its first byte to a device that is known and announced,
 * and what it holds while idle; beside a bare TLS server, the two in turn (A B A B) in one run.
 *
 * One worker, so that both are one process that listens; the supervisor is counted with it. The
 * first wave only warms the engine up.
 */

import { join } from "node:path"
import { ownQueues, startGateway, testCaFile } from "../support/gateway.ts"
import { uniqueNames } from "../support/rabbitmq.ts"
import { until } from "../support/wait.ts"
import { type Child, startChild } from "./child.ts"
import { type BenchResult, benchBroker, Meter, median, ratio, round } from "./harness.ts"
import { type Beside, bareServer, besideSubject, gatewaySubject, type Subject } from "./subject.ts"

export interface AdmissionParameters {
  readonly connections: number
  readonly rounds: number
}

export type AdmissionAuth = "none" | "hello" | "mtls"

const SECRET = "a-secret-of-the-benches-0123456789"
const LIMIT_MS = 120_000

interface Wave {
  readonly cpuUs: number
  readonly residentKib: number
  readonly driver: number
}

export async function admission(
  auth: AdmissionAuth,
  { connections, rounds }: AdmissionParameters,
  beside: Beside | null,
): Promise<BenchResult> {
  const [broker, leave] = await benchBroker()
  const bare = await bareServer(auth === "mtls" ? testCaFile() : null)
  const own = await gateway(auth, broker.url)
  const subjects = [own, bare, ...(beside === null ? [] : [besideSubject(beside)])]
  const crowds = subjects.map(({ port }) => crowd(port, auth, connections))
  const waves = new Map<Subject, Wave[]>(subjects.map((subject) => [subject, []]))
  try {
    for (const each of crowds) await each.told("ready")
    for (let at = -1; at < rounds; at += 1) {
      for (const [which, subject] of subjects.entries()) {
        const wave = await oneWave(subject, crowds[which] as Child, connections)
        if (at >= 0) waves.get(subject)?.push(wave)
      }
    }
  } finally {
    for (const each of crowds) await each.stop()
    for (const { stop } of subjects) await stop()
    await leave()
  }
  const cpuUs = (of: Subject) => median(waves.get(of)?.map((wave) => wave.cpuUs) ?? [])
  // The first wave after the warm-up: later ones find memory that was not given back.
  const residentKib = (of: Subject) => waves.get(of)?.[0]?.residentKib ?? Number.NaN
  const figures: Record<string, number> = {
    "CPU a connection, us": round(cpuUs(own)),
    "resident an idle connection, KiB": round(residentKib(own)),
  }
  for (const other of subjects.slice(1)) {
    figures[`CPU a connection, ${other.name}, us`] = round(cpuUs(other))
    figures[`resident an idle connection, ${other.name}, KiB`] = round(residentKib(other))
  }
  Object.assign(
    figures,
    ratio("CPU ratio to bare", cpuUs(own), cpuUs(bare)),
    ratio("resident ratio to bare", residentKib(own), residentKib(bare)),
  )
  const driver = median(waves.get(own)?.map((wave) => wave.driver) ?? [])
  figures["busiest driver, share of a core"] = round(driver)
  return { bench: `admission-${auth}`, parameters: { connections, rounds }, figures }
}

/** Connects the crowd, measures, lets it go. */
async function oneWave(subject: Subject, crowd: Child, connections: number): Promise<Wave> {
  const { admitted, open } = subject
  const admittedBefore = (await admitted?.()) ?? 0
  const meter = new Meter(subject.pids(), [crowd.pid])
  crowd.say("connect")
  const { connected } = await crowd.told("connected")
  if (connected !== connections) throw new Error(`${connected} of ${connections} connected`)
  if (admitted !== null) {
    const all = async () => (await admitted()) === admittedBefore + connections
    await until(all, { what: "every device to be admitted", timeoutMs: LIMIT_MS })
  }
  const { cpu, driver } = meter
  const residentKib = (meter.resident() - meter.before) / connections / 1024
  meter.stop()
  crowd.say("close")
  await crowd.told("closed")
  if (open !== null) {
    await until(async () => (await open()) === 0, { what: "all to be gone", timeoutMs: LIMIT_MS })
  }
  return { cpuUs: (cpu / connections) * 1e6, residentKib, driver }
}

function crowd(port: number, auth: AdmissionAuth, connections: number): Child {
  const directory = join(testCaFile(), "..")
  const options = { port, connections, auth, secret: SECRET, "ca-cert": testCaFile() }
  return startChild("crowd.ts", { ...options, "ca-key": join(directory, "ca.key") })
}

async function gateway(auth: AdmissionAuth, url: string): Promise<Subject> {
  const identity: Record<AdmissionAuth, Record<string, string>> = {
    none: {},
    hello: { HELLO_SECRETS: SECRET },
    mtls: { TLS_CLIENT_CA_FILE: testCaFile() },
  }
  const started = await startGateway({
    AMQP_URL: url,
    ...ownQueues(uniqueNames("admission")),
    WORKERS: "1",
    DEVICE_AUTH: auth,
    ...identity[auth],
  })
  await started.ready()
  return gatewaySubject(started)
}
