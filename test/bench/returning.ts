/**
 * The return: named devices of several crowds connect again within some seconds, while others stay
 * connected and send lines that are acknowledged. First each device closes its connection when it
 * is its turn. Then all lose their connections at the same instant and come back in turn. Beside
 * it the same lines before.
 *
 * The lines are sent from the beginning of a return and as long as it should take, so that closing
 * the old connections is part of what they meet.
 */

import { until } from "../support/wait.ts"
import { type Child, startChild } from "./child.ts"
import { type BenchResult, Meter, makeBedWithBackEnd, round } from "./harness.ts"
import { processIds } from "./subject.ts"

export interface ReturningParameters {
  readonly devices: number
  /** Processes that drive them; a process may open 20,000 files. */
  readonly crowds: number
  readonly workers: number
  /** Devices that stay connected, and send. */
  readonly connected: number
  readonly linesPerSecond: number
  /** The devices are to be back after so many seconds. */
  readonly seconds: number
}

const SECRET = "a-secret-of-the-benches-0123456789"
const LIMIT_MS = 120_000
const WARMING_SECONDS = 2
/** Handshakes of one crowd in progress: enough for 1,000/s when each takes 250 ms. */
const AT_ONCE = 256

export async function returning(parameters: ReturningParameters): Promise<BenchResult> {
  const { devices, crowds: processes, workers, connected, linesPerSecond, seconds } = parameters
  const bed = await makeBedWithBackEnd({
    ...{ WORKERS: String(workers), DEVICE_HOST: "0.0.0.0", DEVICE_ACK: "seq" },
    ...{ DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET },
  })
  const { devicePort: port } = bed.gateway
  const named = { port, auth: "hello", secret: SECRET }
  const each = Math.ceil(devices / processes)
  const all = each * processes
  const crowds = Array.from({ length: processes }, (_, at) =>
    startChild("crowd.ts", {
      // Two addresses for each: the kernel slows down when half of the ports to one are taken.
      ...{ ...named, host: `127.0.0.${3 + 2 * at}`, hosts: 2 },
      ...{ connections: each, first: connected + at * each },
      ...{ rate: each / seconds, "at-once": AT_ONCE },
    }),
  )
  const sender = startChild("crowd.ts", { ...named, host: "127.0.0.2", connections: connected })
  try {
    for (const child of [...crowds, sender]) await child.told("ready")
    sender.say("connect")
    await sender.told("connected")
    await tell(crowds, "connect")
    const open = () => bed.gateway.metric("owsla_connections")
    const everyone = async () => (await open()) === all + connected
    await until(everyone, { what: "all to be connected", timeoutMs: LIMIT_MS })
    const admitted = () => bed.gateway.metric("owsla_connections_admitted_total")

    await send(sender, linesPerSecond, Math.min(WARMING_SECONDS, seconds))
    const quiet = await send(sender, linesPerSecond, seconds)

    const meter = new Meter(
      processIds(bed.gateway),
      [sender, ...crowds].map(({ pid }) => pid),
    )
    /** The figures of the lines while all come back by `comeBack`, which returns who did. */
    const during = async (comeBack: () => Promise<number>) => {
      const before = await admitted()
      const lines = send(sender, linesPerSecond, seconds)
      const startedAtMs = performance.now()
      const failed = all - (await comeBack())
      const back = async () => (await admitted()) - before >= all - failed
      await until(back, { what: "all to be back", timeoutMs: LIMIT_MS })
      const backMs = performance.now() - startedAtMs
      const sent = await lines
      await until(everyone, { what: "the old connections to be gone", timeoutMs: LIMIT_MS })
      return { ...sent, failed, backMs }
    }
    const oneByOne = await during(() => tell(crowds, "return"))
    const atOnce = await during(async () => {
      for (const crowd of crowds) crowd.say("lose")
      for (const crowd of crowds) {
        const { lost } = await crowd.told("lost")
        if (lost !== each) throw new Error(`${lost} of ${each} connections to lose`)
      }
      return tell(crowds, "connect")
    })
    const { driver } = meter
    meter.stop()

    sender.say("close")
    const { closed } = await sender.told("closed")
    if (closed !== connected) throw new Error(`${closed} of ${connected} devices stayed connected`)
    return {
      bench: "returning",
      parameters: { ...parameters },
      figures: {
        "confirm p50 before, ms": round(quiet.p50),
        "confirm p99 before, ms": round(quiet.p99),
        "confirm p50 during the return, ms": round(oneByOne.p50),
        "confirm p99 during the return, ms": round(oneByOne.p99),
        "connections that failed": oneByOne.failed + atOnce.failed,
        "all back, ms": Math.round(oneByOne.backMs),
        "confirm p50 when all were lost at one instant, ms": round(atOnce.p50),
        "confirm p99 when all were lost at one instant, ms": round(atOnce.p99),
        "all back when all were lost at one instant, ms": Math.round(atOnce.backMs),
        "lines sent late by the driver, share": round(Math.max(oneByOne.late, atOnce.late)),
        "busiest driver, share of a core": round(driver),
      },
    }
  } finally {
    for (const child of [...crowds, sender]) await child.stop()
    await bed.stop()
  }
}

/** How many are connected then. */
async function tell(crowds: readonly Child[], word: "connect" | "return"): Promise<number> {
  for (const crowd of crowds) crowd.say(word)
  const told = await Promise.all(crowds.map((crowd) => crowd.told("connected")))
  return told.reduce((sum, { connected = 0 }) => sum + connected, 0)
}

export async function send(sender: Child, perSecond: number, seconds: number) {
  sender.say(`send ${perSecond} ${seconds}`)
  const { sent, acknowledged, p50, p99, late } = await sender.told("acknowledged")
  if (acknowledged !== sent) throw new Error(`${acknowledged} of ${sent} lines acknowledged`)
  return { p50: p50 ?? Number.NaN, p99: p99 ?? Number.NaN, late: late ?? Number.NaN }
}
