/**
 * A bare TLS server to compare with: `Bun.listen` that counts connections and bytes, and nothing else.
 * Prints the port; ends with its standard input.
 */

import { readFileSync } from "node:fs"
import { parseArgs } from "node:util"

const { values } = parseArgs({ options: { cert: { type: "string" }, key: { type: "string" } } })
let admitted = 0

const listener = Bun.listen({
  hostname: "127.0.0.1",
  port: 0,
  tls: {
    cert: readFileSync(values.cert ?? "", "utf8"),
    key: readFileSync(values.key ?? "", "utf8"),
  },
  socket: {
    handshake: () => {
      admitted += 1
    },
    data: () => undefined,
    error: () => undefined,
  },
})
process.stdout.write(`${JSON.stringify({ port: listener.port })}\n`)
for await (const line of console) {
  if (line === "status") process.stdout.write(`${JSON.stringify({ admitted })}\n`)
}
process.exit(0)
