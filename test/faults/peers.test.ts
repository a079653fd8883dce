/**
 * Faults of peers: hostile devices beside good ones, a burst of tiny lines, a peer that is frozen,
 * one that talks on while it is closed, and openings that are no TLS.
 */

import { expect } from "bun:test"
import net from "node:net"
import tls from "node:tls"
import { AMQPClient } from "@cloudamqp/amqp-client"
import { HOSTILE_KINDS } from "../../src/simulator/hostile-kinds.ts"
import { testCaFile } from "../support/gateway.ts"
import { mulberry32 } from "../support/random.ts"
import { connectDevice } from "../support/tls-device.ts"
import { findProgram } from "../support/tools.ts"
import { until } from "../support/wait.ts"
import { bedsOnOneBroker, expectKept, residentMegabytes } from "./bed.ts"
import { fault, last, sized } from "./fault.ts"

const LIMIT_MS = sized(900_000, 300_000)
const SECRET = "a-secret-of-the-faults-0123456789"
const start = bedsOnOneBroker(LIMIT_MS)

const GOOD = sized(200, 40)
const HOSTILE_EACH = sized(250, 10)

fault(
  {
    fault: "hostile peers",
    made: `${HOSTILE_EACH} each of ${HOSTILE_KINDS.join(", ")}, beside ${GOOD} good devices`,
    promise: "good devices stay, lost 0, in order; no worker ends",
  },
  async () => {
    const bed = await start({
      DEVICE_AUTH: "hello",
      HELLO_SECRETS: SECRET,
      DEVICE_ACK: "seq",
      HANDSHAKE_TIMEOUT_MS: "3000",
      IDENTIFY_TIMEOUT_MS: "2000",
    })
    const good = { devices: GOOD, rate: 2 }
    const flags = ["--auth", "hello", "--secret", SECRET, "--device-ack"]
    const quiet = await bed.herd({ ...good, flags })
    await last(sized(30, 2))
    const before = await quiet.end()
    expectKept(before, GOOD)
    const hostile = HOSTILE_KINDS.flatMap((kind) => ["--hostile", `${kind}:${HOSTILE_EACH}`])
    const loud = await bed.herd({ ...good, flags: [...flags, "--name", "good", ...hostile] })
    await last(sized(60, 4))
    const after = await loud.end()
    const kept = expectKept(after, GOOD)
    expect(bed.gateway.log.filter(({ msg }) => msg === "worker ended" || msg === "fault")).toEqual(
      [],
    )
    const opened = after.report.hostile.reduce((sum, each) => sum + each.opened, 0)
    return {
      ...kept,
      "hostile connections": opened,
      "confirm p99 quiet, ms": before.report.latencyMs.confirm.p99 ?? "",
      "confirm p99 beside them, ms": after.report.latencyMs.confirm.p99 ?? "",
    }
  },
  LIMIT_MS,
)

const TINY = sized(5_000_000, 100_000)

const SILENT = sized(2_000, 500)

fault(
  {
    fault: "silent connections before the others",
    made: `${SILENT} TCP connections to one worker that say nothing, then a device`,
    promise: "the device is let in while they are held",
  },
  async () => {
    const bed = await start({ WORKERS: "1", HANDSHAKE_TIMEOUT_MS: "60000" })
    const sockets = await Promise.all(
      Array.from({ length: SILENT }, async () => {
        const socket = net.connect(bed.gateway.devicePort, "127.0.0.1")
        socket.on("error", () => undefined)
        await new Promise((resolve) => socket.once("connect", resolve))
        return socket
      }),
    )
    bed.alsoEnd(() => {
      for (const socket of sockets) socket.destroy()
    })
    const startedAtMs = performance.now()
    const device = await connectDevice({ port: bed.gateway.devicePort, connectTimeoutMs: 30_000 })
    const tookMs = Math.round(performance.now() - startedAtMs)
    // No silent connection was closed to make room for the device.
    expect(await bed.gateway.metric("owsla_connections_closed_total", "handshake_timeout")).toBe(0)
    device.end()
    return { silent: SILENT, "let in after, ms": tookMs }
  },
  LIMIT_MS,
)

fault(
  {
    fault: "burst of tiny lines",
    made: `${TINY} lines of one byte, as fast as one socket takes them`,
    promise: "every line arrives once, in order, and memory stays bounded",
  },
  async () => {
    const bed = await start()
    const backEnd = new AMQPClient(`${bed.broker.url}?frameMax=131072`)
    await backEnd.connect()
    const channel = await backEnd.channel()
    let taken = 0
    let disorder = 0
    await channel.basicConsume(bed.queues.FROM_DEVICE_QUEUE, { noAck: true }, (message) => {
      if (Number(message.properties.headers?.["from_device_seq"]) !== taken) disorder += 1
      taken += 1
    })
    const device = await connectDevice({ port: bed.gateway.devicePort })
    const startedAtMs = performance.now()
    const chunk = Buffer.from("x\n".repeat(50_000))
    let most = 0
    const watching = setInterval(() => {
      most = Math.max(most, residentMegabytes(bed.gateway))
    }, 250)
    for (let sent = 0; sent < TINY; sent += 50_000) await device.sendBytes(chunk)
    await until(() => taken >= TINY, { what: `${TINY} lines`, timeoutMs: LIMIT_MS })
    clearInterval(watching)
    const perS = Math.round(TINY / ((performance.now() - startedAtMs) / 1_000))
    expect([taken, disorder]).toEqual([TINY, 0])
    expect(most).toBeLessThan(300)
    device.end()
    backEnd.socket?.destroy()
    return { lines: taken, lost: 0, "a second": perS, "largest worker, MB": most }
  },
  LIMIT_MS,
)

fault(
  {
    fault: "peer that is frozen",
    made: "SIGSTOP to openssl s_client after its handshake: its kernel answers, it does not",
    promise: "closed as idle; others go on",
  },
  async () => {
    const bed = await start({ IDLE_TIMEOUT_MS: "3000" })
    const other = await connectDevice({ port: bed.gateway.devicePort })
    const program = Bun.spawn(
      [
        findProgram("openssl", "openssl"),
        ...["s_client", "-quiet", "-nocommands", "-CAfile", testCaFile()],
        ...["-connect", `localhost:${bed.gateway.devicePort}`],
      ],
      { stdio: ["pipe", "ignore", "ignore"] },
    )
    bed.alsoEnd(() => program.kill("SIGKILL"))
    // Stopped in its handshake it would end as handshake_timeout.
    const admitted = () => bed.gateway.metric("owsla_connections_admitted_total")
    await until(async () => (await admitted()) === 2, { what: "both to be admitted" })
    program.kill("SIGSTOP")
    const idle = () => bed.gateway.metric("owsla_connections_closed_total", "idle")
    const startedAtMs = performance.now()
    const gone = async () => {
      await other.send("still here")
      return (await idle()) === 1 && (await bed.gateway.metric("owsla_connections")) === 1
    }
    await until(gone, { what: "the frozen one to be closed" })
    other.end()
    return { "closed after, ms": Math.round(performance.now() - startedAtMs) }
  },
  LIMIT_MS,
)

fault(
  {
    fault: "peer that talks on and reads nothing",
    made: "a device that never reads gets 300 commands of 60 KB, sends lines without end, and is kicked",
    promise:
      "the connection ends all the same; each command has one outcome, and those not written are kept",
  },
  async () => {
    const bed = await start({ MAX_OUTGOING_BYTES: "67108864" })
    const socket = tls.connect({
      ...{ host: "127.0.0.1", port: bed.gateway.devicePort, rejectUnauthorized: false },
    })
    socket.on("error", () => undefined)
    bed.alsoEnd(() => socket.destroy())
    await new Promise((resolve) => socket.once("secureConnect", resolve))
    socket.pause()
    socket.write("here\n")
    const listed = async () =>
      ((await (await bed.gateway.fetch("/devices")).json()) as { devices: { device_id: string }[] })
        .devices
    const [device] = await until(
      async () => {
        const devices = await listed()
        return devices.length === 1 ? devices : null
      },
      { what: "the device" },
    )
    const id = device?.device_id ?? ""
    const headers = { "content-type": "text/plain" }
    // More than the kernel takes for it.
    const commands = 300
    const sends = Array.from({ length: commands }, async () => {
      const request = { method: "POST", headers, body: "x".repeat(60_000) }
      return (await bed.gateway.fetch(`/devices/${id}/send`, request)).status
    })
    const outcomes = () => bed.gateway.metric("owsla_commands_total")
    const waiting = async () => {
      const response = await bed.gateway.fetch(`/devices/${id}`)
      return ((await response.json()) as { outgoing_bytes: number }).outgoing_bytes > 0
    }
    await until(waiting, { what: "commands to wait for its socket" })
    const talking = setInterval(() => socket.write("on and on\n"), 5)
    const kickedAtMs = performance.now()
    const path = `/devices/${id}/connection`
    // 504: a busy worker did not answer in time. It may have closed the connection all the same;
    // then it is gone (404).
    const kicked = async () =>
      [200, 404].includes((await bed.gateway.fetch(path, { method: "DELETE" })).status)
    await until(kicked, { what: "the kick to be answered" })
    const gone = async () => (await bed.gateway.metric("owsla_connections")) === 0
    await until(gone, { what: "its connection to be gone" })
    const goneMs = Math.round(performance.now() - kickedAtMs)
    clearInterval(talking)
    await until(async () => (await outcomes()) === commands, { what: "every outcome" })
    const written = await bed.gateway.metric("owsla_commands_total", "written")
    const closed = await bed.gateway.metric("owsla_commands_total", "closed")
    expect(closed).toBeGreaterThan(0)
    const kept = async () =>
      (await bed.broker.queueDepth(bed.queues.UNDELIVERED_QUEUE)) === commands - written
    await until(kept, { what: "those not written to be kept" })
    await Promise.all(sends)
    return { commands, written, closed, "gone after, ms": goneMs }
  },
  LIMIT_MS,
)

const OPENINGS = sized(100_000, 1_500)
const AT_ONCE = 100
const SEED = 20_141_001

fault(
  {
    fault: "openings that are no TLS",
    made: `${OPENINGS} openings: random bytes, and a client's hello with bytes changed, left out, repeated, cut`,
    promise: "no worker ends, nothing is left of them, and a good device goes on",
  },
  async () => {
    const bed = await start({ HANDSHAKE_TIMEOUT_MS: "2000" })
    const { gateway } = bed
    const good = await connectDevice({ port: gateway.devicePort })
    const hello = await clientHello()
    const random = mulberry32(SEED)
    let next = 0
    const publishChannel = async () => {
      while (next < OPENINGS) {
        next += 1
        await opening(gateway.devicePort, mutated(hello, random))
      }
    }
    await Promise.all(Array.from({ length: AT_ONCE }, publishChannel))
    const alone = async () => (await gateway.metric("owsla_connections")) === 1
    await until(alone, { what: "all of them to be gone", timeoutMs: 30_000 })
    const before = await bed.confirmed()
    await good.send("still here")
    const confirmed = async () => (await bed.confirmed()) === before + 1
    await until(confirmed, { what: "the good device's line" })
    expect(await gateway.metric("owsla_faults_total")).toBe(0)
    expect(gateway.log.filter(({ msg }) => msg === "worker ended" || msg === "fault")).toEqual([])
    good.end()
    return { openings: OPENINGS, seed: SEED, "largest worker, MB": residentMegabytes(gateway) }
  },
  LIMIT_MS,
)

/** The first bytes of a real client. */
async function clientHello(): Promise<Buffer> {
  const { promise, resolve } = Promise.withResolvers<Buffer>()
  const server = net.createServer((socket) => socket.once("data", resolve).on("error", () => {}))
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening))
  const { port } = server.address() as net.AddressInfo
  const client = tls.connect({ host: "127.0.0.1", port, rejectUnauthorized: false })
  client.on("error", () => undefined)
  const hello = await promise
  client.destroy()
  server.close()
  return hello
}

function mutated(hello: Buffer, random: () => number): Buffer {
  const below = (most: number) => Math.floor(random() * most)
  const bytes = Buffer.from(hello)
  const at = below(bytes.length)
  switch (below(6)) {
    case 0:
      return Buffer.from(Array.from({ length: 1 + below(600) }, () => below(256)))
    case 1:
      for (let n = below(8); n >= 0; n -= 1) bytes.writeUInt8(below(256), below(bytes.length))
      return bytes
    case 2:
      return bytes.subarray(0, at)
    case 3:
      return Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + 1 + below(40))])
    case 4:
      return Buffer.concat([bytes.subarray(0, at), bytes])
    default:
      // A record that claims to be longer or shorter than it is.
      bytes.writeUInt16BE(below(65_536), 3)
      return bytes
  }
}

/** Opens, says it, and closes when it is answered, closed, or after a moment, as scanners do. */
async function opening(port: number, bytes: Buffer): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const socket = net.connect(port, "127.0.0.1", () => socket.write(bytes))
  socket.on("error", () => undefined)
  socket.on("data", () => socket.destroy())
  socket.on("close", () => resolve())
  // The scanner's own time-out.
  socket.setTimeout(50, () => socket.destroy())
  await promise
}
