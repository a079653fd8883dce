/** Bearer tokens on a real gateway: a token to read with shows everything and commands nothing. */

import { afterEach, expect, test } from "bun:test"
import { startGateway, type TestGateway } from "../support/gateway.ts"
import { connectDevice } from "../support/tls-device.ts"

const LIMIT_MS = 60_000
const ACT_TOKEN = "act-token-0123456789"
const READ_TOKEN = "read-token-0123456789"
let gateway: TestGateway

afterEach(() => gateway?.stop(), LIMIT_MS)

function ask(method: string, path: string, token: string | null, body?: string) {
  return gateway.fetch(path, {
    method,
    headers: {
      "content-type": "text/plain",
      ...(token === null ? {} : { authorization: `Bearer ${token}` }),
    },
    ...(body === undefined ? {} : { body }),
  })
}

async function codeOf(response: Response): Promise<unknown> {
  return ((await response.json()) as { error?: { code: string } }).error?.code
}

test.each([
  ["both kinds of tokens", { HTTP_TOKENS: ACT_TOKEN, HTTP_READ_TOKENS: READ_TOKEN }],
  ["read tokens alone", { HTTP_READ_TOKENS: READ_TOKEN }],
])("with %s, a read token sees the device and cannot command or close it", async (_, tokens) => {
  gateway = await startGateway({ DEVICE_ACK: "seq", ...tokens })
  const device = await connectDevice({ port: gateway.devicePort })
  await device.send("hello")
  expect(await device.nextLine()).toBe("ACK 0")

  expect((await ask("GET", "/devices", null)).status).toBe(401)
  const listed = await ask("GET", "/devices", READ_TOKEN)
  const { devices } = (await listed.json()) as { devices: { device_id: string }[] }
  expect(devices).toHaveLength(1)
  const path = `/devices/${devices[0]?.device_id}`
  expect((await ask("GET", path, READ_TOKEN)).status).toBe(200)
  expect(await (await ask("GET", "/health", READ_TOKEN)).text()).toContain("uptime_s")
  expect(await (await ask("GET", "/health", null)).text()).not.toContain("uptime_s")

  const sent = await ask("POST", `${path}/send`, READ_TOKEN, "open")
  expect([sent.status, await codeOf(sent)]).toEqual([403, "forbidden"])
  const closed = await ask("DELETE", `${path}/connection`, READ_TOKEN)
  expect([closed.status, await codeOf(closed)]).toEqual([403, "forbidden"])
  expect((await ask("POST", `${path}/send`, null, "open")).status).toBe(401)

  const withAct = await ask("POST", `${path}/send`, ACT_TOKEN, "allowed")
  expect(withAct.status).toBe("HTTP_TOKENS" in tokens ? 200 : 401)
  await device.send("still here")
  const lines = await device.waitLines("HTTP_TOKENS" in tokens ? 3 : 2)
  expect([...lines].sort()).toEqual(
    "HTTP_TOKENS" in tokens ? ["ACK 0", "ACK 1", "allowed"] : ["ACK 0", "ACK 1"],
  )
})
