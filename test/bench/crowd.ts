/**
 * A crowd: devices that connect, say who they are and then only hold their connection, or send
 * lines that the gateway acknowledges (`DEVICE_ACK=seq`). With `--protocol mqtt` they are MQTT
 * clients instead: a line is a PUBLISH with QoS 1, and a PUBACK acknowledges it. A process may open
 * 20,000 files: larger crowds are several of these.
 *
 *   stdout {"ready": n}
 *   stdin "connect [count] [host]" ─► stdout {"connected": all now, "ms": for these, "medianMs", "slowestMs": for one}
 *   stdin "send rate seconds"      ─► stdout {"sent", "acknowledged", "p50", "p99", "late": share}
 *   stdin "close"                  ─► stdout {"closed": n}
 *   stdin "lose"                   ─► stdout {"lost": n}: closes all at the same instant, without the rate
 *   stdin "return" ─► stdout {"connected"}: each closes its connection and opens another, at the rate
 *   stdin "visit count"            ─► stdout {"visited": n, "failed": n, "ms"}: each connects and closes
 */

import { readFileSync } from "node:fs"
import { parseArgs } from "node:util"
import { helloLine } from "../../src/device/hello.ts"
import { createDeviceCertificate } from "../../src/ops/certificates.ts"
import { handshakeSucceeded } from "../../src/simulator/handshake.ts"
import { report } from "./child.ts"
import { connectPacket, nextPacketId, publishPacket, ReplyReader } from "./mqtt.ts"
import { atRate, percentile } from "./pace.ts"

const { values } = parseArgs({
  options: {
    host: { type: "string", default: "127.0.0.1" },
    /**
     * Addresses, from the host's on: the kernel slows down when half of the ports to one are taken,
     * some 14,000.
     */
    hosts: { type: "string", default: "1" },
    port: { type: "string" },
    protocol: { type: "string", default: "lines" },
    connections: { type: "string" },
    /** The number of the first device. */
    first: { type: "string", default: "0" },
    auth: { type: "string", default: "none" },
    secret: { type: "string", default: "" },
    /** A CA's certificate and key, with which the devices' own are made. */
    "ca-cert": { type: "string", default: "" },
    "ca-key": { type: "string", default: "" },
    /** Connections, and later closes, a second; 0: as fast as they go. */
    rate: { type: "string", default: "0" },
    /** Handshakes that are begun and not complete. */
    "at-once": { type: "string", default: "64" },
  },
})
const port = Number(values.port)
const connections = Number(values.connections)
const first = Number(values.first)
const hosts = Number(values.hosts)
const rate = Number(values.rate)
const atOnce = Number(values["at-once"])
const isMqtt = values.protocol === "mqtt"
const CLIENT = { rejectUnauthorized: false }
/** RabbitMQ publishes to `amq.topic` with the topic as routing key. */
const TOPIC = "from_device"

interface DeviceIdentity {
  /** What it sends first. */
  readonly hello: string | Buffer
  readonly tls: Bun.TLSOptions
}

async function identityOf(name: string): Promise<DeviceIdentity> {
  if (isMqtt) return { hello: connectPacket(name), tls: CLIENT }
  switch (values.auth) {
    case "hello":
      return { hello: `${helloLine(name, values.secret)}\n`, tls: CLIENT }
    case "mtls": {
      const certPem = readFileSync(values["ca-cert"], "utf8")
      const keyPem = readFileSync(values["ca-key"], "utf8")
      const pair = await createDeviceCertificate({ certPem, keyPem }, name)
      return { hello: "", tls: { ...CLIENT, cert: pair.certPem, key: pair.keyPem } }
    }
    default:
      return { hello: "", tls: CLIENT }
  }
}

const identities: DeviceIdentity[] = []
for (let at = first; at < first + connections; at += 1) {
  identities.push(await identityOf(`device-${at}`))
}

interface Sent {
  /** When each line that is not acknowledged was sent, oldest first. */
  readonly atMs: number[]
  /** Of the last PUBLISH. */
  packetId: number
  readonly replies: ReplyReader
}

const sockets = new Set<Bun.Socket<Sent>>()
/** From the beginning to the end of each handshake of this wave. */
let tookMs: number[] = []
/** From the sending of each line to its acknowledgement. */
let confirmMs: number[] = []
const LF = 10
const CONFIRM_LIMIT_MS = 10_000

function connect(at: number, hostname: string): Promise<void> {
  const { hello = "", tls = CLIENT } = identities[at] ?? {}
  const { promise, resolve } = Promise.withResolvers<void>()
  const begunAtMs = performance.now()
  const onConnected = (socket: Bun.Socket<Sent>) => {
    sockets.add(socket)
    tookMs.push(performance.now() - begunAtMs)
    resolve()
  }
  const readReplies = (socket: Bun.Socket<Sent>, chunk: Uint8Array) =>
    socket.data.replies.read(chunk, (reply) => {
      if (reply === "accepted") onConnected(socket)
      // Acknowledgements come in the order of the publishes (MQTT-4.6.0-2).
      else takeAcknowledgement(socket.data)
    })
  Bun.connect<Sent>({
    hostname,
    port,
    tls,
    data: { atMs: [], packetId: 0, replies: new ReplyReader() },
    socket: {
      handshake: (socket) => {
        if (hello !== "") socket.write(hello)
        if (!isMqtt) onConnected(socket)
      },
      data: (socket, chunk) => {
        if (isMqtt) return readReplies(socket, chunk)
        for (const byte of chunk) if (byte === LF) takeAcknowledgement(socket.data)
      },
      close: (socket) => {
        sockets.delete(socket)
        resolve()
      },
      error: (_socket, error) => {
        // A refused connection is closed, so the count of connections shows it.
        if (isMqtt) console.error(error)
      },
    },
  }).catch(() => resolve())
  return promise
}

function takeAcknowledgement({ atMs }: Sent): void {
  const sentAtMs = atMs.shift()
  if (sentAtMs !== undefined) confirmMs.push(performance.now() - sentAtMs)
}

/** The address that comes so many after another. */
function addressOf(host: string, after: number): string {
  return host.replace(/\d+$/, (last) => String(Number(last) + after))
}

async function connectMore(count: number, hostname: string): Promise<void> {
  tookMs = []
  const before = sockets.size
  const startedAtMs = performance.now()
  await paced(count, (at) => connect(before + at, addressOf(hostname, at % hosts)))
  const ms = performance.now() - startedAtMs
  const connected = sockets.size
  const [medianMs, slowestMs] = [percentile(tookMs, 0.5), percentile(tookMs, 1)]
  report({ connected, ms, medianMs, slowestMs })
}

/** Each device in turn closes its connection and opens another. */
async function comeBack(hostname: string): Promise<void> {
  const open = [...sockets]
  await paced(open.length, (at) => {
    open[at]?.terminate()
    return connect(at, addressOf(hostname, at % hosts))
  })
  report({ connected: sockets.size })
}

/** Resolves when the connection is closed; true if the handshake succeeded and the hello was sent. */
function visit(at: number, hostname: string): Promise<boolean> {
  const { hello = "", tls = CLIENT } = identities[at % identities.length] ?? {}
  const { promise, resolve } = Promise.withResolvers<boolean>()
  let visited = false
  Bun.connect({
    hostname,
    port,
    tls,
    socket: {
      handshake: (socket, success, error) => {
        visited = handshakeSucceeded(success, error, false)
        if (visited && hello !== "") visited = socket.write(hello) === hello.length
        // FIN, not RST: the kernel could discard the hello with an RST.
        socket.end()
      },
      data: () => undefined,
      close: () => resolve(visited),
      error: () => undefined,
    },
  }).catch(() => resolve(false))
  return promise
}

async function visitAll(count: number): Promise<void> {
  let visited = 0
  const startedAtMs = performance.now()
  await paced(count, async (at) => {
    if (await visit(at, addressOf(values.host, at % hosts))) visited += 1
  })
  report({ visited, failed: count - visited, ms: performance.now() - startedAtMs })
}

/** Lines of 100 bytes, by each device in turn. */
async function send(perSecond: number, seconds: number): Promise<void> {
  confirmMs = []
  const lines = Math.round(perSecond * seconds)
  const payload = Buffer.from("x".repeat(100))
  const line = Buffer.from(`${payload}\n`)
  const packetOf = (data: Sent) => {
    data.packetId = nextPacketId(data.packetId)
    return publishPacket(TOPIC, data.packetId, payload)
  }
  const open = [...sockets]
  const late = await atRate(lines, perSecond, (n) => {
    const socket = open[n % open.length]
    if (socket === undefined) return
    socket.data.atMs.push(performance.now())
    socket.write(isMqtt ? packetOf(socket.data) : line)
  })
  const deadlineMs = performance.now() + CONFIRM_LIMIT_MS
  while (confirmMs.length < lines && performance.now() < deadlineMs) await Bun.sleep(10)
  const acknowledged = confirmMs.length
  const [p50, p99] = [percentile(confirmMs, 0.5), percentile(confirmMs, 0.99)]
  report({ sent: lines, acknowledged, p50, p99, late })
}

/** Runs `act` for 0 to `count` - 1, at the rate and no more than `atOnce` at a time. */
async function paced(count: number, act: (at: number) => Promise<void>): Promise<void> {
  const startedAtMs = performance.now()
  let next = 0
  const publishChannel = async () => {
    for (let at = next++; at < count; at = next++) {
      const dueMs = rate === 0 ? 0 : startedAtMs + (at / rate) * 1000
      const waitMs = dueMs - performance.now()
      if (waitMs > 0) await Bun.sleep(waitMs)
      await act(at)
    }
  }
  await Promise.all(Array.from({ length: Math.min(count, atOnce) }, publishChannel))
}

report({ ready: connections })
for await (const line of console) {
  const [word, ...more] = line.split(" ")
  if (word === "connect") {
    await connectMore(Number(more[0] ?? connections), more[1] ?? values.host)
  }
  if (word === "send") await send(Number(more[0]), Number(more[1]))
  if (word === "close") {
    const open = [...sockets]
    await paced(open.length, async (at) => {
      open[at]?.end()
    })
    report({ closed: open.length })
  }
  if (word === "lose") {
    const open = [...sockets]
    // RST, not FIN: ports in TIME_WAIT would be missing when the devices connect again.
    for (const socket of open) socket.terminate()
    sockets.clear()
    report({ lost: open.length })
  }
  if (word === "return") await comeBack(values.host)
  if (word === "visit") await visitAll(Number(more[0]))
}
process.exit(0)
