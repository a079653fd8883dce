/**
 * Very many connections: they arrive at a rate, are held, and then send lines that are
 * acknowledged. Beside it, if wanted, the same crowds on bare TLS servers, one for each worker. And
 * what a connection and a line cost when there are few and when there are many.
 */

import { type Child, startChild } from "./child.ts"
import { type BenchResult, Meter, makeBedWithBackEnd, ratio, round } from "./harness.ts"
import { bareServer, gatewaySubject, type Subject } from "./subject.ts"

export interface ConnectionsParameters {
  readonly devices: number
  /** Workers, and processes that drive them; a process may open 20,000 files. */
  readonly workers: number
  /** Arriving a second. */
  readonly rate: number
  /** So many send lines first, alone. */
  readonly few: number
  readonly linesPerSecond: number
  readonly seconds: number
}

/** The arriving is measured in so many equal parts. */
const STEPS = 5

/** @param compares whether the same crowds also connect to bare TLS servers. */
export async function connections(
  bench: string,
  parameters: ConnectionsParameters,
  compares: boolean,
): Promise<BenchResult> {
  const bare = compares ? await onBareServers(parameters) : {}
  const own = await onGateway(parameters)
  return {
    bench,
    parameters: { ...parameters },
    figures: { ...own, ...bare },
  }
}

async function onGateway(parameters: ConnectionsParameters): Promise<Record<string, number>> {
  const { devices, workers, rate, few } = parameters
  const bed = await makeBedWithBackEnd({
    ...{ WORKERS: String(workers), DEVICE_ACK: "seq", DEVICE_HOST: "0.0.0.0" },
  })
  const { ledger } = bed
  const subject = gatewaySubject(bed.gateway)
  const crowds = startCrowds(
    Array.from({ length: workers }, () => subject.port),
    parameters,
  )
  const drivers = crowds.map(({ pid }) => pid)
  try {
    for (const crowd of crowds) await crowd.told("ready")
    const share = (of: number) => Math.ceil(of / workers)

    await connectAll(crowds, share(few))
    // The first only warms the engine up.
    await sendAll(crowds, subject, parameters)
    const fewLines = await sendAll(crowds, subject, parameters)

    const all = share(devices) * workers
    const stepEach = Math.ceil((share(devices) - share(few)) / STEPS)
    const stepUs: number[] = []
    const arriving = new Meter(subject.pids(), drivers)
    for (let connected = share(few); connected < share(devices); ) {
      const some = Math.min(stepEach, share(devices) - connected)
      const before = arriving.cpu
      await connectAll(crowds, some)
      stepUs.push(((arriving.cpu - before) / (some * workers)) * 1e6)
      connected += some
    }
    const { seconds, driver } = arriving
    const resident = arriving.resident()
    arriving.stop()
    const [early, late] = [stepUs[0] ?? Number.NaN, stepUs.at(-1) ?? Number.NaN]
    const manyLines = await sendAll(crowds, subject, parameters)
    const expected = 3 * parameters.linesPerSecond * parameters.seconds
    if (Math.abs(ledger.count - expected) > 3 * workers || ledger.disorder > 0) {
      throw new Error(`${ledger.count} of ${expected} lines, ${ledger.disorder} out of order`)
    }
    return {
      "connections that failed": all - (await (subject.open ?? (async () => Number.NaN))()),
      "arrived, 1/s": Math.round((all - share(few) * workers) / seconds),
      "arrived, wanted, 1/s": rate,
      "resident, all processes, MB": round(resident / 1e6),
      "CPU a connection, the first fifth, us": round(early),
      "CPU a connection, the last fifth, us": round(late),
      ...ratio("CPU a connection, last to first, ratio", late, early),
      "busiest driver while they arrive, share of a core": round(driver),
      "confirm p50 with all connected, ms": round(manyLines.p50),
      "confirm p99 with all connected, ms": round(manyLines.p99),
      "CPU a line, few connected, us": round(fewLines.cpuUs),
      "CPU a line, all connected, us": round(manyLines.cpuUs),
      ...ratio("CPU a line, all to few, ratio", manyLines.cpuUs, fewLines.cpuUs),
      "lines sent late by the drivers, share": round(manyLines.late),
    }
  } finally {
    for (const crowd of crowds) await crowd.stop()
    await bed.stop()
  }
}

async function onBareServers(parameters: ConnectionsParameters): Promise<Record<string, number>> {
  const { devices, workers } = parameters
  const servers = await Promise.all(Array.from({ length: workers }, () => bareServer()))
  const crowds = startCrowds(
    servers.map(({ port }) => port),
    parameters,
  )
  try {
    for (const crowd of crowds) await crowd.told("ready")
    const meter = new Meter(servers.flatMap(({ pids }) => pids()))
    const each = Math.ceil(devices / workers)
    await connectAll(crowds, each)
    const { cpu } = meter
    const resident = meter.resident()
    meter.stop()
    return {
      "resident, bare servers, MB": round(resident / 1e6),
      "CPU a connection, bare servers, us": round((cpu / (each * workers)) * 1e6),
    }
  } finally {
    for (const crowd of crowds) await crowd.stop()
    for (const server of servers) await server.stop()
  }
}

/** One for each port, to an address of its own: there are fewer ports than connections. */
export function startCrowds(
  ports: readonly number[],
  { devices, rate }: Pick<ConnectionsParameters, "devices" | "rate">,
): Child[] {
  const each = Math.ceil(devices / ports.length)
  return ports.map((port, at) =>
    startChild("crowd.ts", {
      ...{ host: `127.0.0.${2 + 2 * at}`, hosts: 2, port, connections: each, first: at * each },
      ...{ rate: rate / ports.length, "at-once": 256 },
    }),
  )
}

export async function connectAll(crowds: readonly Child[], each: number): Promise<void> {
  for (const crowd of crowds) crowd.say(`connect ${each}`)
  await Promise.all(crowds.map((crowd) => crowd.told("connected")))
}

async function sendAll(
  crowds: readonly Child[],
  subject: Subject,
  { linesPerSecond, seconds }: ConnectionsParameters,
) {
  const meter = new Meter(subject.pids())
  for (const crowd of crowds) crowd.say(`send ${linesPerSecond / crowds.length} ${seconds}`)
  const told = await Promise.all(crowds.map((crowd) => crowd.told("acknowledged")))
  const { cpu } = meter
  meter.stop()
  const sum = (field: string) => told.reduce((sum, report) => sum + (report[field] ?? 0), 0)
  const most = (field: string) => Math.max(...told.map((report) => report[field] ?? Number.NaN))
  if (sum("acknowledged") !== sum("sent")) throw new Error(JSON.stringify(told))
  return {
    cpuUs: (cpu / sum("sent")) * 1e6,
    p50: most("p50"),
    p99: most("p99"),
    late: most("late"),
  }
}
