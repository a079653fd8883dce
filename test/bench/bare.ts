/**
 * A bare TLS server to compare with: `Bun.listen` that counts connections and bytes, and nothing else.
 *
 *   stdout {"port": n} ─► stdin "status" ─► stdout {"admitted": n, "open": n, "bytes": n}
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
  },
})
const asked = values.ca === "" ? {} : { requestCert: true, ca: readFileSync(values.ca, "utf8") }
let admitted = 0
let open = 0
let bytes = 0

const listener = Bun.listen({
  hostname: "127.0.0.1",
  port: 0,
  tls: {
    cert: readFileSync(values.cert, "utf8"),
    key: readFileSync(values.key, "utf8"),
    rejectUnauthorized: true,
    ...asked,
  },
  socket: {
    handshake: (_socket, success) => {
      if (!success) return
      admitted += 1
      open += 1
    },
    data: (_socket, chunk) => {
      bytes += chunk.length
    },
    close: () => {
      open -= 1
    },
    error: () => undefined,
  },
})
report({ port: listener.port })
for await (const line of console) if (line === "status") report({ admitted, open, bytes })
process.exit(0)
