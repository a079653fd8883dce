/**
 * A herd: many devices in one process of their own, so that the load generator's work is not
 * counted as the gateway's. Started by the benches and scenarios, driven over standard input and
 * output.
 *
 *   stdout {"connected": n} ─► stdin "go" ─► stdout {"sent": n} ─► stdin closes ─► ends
 *
 * Each device sends numbered lines `<connection> <n> xxx…` as fast as the gateway takes them. With
 * "go" lines may also come back; their count and order is reported as {"received": n, "disorder":
 * n}.
 */

import { parseArgs } from "node:util"
import { report } from "./child.ts"

const { values } = parseArgs({
  options: {
    port: { type: "string" },
    connections: { type: "string", default: "10" },
    lines: { type: "string", default: "100" },
    bytes: { type: "string", default: "100" },
  },
})
const port = Number(values.port)
const connections = Number(values.connections)
const linesEach = Number(values.lines)
const lineBytes = Number(values.bytes)

/** Written at a time; a device has no more than this in memory. */
const CHUNK_LINES = 500

interface HerdDevice {
  readonly index: number
  next: number
  pending: Uint8Array
  /** What came back, `<n> …` lines. */
  rest: string
  expected: number
}

let connected = 0
let sent = 0
let received = 0
let disorder = 0
let failed = 0
const sockets: Bun.Socket<HerdDevice>[] = []

function chunkOf(device: HerdDevice): Uint8Array {
  const last = Math.min(linesEach, device.next + CHUNK_LINES)
  let text = ""
  for (; device.next < last; device.next += 1) {
    text += `${`${device.index} ${device.next} `.padEnd(lineBytes, "x")}\n`
  }
  return Buffer.from(text)
}

function pump(socket: Bun.Socket<HerdDevice>): void {
  const device = socket.data
  for (;;) {
    if (device.pending.length === 0) {
      if (device.next === linesEach) return
      device.pending = chunkOf(device)
    }
    const taken = socket.write(device.pending)
    if (taken <= 0) return
    device.pending = device.pending.subarray(taken)
    if (device.pending.length > 0) return
    if (device.next === linesEach) {
      sent += 1
      if (sent === connections) report({ sent: connections * linesEach })
      return
    }
  }
}

function take(device: HerdDevice, chunk: Uint8Array): void {
  const lines = (device.rest + Buffer.from(chunk).toString()).split("\n")
  device.rest = lines.pop() ?? ""
  for (const line of lines) {
    received += 1
    if (Number.parseInt(line, 10) !== device.expected) disorder += 1
    device.expected += 1
  }
}

for (let index = 0; index < connections; index += 1) {
  const handshaken = Promise.withResolvers<void>()
  const socket = await Bun.connect<HerdDevice>({
    hostname: "127.0.0.1",
    port,
    tls: { rejectUnauthorized: false },
    data: { index, next: 0, pending: new Uint8Array(0), rest: "", expected: 0 },
    socket: {
      handshake: () => handshaken.resolve(),
      data: (socket, chunk) => take(socket.data, chunk),
      drain: (socket) => {
        if (started) pump(socket)
      },
      close: () => {
        failed += 1
        handshaken.resolve()
      },
      error: () => undefined,
    },
  })
  await handshaken.promise
  sockets.push(socket)
  connected += 1
}

let started = false
report({ connected: connected - failed })
for await (const line of console) {
  if (line === "go") {
    started = true
    for (const socket of sockets) pump(socket)
  }
  if (line === "status") report({ received, disorder, failed })
}
process.exit(0)
