/**
 * A crowd: devices that connect, say who they are and then only hold their connection. A process may open
 * 20,000 files: larger crowds are several of these.
 *
 *   stdout {"ready": n} ─► stdin "connect" ─► stdout {"connected": n, "ms": all, "medianMs", "slowestMs": one}
 *                       ─► stdin "close" ─► stdout {"closed": n} ─► again
 */

import { readFileSync } from "node:fs"
import { parseArgs } from "node:util"
import { helloLine } from "../../src/device/hello.ts"
import { createDeviceCertificate } from "../../src/ops/certificates.ts"
import { report } from "./child.ts"

const { values } = parseArgs({
  options: {
    host: { type: "string", default: "127.0.0.1" },
    port: { type: "string" },
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
const rate = Number(values.rate)
const atOnce = Number(values["at-once"])
const CLIENT = { rejectUnauthorized: false }

interface DeviceIdentity {
  readonly line: string
  readonly tls: Bun.TLSOptions
}

async function identityOf(name: string): Promise<DeviceIdentity> {
  switch (values.auth) {
    case "hello":
      return { line: `${helloLine(name, values.secret)}\n`, tls: CLIENT }
    case "mtls": {
      const certPem = readFileSync(values["ca-cert"], "utf8")
      const keyPem = readFileSync(values["ca-key"], "utf8")
      const pair = await createDeviceCertificate({ certPem, keyPem }, name)
      return { line: "", tls: { ...CLIENT, cert: pair.certPem, key: pair.keyPem } }
    }
    default:
      return { line: "", tls: CLIENT }
  }
}

const identities: DeviceIdentity[] = []
for (let at = first; at < first + connections; at += 1) {
  identities.push(await identityOf(`device-${at}`))
}

const sockets = new Set<Bun.Socket>()
/** From the beginning to the end of each handshake of this wave. */
let tookMs: number[] = []

function connect(at: number): Promise<void> {
  const { line = "", tls = CLIENT } = identities[at] ?? {}
  const { promise, resolve } = Promise.withResolvers<void>()
  const begunAtMs = performance.now()
  Bun.connect({
    hostname: values.host,
    port,
    tls,
    socket: {
      handshake: (socket) => {
        if (line !== "") socket.write(line)
        sockets.add(socket)
        tookMs.push(performance.now() - begunAtMs)
        resolve()
      },
      data: () => undefined,
      close: (socket) => {
        sockets.delete(socket)
        resolve()
      },
      error: () => undefined,
    },
  }).catch(() => resolve())
  return promise
}

/** Runs `act` for 0 to `count` - 1, at the rate and no more than `atOnce` at a time. */
async function paced(count: number, act: (at: number) => Promise<void>): Promise<void> {
  const startedAtMs = performance.now()
  let next = 0
  const lane = async () => {
    for (let at = next++; at < count; at = next++) {
      const dueMs = rate === 0 ? 0 : startedAtMs + (at / rate) * 1000
      const waitMs = dueMs - performance.now()
      if (waitMs > 0) await Bun.sleep(waitMs)
      await act(at)
    }
  }
  await Promise.all(Array.from({ length: Math.min(count, atOnce) }, lane))
}

report({ ready: connections })
for await (const line of console) {
  if (line === "connect") {
    tookMs = []
    const startedAtMs = performance.now()
    await paced(connections, connect)
    const ms = performance.now() - startedAtMs
    const sorted = tookMs.toSorted((a, b) => a - b)
    const medianMs = sorted[Math.floor(sorted.length / 2)] ?? 0
    report({ connected: sockets.size, ms, medianMs, slowestMs: sorted.at(-1) ?? 0 })
  }
  if (line === "close") {
    const open = [...sockets]
    await paced(open.length, async (at) => {
      open[at]?.end()
    })
    report({ closed: open.length })
  }
}
process.exit(0)
