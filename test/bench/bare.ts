/**
 * A bare TLS server to compare with: `Bun.listen` that counts connections and bytes, writes lines
 * when it is told to, and does nothing else. With `--echo yes` it also writes back every chunk.
 *
 *   stdout {"port": n} ─► stdin "status"  ─► stdout {"admitted": n, "open": n, "bytes": n}
 *                      ─► stdin "write n" ─► stdout {"written": lines}
 */

import { readFileSync } from "node:fs"
import { parseArgs } from "node:util"
import { report } from "./child.ts"

const { values } = parseArgs({
  options: {
    cert: { type: "string", default: "" },
    key: { type: "string", default: "" },
    /** The CA of the devices' certificates; none is asked for without it. */
    ca: { type: "string", default: "" },
    echo: { type: "string", default: "no" },
  },
})
const asked = values.ca === "" ? {} : { requestCert: true, ca: readFileSync(values.ca, "utf8") }
const echoes = values.echo === "yes"
const sockets = new Set<Bun.Socket>()
let admitted = 0
let bytes = 0

const listener = Bun.listen({
  hostname: "0.0.0.0",
  port: 0,
  tls: {
    cert: readFileSync(values.cert, "utf8"),
    key: readFileSync(values.key, "utf8"),
    rejectUnauthorized: true,
    ...asked,
  },
  socket: {
    handshake: (socket, success) => {
      if (!success) return
      admitted += 1
      sockets.add(socket)
    },
    data: (socket, chunk) => {
      bytes += chunk.length
      // What the socket does not take is dropped: only bulk lines fill its buffer.
      if (echoes) socket.write(chunk)
    },
    close: (socket) => {
      sockets.delete(socket)
    },
    error: () => undefined,
  },
})

/** A turn for each round, as a gateway writes what one turn brought. */
async function write(lines: number): Promise<void> {
  for (let n = 0; n < lines; n += 1) {
    const line = Buffer.from(`${n} command\n`)
    for (const socket of sockets) socket.write(line)
    await new Promise((resolve) => setImmediate(resolve))
  }
  report({ written: lines * sockets.size })
}

report({ port: listener.port })
for await (const line of console) {
  const [word, count] = line.split(" ")
  if (word === "status") report({ admitted, open: sockets.size, bytes })
  if (word === "write") await write(Number(count))
}
process.exit(0)
