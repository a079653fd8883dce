/**
 * Peers that want to keep others out: floods of connections, connections that are never completed,
 * guesses, a device that sends as fast as it can, and HTTP clients that take their time.
 */

import { expect } from "bun:test"
import net from "node:net"
import { join } from "node:path"
import { connectDevice } from "../support/tls-device.ts"
import { until } from "../support/wait.ts"
import { bedsOnOneBroker, expectKept, type FaultBed } from "./bed.ts"
import { fault, last, sized } from "./fault.ts"

const LIMIT_MS = sized(900_000, 300_000)
const SECRET = "a-secret-of-the-faults-0123456789"
const OPENER = join(import.meta.dir, "../support/opener.ts")
const start = bedsOnOneBroker(LIMIT_MS)

const NAMED = { DEVICE_AUTH: "hello", HELLO_SECRETS: SECRET, DEVICE_ACK: "seq" }
const FLAGS = ["--auth", "hello", "--secret", SECRET, "--device-ack"]

interface Opened {
  readonly opened: number
  readonly completed: number
  readonly refused: number
  readonly lines: number
}

function startOpener(bed: FaultBed, kind: string, options: Record<string, number>) {
  const child = Bun.spawn(
    [
      ...["nice", process.execPath, OPENER, "--kind", kind],
      ...["--port", String(bed.gateway.devicePort)],
      ...Object.entries(options).flatMap(([name, value]) => [`--${name}`, String(value)]),
    ],
    { stdio: ["pipe", "pipe", "inherit"] },
  )
  bed.alsoEnd(() => child.kill("SIGKILL"))
  return {
    end: async (): Promise<Opened> => {
      child.stdin.end()
      return JSON.parse(await new Response(child.stdout).text()) as Opened
    },
  }
}

/** The 99th percentile of confirms of good devices, without and beside what `abuse` does. */
async function beside<T>(
  bed: FaultBed,
  good: { readonly devices: number; readonly rate: number; readonly flags: readonly string[] },
  abuse: () => Promise<T>,
) {
  const quiet = await bed.herd(good)
  await last(sized(20, 2))
  const before = await quiet.end()
  expectKept(before, good.devices)
  const herd = await bed.herd({ ...good, flags: [...good.flags, "--name", "beside"] })
  const result = await abuse()
  const after = await herd.end()
  const kept = expectKept(after, good.devices, "any")
  const faults = bed.gateway.log.filter(({ msg }) => msg === "worker ended" || msg === "fault")
  expect(faults).toEqual([])
  const figures = {
    ...kept,
    "confirm p99 quiet, ms": before.report.latencyMs.confirm.p99 ?? "",
    "confirm p99 beside it, ms": after.report.latencyMs.confirm.p99 ?? "",
  }
  return { result, figures }
}

const closedAs = (bed: FaultBed, reason: string) =>
  bed.gateway.metric("owsla_connections_closed_total", reason)

const OPENINGS = sized(100_000, 1_000)
const OPENING_ADDRESSES = sized(1_000, 100)
const GOOD = sized(2_000, 40)

fault(
  {
    fault: "flood of connections",
    made: `${OPENINGS} handshakes within ${sized(60, 6)} s from ${OPENING_ADDRESSES} addresses, closed at once, beside ${GOOD} good devices; MAX_HANDSHAKES_PER_ADDRESS_PER_S=1`,
    promise:
      "good devices stay, lost 0, in order; what exceeds one a second of an address is refused before TLS",
  },
  async () => {
    const bed = await start({
      ...NAMED,
      MAX_HANDSHAKES_PER_ADDRESS_PER_S: "1",
      MAX_CONNECTIONS_PER_ADDRESS: "4",
    })
    const flags = [...FLAGS, "--addresses", String(GOOD)]
    const { result, figures } = await beside(bed, { devices: GOOD, rate: 0.5, flags }, async () => {
      const rate = OPENINGS / sized(60, 6)
      const options = { rate, count: OPENINGS, addresses: OPENING_ADDRESSES }
      const opener = startOpener(bed, "visit", options)
      const before = await bed.gateway.metric("owsla_connections_accepted_total")
      const all = async () =>
        (await bed.gateway.metric("owsla_connections_accepted_total")) - before >= OPENINGS
      await until(all, { what: "all to be opened", timeoutMs: LIMIT_MS })
      return opener.end()
    })
    const refused = await closedAs(bed, "overloaded_address")
    expect(result.opened).toBe(OPENINGS)
    // By the workers together; each has its own count of an address.
    expect(refused).toBeGreaterThan(0)
    return { ...figures, opened: OPENINGS, "refused before TLS": refused }
  },
  LIMIT_MS,
)

const DRIPPING = sized(4_000, 300)

fault(
  {
    fault: "handshakes that never end",
    made: `${DRIPPING} connections that send a byte of a ClientHello each second, beside ${GOOD} good devices`,
    promise: "good devices stay, lost 0, in order; the others end as handshake_timeout",
  },
  async () => {
    const bed = await start({ ...NAMED, HANDSHAKE_TIMEOUT_MS: "3000" })
    const good = { devices: GOOD, rate: 0.5, flags: FLAGS }
    const { figures } = await beside(bed, good, async () => {
      const opener = startOpener(bed, "drip", { rate: 1_000, count: DRIPPING, addresses: 100 })
      const over = async () => (await closedAs(bed, "handshake_timeout")) >= DRIPPING
      await until(over, { what: "all to time out", timeoutMs: LIMIT_MS })
      return opener.end()
    })
    return { ...figures, "ended as handshake_timeout": DRIPPING }
  },
  LIMIT_MS,
)

const GUESSES_PER_S = sized(500, 100)
const ALLOWED_GUESSES = 5

fault(
  {
    fault: "guesses",
    made: `${GUESSES_PER_S} HELLO lines a second with guessed proofs from one address, beside ${GOOD} good devices; MAX_HANDSHAKES_PER_ADDRESS_PER_S=${ALLOWED_GUESSES}`,
    promise: "no guess is admitted; good devices stay, lost 0, in order",
  },
  async () => {
    const bed = await start({
      ...{ ...NAMED, WORKERS: "1" },
      MAX_HANDSHAKES_PER_ADDRESS_PER_S: String(ALLOWED_GUESSES),
    })
    const flags = [...FLAGS, "--addresses", String(GOOD)]
    const seconds = sized(30, 4)
    const { result, figures } = await beside(bed, { devices: GOOD, rate: 0.5, flags }, async () => {
      const opener = startOpener(bed, "guess", { rate: GUESSES_PER_S })
      await last(seconds)
      return opener.end()
    })
    const guessed = await closedAs(bed, "refused")
    expect(guessed).toBeGreaterThan(0)
    expect(guessed).toBeLessThanOrEqual(ALLOWED_GUESSES * (seconds + 3))
    expect(result.lines).toBe(0)
    expect(await bed.gateway.metric("owsla_connections_admitted_total")).toBe(2 * GOOD)
    return { ...figures, "guesses made": result.opened, "guesses checked": guessed }
  },
  LIMIT_MS,
)

const FLOOD_LIMIT = 200

fault(
  {
    fault: "device that floods",
    made: `one device that sends lines as fast as its socket takes them, beside ${GOOD} good devices of the same worker; DEVICE_LINES_PER_S=${FLOOD_LIMIT}`,
    promise:
      "it is read at its rate and no line of it is lost; good devices stay, lost 0, in order",
  },
  async () => {
    const bed = await start({
      ...{ DEVICE_ACK: "seq", WORKERS: "1", DEVICE_LINES_PER_S: String(FLOOD_LIMIT) },
    })
    const good = { devices: GOOD, rate: 0.5, flags: ["--device-ack"] }
    const { result, figures } = await beside(bed, good, async () => {
      const device = await connectDevice({ port: bed.gateway.devicePort })
      const linesPerChunk = 100
      const chunk = Buffer.from(
        "a line of a device that floods, which is no line of a herd\n".repeat(linesPerChunk),
      )
      let isOver = false
      const flooding = (async () => {
        let chunks = 0
        while (!isOver) {
          await device.sendBytes(chunk)
          chunks += 1
        }
        return chunks * linesPerChunk
      })()
      const startedAtMs = performance.now()
      await last(sized(30, 4))
      const perS = device.lines.length / ((performance.now() - startedAtMs) / 1_000)
      isOver = true
      device.terminate()
      await flooding.catch(() => undefined)
      const acknowledged = device.lines
      expect(acknowledged.every((line, n) => line === `ACK ${n}`)).toBe(true)
      return { taken: acknowledged.length, perS }
    })
    const read = await bed.gateway.metric("owsla_lines_in_total")
    await until(async () => (await bed.confirmed()) === read, { what: "all lines to be confirmed" })
    const allowed = FLOOD_LIMIT * (sized(30, 4) + 2)
    expect(result.taken).toBeLessThanOrEqual(allowed * 1.2)
    expect(result.taken).toBeGreaterThan(FLOOD_LIMIT)
    return { ...figures, "taken of it, lines a second": Math.round(result.perS) }
  },
  LIMIT_MS,
)

const SLOW_HTTP = sized(2_000, 200)

fault(
  {
    fault: "slow HTTP clients",
    made: `${SLOW_HTTP} connections to the HTTP port that send a byte of a header each second, beside ${GOOD} good devices`,
    promise: "GET /health is answered all along; good devices stay, lost 0, in order",
  },
  async () => {
    const bed = await start({ DEVICE_ACK: "seq" })
    const good = { devices: GOOD, rate: 0.5, flags: ["--device-ack"] }
    const { result, figures } = await beside(bed, good, async () => {
      const head = "GET /devices HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
      const slow = Array.from({ length: SLOW_HTTP }, () => {
        const socket = net.connect(bed.gateway.httpPort, "127.0.0.1")
        let sent = 0
        socket.on("error", () => undefined)
        const timer = setInterval(() => {
          socket.write(head[sent] ?? "x")
          sent += 1
        }, 1_000)
        socket.on("close", () => clearInterval(timer))
        return socket
      })
      const tookMs: number[] = []
      const endsAtMs = performance.now() + sized(30, 8) * 1_000
      while (performance.now() < endsAtMs) {
        const askedAtMs = performance.now()
        const response = await bed.gateway.fetch("/health", { signal: AbortSignal.timeout(5_000) })
        expect(response.status).toBe(200)
        await response.text()
        tookMs.push(performance.now() - askedAtMs)
        // The period of the requests, not a wait for anything.
        await Bun.sleep(50)
      }
      for (const socket of slow) socket.destroy()
      return Math.max(...tookMs)
    })
    return { ...figures, connections: SLOW_HTTP, "slowest /health, ms": Math.round(result) }
  },
  LIMIT_MS,
)
