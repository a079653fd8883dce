/**
 * A crowd: devices that connect, say who they are and then only hold their connection; a process of its
 * own, so that the load generator's work is not counted as the gateway's. A process may open 20,000 files:
 * larger crowds are several of these.
 *
 *   stdout {"ready": n} ─► stdin "connect" ─► stdout {"connected": n}
 *                       ─► stdin "close" ─► stdout {"closed": n} ─► … ─► stdin closes ─► ends
 */

import { readFileSync } from "node:fs"
import { parseArgs } from "node:util"
import { helloLine } from "../../src/device/hello.ts"
import { createDeviceCertificate } from "../../src/ops/certificates.ts"

const { values } = parseArgs({
  options: {
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
  },
})
const port = Number(values.port)
const connections = Number(values.connections)
const first = Number(values.first)
const rate = Number(values.rate)
/** Handshakes that are begun and not complete. */
const MOST_AT_ONCE = 64

function report(what: Record<string, number>): void {
  process.stdout.write(`${JSON.stringify(what)}\n`)
}

const identities: { line: string; tls: Bun.TLSOptions }[] = []
for (let at = first; at < first + connections; at += 1) {
  const name = `device-${at}`
  const line = values.auth === "hello" ? `${helloLine(name, values.secret)}\n` : ""
  if (values.auth !== "mtls") identities.push({ line, tls: {} })
  else {
    const [certPem, keyPem] = [values["ca-cert"], values["ca-key"]].map((file) => {
      return readFileSync(file, "utf8")
    })
    const pair = await createDeviceCertificate(
      { certPem: certPem ?? "", keyPem: keyPem ?? "" },
      name,
    )
    identities.push({ line, tls: { cert: pair.certPem, key: pair.keyPem } })
  }
}

const sockets: Bun.Socket[] = []
let lost = 0

function connect(at: number): Promise<void> {
  const { line = "", tls = {} } = identities[at] ?? {}
  const { promise, resolve } = Promise.withResolvers<void>()
  Bun.connect({
    hostname: "127.0.0.1",
    port,
    tls: { rejectUnauthorized: false, ...tls },
    socket: {
      handshake: (socket) => {
        if (line !== "") socket.write(line)
        sockets.push(socket)
        resolve()
      },
      data: () => undefined,
      close: () => {
        lost += 1
        resolve()
      },
      error: () => undefined,
    },
  }).catch(() => resolve())
  return promise
}

/** Runs `act` for 0 to `count` - 1, at the rate and no more than `MOST_AT_ONCE` at a time. */
async function paced(count: number, act: (at: number) => Promise<void>): Promise<void> {
  const startedAtMs = performance.now()
  let next = 0
  const worker = async () => {
    for (let at = next++; at < count; at = next++) {
      const dueMs = rate === 0 ? 0 : startedAtMs + (at / rate) * 1000
      const waitMs = dueMs - performance.now()
      if (waitMs > 0) await Bun.sleep(waitMs)
      await act(at)
    }
  }
  await Promise.all(Array.from({ length: Math.min(count, MOST_AT_ONCE) }, worker))
}

report({ ready: connections })
for await (const line of console) {
  if (line === "connect") {
    await paced(connections, connect)
    report({ connected: sockets.length - lost })
  }
  if (line === "close") {
    const open = sockets.splice(0)
    await paced(open.length, async (at) => {
      open[at]?.end()
    })
    report({ closed: open.length })
  }
}
process.exit(0)
