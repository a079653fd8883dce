/**
 * A program that opens connections to a device port at a rate, from many loopback addresses, and is
 * no device. It reports what it did, as one line of JSON, when its standard input closes.
 *
 *   visit   completes the handshake and closes
 *   guess   sends a HELLO with a proof that it guesses
 *   drip    sends the first bytes of a ClientHello, one a second, and stays
 *
 *   {"opened": n, "completed": handshakes, "refused": closed before one, "lines": received}
 */

import { parseArgs } from "node:util"

const { values } = parseArgs({
  options: {
    port: { type: "string" },
    kind: { type: "string" },
    /** Connections a second. */
    rate: { type: "string" },
    /** In all; 0 for no end. */
    count: { type: "string", default: "0" },
    addresses: { type: "string", default: "1" },
  },
})
const port = Number(values.port)
const rate = Number(values.rate)
const count = Number(values.count) || Number.POSITIVE_INFINITY
const addresses = Number(values.addresses)
const CLIENT_HELLO = Buffer.from([0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3])
const TICK_MS = 10

const counts = { opened: 0, completed: 0, refused: 0, lines: 0 }

function open(at: number): void {
  counts.opened += 1
  const host = at % addresses
  const where = {
    hostname: "127.0.0.1",
    port,
    // It works and is not in the types.
    localAddress: `127.2.${host >> 8}.${host & 255}`,
  }
  let completed = false
  const close = () => {
    if (!completed) counts.refused += 1
  }
  const data = (_socket: unknown, chunk: Uint8Array) => {
    counts.lines += chunk.filter((byte) => byte === 10).length
  }
  if (values.kind === "drip") {
    let sent = 0
    const open = (socket: Bun.Socket) => {
      const timer = setInterval(() => {
        socket.write(CLIENT_HELLO.subarray(sent, sent + 1))
        sent += 1
        if (sent === CLIENT_HELLO.length || socket.readyState < 1) clearInterval(timer)
      }, 1_000)
    }
    Bun.connect({ ...where, socket: { open, data, close, error: () => undefined } }).catch(close)
    return
  }
  const handshake = (socket: Bun.Socket) => {
    completed = true
    counts.completed += 1
    if (values.kind === "visit") socket.end()
    else socket.write(`HELLO admin ${crypto.randomUUID().replaceAll("-", "").repeat(2)}\n`)
  }
  const tls = { rejectUnauthorized: false }
  const socket = { handshake, data, close, error: () => undefined }
  Bun.connect({ ...where, tls, socket }).catch(close)
}

const startedAtMs = performance.now()
setInterval(() => {
  const due = Math.floor(((performance.now() - startedAtMs) / 1_000) * rate)
  while (counts.opened < Math.min(due, count)) open(counts.opened)
}, TICK_MS)
for await (const _ of Bun.stdin.stream());
process.stdout.write(`${JSON.stringify(counts)}\n`)
process.exit(0)
