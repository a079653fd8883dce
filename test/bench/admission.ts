/**
 * Admission: what a connection costs from its first byte to a device that is known and announced, and what
 * it holds while idle; beside a bare TLS server, the two in turn (A B A B) in one run.
 *
 * One worker, so that both are one process that listens; the supervisor is counted with it. The first wave
 * only warms the engine up.
 */

import { join } from "node:path"
import {
  certificateFiles,
  cpuSeconds,
  ownQueues,
  residentBytes,
  startGateway,
  testCaFile,
} from "../support/gateway.ts"
import { uniqueNames } from "../support/rabbitmq.ts"
import { until } from "../support/wait.ts"
import { type Child, startChild } from "./child.ts"
import { type BenchResult, benchBroker, median, round } from "./harness.ts"

export interface AdmissionParameters {
  readonly connections: number
  readonly rounds: number
}

export type AdmissionAuth = "none" | "hello" | "mtls"

const SECRET = "a-secret-of-the-benches"
const LIMIT_MS = 120_000

/** A server under the load: how its processes are found and how many devices it has now. */
interface Subject {
  readonly port: number
  readonly pids: () => readonly number[]
  /** Devices admitted since its start. */
  readonly admitted: () => Promise<number>
  /** Connections that it has now. */
  readonly open: () => Promise<number>
  readonly stop: () => Promise<unknown>
}

export async function admission(
  auth: AdmissionAuth,
  { connections, rounds }: AdmissionParameters,
): Promise<BenchResult> {
  const [broker, leave] = await benchBroker()
  const subjects = [await bare(auth), await gateway(auth, broker.url)] as const
  const crowds = subjects.map(({ port }) => crowd(port, auth, connections))
  const cpu: number[][] = [[], []]
  const resident: number[][] = [[], []]
  try {
    for (const each of crowds) await each.told("ready")
    for (let round = -1; round < rounds; round += 1) {
      for (const [at, subject] of subjects.entries()) {
        const wave = await oneWave(subject, crowds[at] as Child, connections)
        if (round === -1) continue
        cpu[at]?.push(wave.cpuUs)
        resident[at]?.push(wave.residentBytes)
      }
    }
  } finally {
    for (const each of crowds) await each.stop()
    for (const { stop } of subjects) await stop()
    await leave()
  }
  const [bareUs, ownUs] = cpu.map(median) as [number, number]
  // The first wave after the warm-up: later ones find memory that was not given back.
  const [bareBytes, ownBytes] = resident.map(([first = 0]) => first) as [number, number]
  return {
    bench: `admission-${auth}`,
    parameters: { connections, rounds },
    figures: {
      "CPU a connection, us": round(ownUs),
      "CPU a connection, bare server, us": round(bareUs),
      "CPU ratio to bare": round(ownUs / bareUs),
      "resident an idle connection, KiB": round(ownBytes / 1024),
      "resident an idle connection, bare server, KiB": round(bareBytes / 1024),
    },
  }
}

/** Connects the crowd, measures, lets it go. */
async function oneWave({ pids, admitted, open }: Subject, crowd: Child, connections: number) {
  const admittedBefore = await admitted()
  const cpu = () => pids().reduce((sum, pid) => sum + cpuSeconds(pid), 0)
  const resident = () => pids().reduce((sum, pid) => sum + residentBytes(pid), 0)
  const before = { cpu: cpu(), resident: resident() }
  crowd.say("connect")
  const { connected } = await crowd.told("connected")
  if (connected !== connections) throw new Error(`${connected} of ${connections} connected`)
  const all = async () => (await admitted()) === admittedBefore + connections
  await until(all, { what: "every device to be admitted", timeoutMs: LIMIT_MS })
  const after = { cpu: cpu(), resident: resident() }
  crowd.say("close")
  await crowd.told("closed")
  await until(async () => (await open()) === 0, { what: "all to be gone", timeoutMs: LIMIT_MS })
  return {
    cpuUs: ((after.cpu - before.cpu) / connections) * 1e6,
    residentBytes: (after.resident - before.resident) / connections,
  }
}

function crowd(port: number, auth: AdmissionAuth, connections: number): Child {
  const directory = join(testCaFile(), "..")
  const options = { port, connections, auth, secret: SECRET, "ca-cert": testCaFile() }
  return startChild("crowd.ts", { ...options, "ca-key": join(directory, "ca.key") })
}

async function bare(auth: AdmissionAuth): Promise<Subject> {
  const { TLS_CERT_FILE, TLS_KEY_FILE } = certificateFiles()
  const asked: { ca?: string } = auth === "mtls" ? { ca: testCaFile() } : {}
  const child = startChild("bare.ts", { cert: TLS_CERT_FILE, key: TLS_KEY_FILE, ...asked })
  const { port = 0 } = await child.told("port")
  const status = async (field: "admitted" | "open") => {
    child.say("status")
    return (await child.told(field))[field] ?? 0
  }
  return {
    port,
    pids: () => [child.pid],
    admitted: () => status("admitted"),
    open: () => status("open"),
    stop: child.stop,
  }
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
  return {
    port: started.devicePort,
    pids: () => [started.pid, ...started.workers().values()],
    admitted: () => started.metric("owsla_connections_admitted_total"),
    open: () => started.metric("owsla_connections"),
    stop: started.stop,
  }
}
