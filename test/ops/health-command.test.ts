/** The health check of the image: which address it asks, and its exit status. */

import { expect, test } from "bun:test"
import { join } from "node:path"
import { healthUrl } from "../../src/ops/health-command.ts"

const MAIN_FILE = join(import.meta.dir, "../../src/main.ts")

test.each([
  ["0.0.0.0", "http://127.0.0.1:8080/health"],
  ["127.0.0.1", "http://127.0.0.1:8080/health"],
  ["::", "http://[::1]:8080/health"],
  ["fd00::5", "http://[fd00::5]:8080/health"],
  ["gateway.internal", "http://gateway.internal:8080/health"],
])("with HTTP_HOST=%s it asks %s", (host, url) => {
  expect(healthUrl({ host, port: 8080 })).toBe(url)
})

async function statusFor(respond: () => Response): Promise<number> {
  using server = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: respond })
  const command = Bun.spawn([process.execPath, MAIN_FILE, "health"], {
    env: { HTTP_PORT: String(server.port) },
    stdio: ["ignore", "ignore", "ignore"],
  })
  return await command.exited
}

test("it ends with status 0 when the gateway answers, otherwise with 1", async () => {
  expect(await statusFor(() => Response.json({ status: "ok" }))).toBe(0)
  expect(await statusFor(() => new Response(null, { status: 500 }))).toBe(1)
})
