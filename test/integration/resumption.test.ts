/** TLS sessions: resumed with a ticket, and never without tickets. */

import { afterAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { startGateway } from "../support/gateway.ts"

const directory = mkdtempSync(join(tmpdir(), "owsla-resumption-"))
const LIMIT_MS = 30_000

afterAll(() => rmSync(directory, { recursive: true, force: true }))

/** Sends a line, waits for its acknowledgement, and resolves with "New" or "Reused". */
async function visit(port: number, version: string, args: string[]): Promise<string | undefined> {
  const client = Bun.spawn(
    ["openssl", "s_client", "-connect", `127.0.0.1:${port}`, `-${version}`, ...args],
    { stdin: "pipe", stdout: "pipe", stderr: "ignore" },
  )
  client.stdin.write("hello\n")
  await client.stdin.flush()
  let output = ""
  const decoder = new TextDecoder()
  for await (const chunk of client.stdout) {
    output += decoder.decode(chunk, { stream: true })
    // With TLS 1.3 the tickets come with the first bytes of the gateway.
    if (output.includes("ACK 0")) await client.stdin.end()
  }
  await client.exited
  return /^(New|Reused), TLS/m.exec(output)?.[1]
}

describe.each(["tickets", "none"] as const)("TLS_RESUMPTION=%s", (TLS_RESUMPTION) => {
  test.each(["tls1_2", "tls1_3"])(
    "a device that returns, %s",
    async (version) => {
      const gateway = await startGateway({ DEVICE_ACK: "seq", TLS_RESUMPTION })
      try {
        await gateway.ready()
        const session = join(directory, `${TLS_RESUMPTION}.${version}`)
        expect(await visit(gateway.devicePort, version, ["-sess_out", session])).toBe("New")
        const exists = await Bun.file(session).exists()
        const again = exists ? ["-sess_in", session] : []
        const expected = TLS_RESUMPTION === "tickets" ? "Reused" : "New"
        expect(await visit(gateway.devicePort, version, again)).toBe(expected)
      } finally {
        await gateway.stop()
      }
    },
    LIMIT_MS,
  )
})
